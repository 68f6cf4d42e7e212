"""What the layouts of BLIP share: transformers' captioning and retrieval classes.

Shapes: I pictures, T tokens, V vocabulary.
"""

from __future__ import annotations

import json
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
    preprocessing_of,
    read_class,
    read_config,
)
from diptych.errors import CheckpointError, ConfigError
from diptych.model.architectures.captioner import Captioner, CaptionerConfig
from diptych.model.text_mixture import TextMixtureConfig, share
from diptych.model.vision_encoder import VisionEncoderConfig

Pairs = list[tuple[Tensor, Tensor]]
_NOT_TEXT = ("transformers_version", "dtype", "architectures", "model_type", "label_smoothing")


def written_as(kind: Any, model: Any, dim: int, pairs: Callable[[Any], Pairs]) -> Any:
    """A class of the ecosystem, float32, with the weights of `model`.

    Raises:
        ConfigError: the class cannot hold this image encoder.
    """
    encoder = model.vision_encoder
    if encoder.hf_config.model_type != "blip_vision_model" or encoder.num_prefix != 1:
        raise ConfigError(
            "the layout holds a blip_vision_model with its class token, this model has a "
            f"{encoder.hf_config.model_type}",
            where="model.vision_encoder",
            fix="compose with a blip_vision_model and features: full, or keep the folder",
        )
    config = kind.config_class(
        vision_config=encoder.hf_config.to_dict(),
        text_config=model.text.hf_config.to_dict(),
        image_text_hidden_size=dim,
        projection_dim=dim,
    )
    theirs = kind(config).float().eval()
    with torch.no_grad():
        for own, its in pairs(theirs):
            its.copy_(own)
    return theirs


def save_as_blip(theirs: Any, model: Any, out: Path) -> None:
    """Weights, tokenizer and preprocessing in a folder."""
    theirs.to(getattr(torch, model.config.text.dtype)).save_pretrained(out)
    model.tokenizer.save_pretrained(out)
    merge_json(out / "tokenizer_config.json", {"model_max_length": model.text.context_tokens})
    merge_json(out / "preprocessor_config.json", model.preprocessing.to_hf("clip"))


def parts_of(its: Any, path: Path) -> dict[str, Any]:
    """`vision_encoder` and `text` of a class's config, as a folder in a BLIP layout has them."""
    text = its.text_config.to_dict()
    tokens = path / "tokenizer_config.json"
    known = json.loads(tokens.read_text(encoding="utf-8")) if tokens.is_file() else {}
    longest = min(
        int(known.get("model_max_length") or 64), int(text["max_position_embeddings"]), 64
    )
    return {
        "vision_encoder": VisionEncoderConfig(
            config={**its.vision_config.to_dict(), "model_type": "blip_vision_model"},
            features="full",
            image=preprocessing_of(path),
        ),
        "text": TextMixtureConfig(
            config={k: v for k, v in text.items() if k not in _NOT_TEXT},
            tokenizer=str(path),
            max_tokens=longest,
            dropout=float(text.get("hidden_dropout_prob", 0.0)),
        ),
    }


def check_start(model: Any, theirs: Any, path: Path) -> None:
    """The tokenizer's start of what is written must be the class's.

    Raises:
        CheckpointError: it is another id.
    """
    start = theirs.config.text_config.bos_token_id
    if model.text.decoder_start != start:
        raise CheckpointError(
            f"the tokenizer's [DEC] is {model.text.decoder_start}, the model starts to write with "
            f"{start}",
            where=str(path),
        )


@dataclass(frozen=True)
class BlipLayout:
    """One BLIP class of the ecosystem.

    Attributes:
        name: of the layout.
        writes: whether the class writes captions; otherwise it compares and checks them.
    """

    name: str
    writes: bool
    find_class: Callable[[], Any]

    # -- leaving ----------------------------------------------------------------------------

    def export(self, model: Captioner, out: Path) -> ExportReport:
        """Write `model` to the empty folder `out` and compare; see `layout.Layout`."""
        theirs = written_as(
            self.find_class(), model, model.config.dim, lambda its: self._pairs(model, its)
        )
        save_as_blip(theirs, model, out)
        report = self.compare(model, out)
        lost = "reader and heads" if self.writes else "writer and temperature"
        report.notes.append(f"the class has no place for the {lost}; keep the Diptych folder too")
        return report

    def _pairs(self, model: Captioner, theirs: Any) -> Pairs:
        """Every tensor of `theirs` with the one of `model` that it is."""
        found = matched(model.vision_encoder.module, theirs.vision_model)
        if self.writes:
            return found + matched(model.text.writer, theirs.text_decoder)
        found += matched(model.text.reader, theirs.text_encoder)
        found += matched(model.heads.image, theirs.vision_proj)
        found += matched(model.heads.text, theirs.text_proj)
        return found + matched(model.heads.matching, theirs.itm_head)

    # -- coming in --------------------------------------------------------------------------

    def load(self, path: Path) -> Captioner:
        """The model of a folder in this layout; see `layout.Layout`.

        What the class does not have is started from what it has: a reader from the writer's
        self-attention, or the other way round; heads are new.
        """
        theirs = read_class(self.find_class(), path, self.name)
        model = self.described(path).compose().eval()
        if self.writes:
            check_start(model, theirs, path)
        mixture = model.text
        with torch.no_grad():
            for own, its in self._pairs(model, theirs):
                own.copy_(its)
            source, target = mixture.writer.bert, mixture.reader
            if not self.writes:
                source, target = target, source
            for own_layer, its_layer in zip(
                target.encoder.layer, source.encoder.layer, strict=True
            ):
                own_layer.attention.load_state_dict(its_layer.attention.state_dict())
        share(mixture.reader, mixture.writer)
        return model

    def described(self, path: Path) -> CaptionerConfig:
        """What it is composed of; see `layout.Layout`."""
        config = read_config(self.find_class(), path, self.name)
        return CaptionerConfig(**parts_of(config, path), dim=config.image_text_hidden_size)

    # -- comparing --------------------------------------------------------------------------

    @torch.no_grad()
    def outputs(self, model: Captioner) -> list[Tensor]:
        """What the class computes too: caption logits, or cosines and matching logits."""
        return self._own(model, *self._inputs(model))

    def _inputs(self, model: Captioner) -> tuple[Tensor, Tensor, Tensor]:
        tokens = model.text_tokens
        ids, mask = tokens.pad([tokens.ids(t)[0] for t in TEXTS[1:]])
        return pixels_of(model.preprocessing), torch.from_numpy(ids), torch.from_numpy(mask)

    def _own(self, model: Captioner, pixels: Tensor, ids: Tensor, mask: Tensor) -> list[Tensor]:
        inputs = (x.to(model.device) for x in (pixels, ids, mask))
        pixels, ids, mask = inputs
        features = model.encode_pixels(pixels)
        if self.writes:
            logits = model.text.logits(model.text.write(ids, mask, features))
            return [logits[mask.bool()].cpu()]
        images = model.project_images(features)
        texts = model.project_texts(model.text.read(ids, mask))
        return [(images @ texts.T).cpu(), model.match(ids, mask, features).cpu()]

    def _theirs(
        self, model: Captioner, theirs: Any, pixels: Tensor, ids: Tensor, mask: Tensor
    ) -> list[Tensor]:
        if self.writes:
            started = ids.clone()
            started[:, 0] = model.text.decoder_start
            logits = theirs(pixel_values=pixels, input_ids=started, attention_mask=mask).logits
            return [logits[mask.bool()]]
        grounded = ids.clone()
        grounded[:, 0] = model.text.grounded_start
        cosines = theirs(
            pixel_values=pixels, input_ids=ids, attention_mask=mask, use_itm_head=False
        ).itm_score
        scores = theirs(pixel_values=pixels, input_ids=grounded, attention_mask=mask).itm_score
        return [cosines, scores]

    @torch.no_grad()
    def compare(self, model: Captioner, path: Path) -> ExportReport:
        """Hold `model` (float32) against a folder; see `layout.Layout`."""
        theirs = read_class(self.find_class(), path, self.name)
        report = ExportReport(self.name, type(theirs).__name__)
        pixels, ids, mask = self._inputs(model)
        if not compare_pixels(report, pixels, path):
            return report
        reference = self._theirs(model, theirs, pixels, ids, mask)
        compare_outputs(report, self._own(model, pixels, ids, mask), reference)
        compare_weights(report, self._pairs(model, theirs))
        return report
