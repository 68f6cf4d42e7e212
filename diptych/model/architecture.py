"""Contract of an architecture: which parts a model has and what it computes with them.

A part in `architectures/` has a `Config` (an `ArchitectureConfig`) and the `Model` it composes.
Whatever the architecture, a model is the same thing to training, checkpoints and the command
line: named parts that learn or rest, pictures that become features, a tokenizer, a folder.

Shapes: V pictures, N encoder tokens, C encoder width, H and W pixels.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from diptych import parts
from diptych.config import ADDED, Config, PartConfig, part_field
from diptych.data.pixels.image import decode, given
from diptych.data.pixels.preprocessing import Preprocessing
from diptych.data.text.plain_text import TextTokens
from diptych.errors import ConfigError
from diptych.model.adapters import LoraConfig, attach, merge
from diptych.model.vision_encoder import VisionEncoder, VisionEncoderConfig

log = logging.getLogger(__name__)
DEFAULT = "vlm"


TILES_AT_ONCE = 64
"""An encoder that rests looks at no more pictures or tiles in one pass."""
Ability = Literal["answer", "chat", "compare", "match", "predict_text"]
"""What a model can do, and by which methods: write answers (`generate`); hold a conversation
(`chat`); compare pictures and texts by vectors in one space (`encode_images`, `encode_texts`,
`similarity`); say whether a picture and a text belong together (`match_scores`); say how likely
plain text is (`text_log_likelihood`)."""
METHODS: dict[Ability, tuple[str, ...]] = {
    "answer": ("generate",), "chat": ("chat",),
    "compare": ("encode_images", "encode_texts", "similarity"),
    "match": ("match_scores",), "predict_text": ("text_log_likelihood",),
}  # fmt: skip


class ArchitectureConfig(PartConfig):
    """What a model is composed of; one field for each pretrained or new network.

    Attributes:
        parts: names of the parts that can learn, as recipes use them.
        text_part: field whose config names the tokenizer.
    """

    parts: ClassVar[tuple[str, ...]]
    text_part: ClassVar[str]

    vision_encoder: VisionEncoderConfig
    """The image panel."""
    weights: str | None = None
    """Model that training goes on from, whole, its adapters merged: a model or run folder, or a
    published model by its hub name (docs/weights.md lists the kinds), which is converted once. A
    recipe file gives nothing else of the model, `model: {weights: NAME}`: what it is composed of is
    filled in. Null begins each part as it says itself."""
    revision: str | None = Field(default=None, json_schema_extra=ADDED)
    """Branch, tag or commit of the hub's repository that `weights` names; null is the main one."""
    adapters: dict[str, LoraConfig] = {}
    """LoRA adapters by part; filled in by stages that learn with LoRA."""

    def compose(self, tokenizer: Any = None) -> Model:
        """The model, without adapters; what is new is initialised from the global generator.

        Args:
            tokenizer: takes the place of the one that the text part names.
        """
        raise NotImplementedError(f"{type(self).__name__} composes nothing")

    @property
    def text_config(self) -> Any:
        """Config of the part that reads text."""
        return getattr(self, self.text_part)


class Model(nn.Module):
    """What every architecture's model offers.

    Attributes:
        config: what it is composed of; grows by adapters.
        card_tag, card_usage: of the model card: pipeline tag, and a few lines of Python.
        command: asks the model in a terminal, {} for its folder; None where none does.
        tokens_per_image: language-model tokens of one picture, where pictures become such.
        can: what it can do besides learning, see `Ability`.
        represents: what it has vectors of: image, text, multimodal.
        precision: how it computes when asked, as `model.opened` settles it; None, as its weights
            are stored and as whoever calls it says.
        origins: which pretrained weights its parts began with (`weights.origin`), by part.
    """

    config: Any
    precision: str | None = None
    vision_encoder: VisionEncoder
    card_tag: ClassVar[str]
    card_usage: ClassVar[str]
    command: ClassVar[str | None] = None
    tokens_per_image: int | None = None
    can: ClassVar[tuple[Ability, ...]] = ()
    represents: ClassVar[tuple[str, ...]] = ()
    origins: Mapping[str, Any] = {}

    @property
    def tokenizer(self) -> Any:
        """Tokenizer of the text part."""
        return getattr(self, self.config.text_part).tokenizer

    @property
    def context_tokens(self) -> int:
        """Longest text that the model reads."""
        return getattr(self, self.config.text_part).context_tokens

    @property
    def preprocessing(self) -> Preprocessing:
        """How pictures become pixels."""
        return self.vision_encoder.preprocessing

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def part(self, name: str) -> nn.Module:
        """A part by its name in recipes."""
        return getattr(self, name)

    def named_parts(self) -> Iterator[tuple[str, nn.Module]]:
        """Name and module of every part."""
        for name in self.config.parts:
            yield name, self.part(name)

    def encode_pixels(self, pixel_values: Tensor) -> Tensor:
        """Pictures [V, 3, H, W] -> encoder features [V, N, C]; what the feature cache keeps."""
        weight = next(self.vision_encoder.parameters())
        if weight.dtype != torch.float32 and pixel_values.is_floating_point():
            pixel_values = pixel_values.to(weight.dtype)
        learns = any(p.requires_grad for p in self.vision_encoder.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
            if torch.is_grad_enabled() or len(pixel_values) <= TILES_AT_ONCE:
                return self._features(pixel_values)
            # Nothing is kept for a way back, so memory need not grow with the number of tiles.
            return torch.cat([self._features(c) for c in pixel_values.split(TILES_AT_ONCE)])

    def _features(self, pixel_values: Tensor) -> Tensor:
        return self.vision_encoder(pixel_values)

    def representing(self, what: str) -> Any:
        """A collator that prepares samples for `represent`."""
        from diptych.data.batching.collate_pairs import PairCollator
        from diptych.data.batching.picture_loader import PictureLoader

        needs = {"image": ("image",), "text": ("text",)}.get(what, ("image", "text"))
        tokens: Any = self.text_tokens  # type: ignore[attr-defined]
        return PairCollator(
            PictureLoader(self.preprocessing),
            tokens,
            needs=needs,
        )

    def represent(
        self, what: str, batch: Any, *, space: str, layer: int = -1
    ) -> tuple[Tensor, Tensor | None]:
        """What the model makes of a batch of samples.

        Args:
            what: one of `represents`.
            space: `shared`, for vectors [n, D] (or several a picture [n, K, D]) that are compared;
                `states`, for token states [n, K, D] before any projection.
            layer: hidden state of a language model.

        Returns:
            The states, and which of K are real (int64 [n, K]; None when all are).

        Raises:
            ConfigError: there is no such space.
        """
        raise NotImplementedError(f"{type(self).__name__} represents nothing")

    def _needs_states(self, what: str, space: str) -> None:
        if space == "shared":
            raise ConfigError(
                f"{what} of a {self.config.name} lies in no shared space",
                where="space",
                fix="use states",
            )

    def pixels_of(self, images: Iterable[Any]) -> Tensor:
        """Paths, addresses, bytes or PIL pictures (`data.image.given`), decoded and preprocessed:
        [V, 3, H, W] on the device.

        Raises:
            MissingImage, ImageError: a picture cannot be read.
        """
        shown = [given(image) for image in images]
        arrays = [self.preprocessing.pixels(decode(i.data or b"", where=i.path)) for i in shown]
        return torch.from_numpy(np.stack(arrays)).to(self.device)

    def ids_of(self, texts: Iterable[str]) -> tuple[Tensor, Tensor]:
        """Texts as `text_tokens` reads them: ids and mask int64 [n, T], on the device.

        What is too long loses its end, and a warning says how much.
        """
        tokens: TextTokens = self.text_tokens  # type: ignore[assignment]
        rows = [tokens.ids(text) for text in texts]
        if cut := [number for _, number in rows if number]:
            log.warning(
                "%d of %d texts are longer than the %d tokens that the text encoder reads: %d "
                "tokens were cut off", len(cut), len(rows), tokens.max_tokens, sum(cut),
            )  # fmt: skip
        ids, mask = tokens.pad([ids for ids, _ in rows])
        return torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).to(self.device)

    def train(self, mode: bool = True) -> Self:
        """Training mode for parts that learn; frozen parts stay in evaluation mode.

        A frozen part must stay bitwise as it is, and running statistics would move.
        """
        super().train(mode)
        if mode:
            for _, part in self.named_parts():
                if not any(p.requires_grad for p in part.parameters()):
                    part.eval()
        return self

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass in every part that can."""
        for _, part in self.named_parts():
            inner: Any = getattr(part, "module", part)
            if getattr(inner, "supports_gradient_checkpointing", False):
                inner.gradient_checkpointing_enable({"use_reentrant": False})

    def complete_config(self) -> ArchitectureConfig:
        """The config with everything written out, so that loading needs no other weights."""
        complete: dict[str, Any] = {"weights": None, "revision": None}
        for name in type(self.config).model_fields:
            inner = getattr(self.config, name)
            if isinstance(inner, Config) and hasattr(inner, "weights"):
                part: Any = self.part(name)
                own: Any = getattr(part, "config", inner)  # as settled by its weights
                update: dict[str, Any] = {"weights": None, "config": written(part.hf_config)}
                if hasattr(inner, "revision"):
                    update["revision"] = None
                if hasattr(inner, "tokenizer"):
                    update["tokenizer"] = "."
                complete[name] = own.model_copy(update=update)
        return self.config.model_copy(update=complete)

    def add_adapters(self, part: str, lora: LoraConfig) -> None:
        """Put LoRA on the linear layers of a part; the output layer is left alone.

        A part that already has the same adapters keeps them (a later stage goes on with them).

        Raises:
            ConfigError: no layer matches, or the part has other adapters.
        """
        known = self.config.adapters
        if part in known:
            if known[part] != lora:
                raise ConfigError(
                    f"the {part} has adapters of other settings already",
                    where=f"learn.{part}.lora",
                    fix="use the same LoRA settings in every stage, or merge before",
                )
            return
        attach(self.part(part), lora, part)
        self.config = self.config.model_copy(update={"adapters": {**known, part: lora}})

    def merge_adapters(self) -> Self:
        """Fold every adapter into its base weight and remove it, in place.

        Equal to the unmerged model up to rounding: tests/equivalence/test_lora.py.
        """
        for part in list(self.config.adapters):
            merge(self.part(part))
        self.config = self.config.model_copy(update={"adapters": {}})
        return self


def config_from_dict(values: dict[str, Any], where: str | None = None) -> Any:
    """The config of any architecture; without a `name` it is a vlm's.

    Raises:
        PartNotFound, ConfigError: no such architecture, or values that do not fit it.
    """
    kind = parts.find("model.architectures", str(values.get("name", DEFAULT))).Config
    return kind.from_dict(values, where=where)


def written(hf_config: Any) -> dict[str, Any]:
    """A Hugging Face config as plain data, with its `model_type`."""
    values = json.loads(hf_config.to_json_string(use_diff=True))
    kept = {k: v for k, v in values.items() if k not in ("transformers_version", "dtype")}
    return {"model_type": hf_config.model_type, **kept}


ArchitectureField: Any = part_field("model.architectures", ArchitectureConfig, default=DEFAULT)
