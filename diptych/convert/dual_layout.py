"""What the layouts of dual encoders share: transformers' CLIPModel and SiglipModel.

Shapes: I pictures, n texts, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.convert.comparison import ExportReport
from diptych.convert.probes import (
    TEXTS,
    compare_outputs,
    compare_pixels,
    compare_weights,
    matched,
    merge_json,
    pixels_of,
    plain_config,
    preprocessing_of,
    read_class,
    read_config,
)
from diptych.errors import ConfigError
from diptych.model.architectures.dual_encoder import DualEncoder, DualEncoderConfig
from diptych.model.text_encoder import TextEncoderConfig
from diptych.model.vision_encoder import VisionEncoderConfig
from diptych.model.weights import reading


@dataclass(frozen=True)
class DualLayout:
    """One class of the ecosystem that holds two encoders.

    Attributes:
        name: of the layout.
        model_type: of its config; the encoders' are this plus `_vision_model`, `_text_model`.
        processor: kind of `Preprocessing.to_hf`.
        text: settings of the text encoder that the class implies.
        projects: whether the class has projections and a temperature without bias (CLIP), or
            compares pooled vectors as they are, with a bias (SigLIP).
    """

    name: str
    model_type: str
    processor: str
    text: dict[str, Any]
    projects: bool
    find_class: Callable[[], Any]

    # -- leaving ----------------------------------------------------------------------------

    def export(self, model: DualEncoder, out: Path) -> ExportReport:
        """Write `model` to the empty folder `out` and compare; see `layout.Layout`."""
        self._refuse(model)
        theirs = self._class_for(model)
        with torch.no_grad():
            for own, its in self._pairs(model, theirs):
                its.copy_(own)
        dtype = getattr(torch, model.config.text_encoder.dtype)
        theirs.to(dtype).save_pretrained(out)
        model.tokenizer.save_pretrained(out)
        # Who loads the folder cuts long texts where the model does.
        merge_json(
            out / "tokenizer_config.json", {"model_max_length": model.text_encoder.context_tokens}
        )
        merge_json(out / "preprocessor_config.json", model.preprocessing.to_hf(self.processor))
        return self.compare(model, out)

    def _refuse(self, model: DualEncoder) -> None:
        """Raises ConfigError over what the class cannot hold, with the way out."""
        keep = "keep the Diptych folder"
        for part, kind in (("vision_encoder", "vision"), ("text_encoder", "text")):
            found = getattr(model, part).hf_config.model_type
            wanted = f"{self.model_type}_{kind}_model"
            if found != wanted:
                raise ConfigError(
                    f"the layout holds a {wanted}, this model has a {found}",
                    where=f"model.{part}",
                    fix=f"compose with a {wanted}, or {keep}",
                )
        config = model.config
        if config.image_pool != "model" or config.text_encoder.pool != "model":
            raise ConfigError(
                "the layout knows the encoders' own pooling only",
                where="model.image_pool, model.text_encoder.pool",
                fix=f"train with pool: model, or {keep}",
            )
        wrong = [
            f"{name}={getattr(config.text_encoder, name)}"
            for name in ("pad_to_max",)
            if getattr(config.text_encoder, name) != self.text.get(name, False)
        ]
        if (config.dim is not None) != self.projects:
            wrong.append(f"dim={config.dim}")
        if (config.bias is None) != self.projects:
            wrong.append(f"bias={config.bias}")
        if wrong:
            raise ConfigError(
                f"a {self.model_type} has no {', '.join(wrong)}",
                where="model",
                fix=f"choose the other of hf-clip and hf-siglip, or {keep}",
            )

    def _class_for(self, model: DualEncoder) -> Any:
        kind = self.find_class()
        values: dict[str, Any] = {
            "vision_config": model.vision_encoder.hf_config.to_dict(),
            "text_config": model.text_encoder.hf_config.to_dict(),
        }
        if self.projects:
            values["projection_dim"] = model.config.dim
        return kind(kind.config_class(**values)).float().eval()

    def _pairs(self, model: DualEncoder, theirs: Any) -> list[tuple[Tensor, Tensor]]:
        """Every tensor of `theirs` with the one of `model` that it is."""
        found = matched(model.vision_encoder.module, theirs.vision_model)
        found += matched(model.text_encoder.module, theirs.text_model)
        found.append((model.space.log_scale.view(theirs.logit_scale.shape), theirs.logit_scale))
        if self.projects:
            image: Any = model.space.image
            text: Any = model.space.text
            found.append((image.weight, theirs.visual_projection.weight))
            found.append((text.weight, theirs.text_projection.weight))
        else:
            assert model.space.bias is not None, "refused before"
            found.append((model.space.bias.view(theirs.logit_bias.shape), theirs.logit_bias))
        return found

    # -- coming in --------------------------------------------------------------------------

    def load(self, path: Path) -> DualEncoder:
        """The model of a folder in this layout; see `layout.Layout`."""
        theirs = self._read(path)
        model = self.described(path).compose().eval()
        with torch.no_grad():
            for own, its in self._pairs(model, theirs):
                own.copy_(its)
        return model

    def described(self, path: Path) -> DualEncoderConfig:
        """What it is composed of; see `layout.Layout`."""
        config = read_config(self.find_class(), path, self.name)
        return DualEncoderConfig(
            vision_encoder=VisionEncoderConfig(
                config=plain_config(config.vision_config), image=preprocessing_of(path)
            ),
            text_encoder=TextEncoderConfig(
                config=plain_config(config.text_config), tokenizer=str(path), **self.text
            ),
            dim=config.projection_dim if self.projects else None,
            bias=None if self.projects else 0.0,
            # SigLIP's scale has no bound, and what was published may lie beyond CLIP's.
            min_temperature=0.01 if self.projects else None,
        )

    def _read(self, path: Path) -> Any:
        return read_class(self.find_class(), path, self.name)

    # -- comparing --------------------------------------------------------------------------

    def outputs(self, model: DualEncoder) -> list[Tensor]:
        """Logits [I, n] of pictures and texts that every dual encoder can read."""
        return [self._logits(model, *self._inputs(model))]

    @torch.no_grad()
    def _logits(self, model: DualEncoder, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        images = model.embed_pixels(pixels.to(model.device))
        texts = model.embed_ids(ids.to(model.device), mask.to(model.device))
        return model.logits(images, texts).cpu()

    def _inputs(self, model: DualEncoder) -> tuple[Tensor, Tensor, Tensor]:
        ids, mask = model.text_tokens.pad([model.text_tokens.ids(t)[0] for t in TEXTS])
        return pixels_of(model.preprocessing), torch.from_numpy(ids), torch.from_numpy(mask)

    @torch.no_grad()
    def compare(self, model: DualEncoder, path: Path) -> ExportReport:
        """Hold `model` (float32) against a folder; see `layout.Layout`."""
        from transformers import AutoTokenizer

        theirs = self._read(path)
        report = ExportReport(self.name, type(theirs).__name__)
        pixels, ids, mask = self._inputs(model)
        with reading(path, self.name):
            tokenizer = AutoTokenizer.from_pretrained(path)
        if not compare_pixels(report, pixels, path):
            return report
        padding = "max_length" if model.config.text_encoder.pad_to_max else True
        tokens = tokenizer(
            list(TEXTS),
            padding=padding,
            truncation=True,
            max_length=model.text_encoder.context_tokens,
            return_tensors="pt",
        )
        report.tokens_equal = torch.equal(tokens["input_ids"], ids)
        if not report.tokens_equal:
            report.notes.append(
                "its tokenizer frames texts in another way; give it ids that end with "
                f"{model.tokenizer.eos_token!r}"
            )
        inputs = {"input_ids": ids, "pixel_values": pixels}
        if padding is True:
            inputs["attention_mask"] = mask
        reference = theirs(**inputs).logits_per_image
        compare_outputs(report, [self._logits(model, pixels, ids, mask)], [reference], "logits")
        compare_weights(report, self._pairs(model, theirs))
        return report
