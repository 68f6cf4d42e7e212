"""Two encoders and one space: pictures and texts as vectors that can be compared (CLIP, SigLIP).

Shapes: I pictures, n texts, T tokens, C width of an encoder, D width of the shared space.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diptych.data.batching.batch import Batch
from diptych.data.batching.chunks import in_chunks
from diptych.data.sample import Image, Sample
from diptych.data.text.plain_text import TextTokens
from diptych.errors import ConfigError, ModelError
from diptych.model import text_encoder as text_encoders
from diptych.model import vision_encoder as vision_encoders
from diptych.model.architecture import ArchitectureConfig, Model
from diptych.model.precision import in_its_precision
from diptych.model.text_encoder import TextEncoder, TextEncoderConfig
from diptych.model.vision_encoder import VisionEncoder


class DualEncoderConfig(ArchitectureConfig):
    """What a dual encoder is composed of."""

    parts: ClassVar[tuple[str, ...]] = ("vision_encoder", "text_encoder", "space")
    text_part: ClassVar[str] = "text_encoder"

    name: str = "dual_encoder"
    """File stem of the architecture."""
    text_encoder: TextEncoderConfig
    """The text panel."""
    image_pool: Literal["model", "mean", "first"] = "model"
    """How patch features become one vector: the model's own pooled output (CLIP: class token,
    SigLIP: attention head, ResNet: average), the mean over patches, or the first token."""
    dim: int | None = Field(default=512, ge=2)
    """Width of the shared space, behind one linear layer without bias for each side (CLIP); null
    compares the pooled vectors as they are, which then have one width (SigLIP)."""
    temperature: float = Field(default=0.07, gt=0)
    """Temperature to begin with; learned."""
    min_temperature: float | None = Field(default=0.01, gt=0)
    """Training keeps the temperature from falling below this (CLIP); null has no bound (SigLIP)."""
    bias: float | None = None
    """Bias of every logit to begin with, learned (SigLIP: -10); null has none (CLIP)."""

    def compose(self, tokenizer: Any = None) -> DualEncoder:
        own = self.image_pool == "model"
        encoder = vision_encoders.build(self.vision_encoder, pooled=own)
        texts = text_encoders.build(self.text_encoder, tokenizer)
        space = Space(self, encoder.dim, texts.dim)
        config = self.model_copy(update={"vision_encoder": encoder.config})
        return DualEncoder(config, encoder, texts, space)


Config = DualEncoderConfig


class Space(nn.Module):
    """The shared space: a projection for each side, and the scale of its logits.

    Initial values: CLIP, `model.py` of openai/CLIP (normal, standard deviation C ** -0.5).
    """

    def __init__(self, config: DualEncoderConfig, image_dim: int, text_dim: int):
        super().__init__()
        if config.dim is None and image_dim != text_dim:
            raise ConfigError(
                f"pictures have vectors of {image_dim} numbers, texts of {text_dim}",
                where="model.dim",
                fix="give dim, the width of a shared space",
            )
        self.image: nn.Module = nn.Identity()
        self.text: nn.Module = nn.Identity()
        if config.dim is not None:
            self.image = nn.Linear(image_dim, config.dim, bias=False)
            self.text = nn.Linear(text_dim, config.dim, bias=False)
            nn.init.normal_(self.image.weight, std=image_dim**-0.5)
            nn.init.normal_(self.text.weight, std=text_dim**-0.5)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(config.temperature)))
        self.bias = None
        if config.bias is not None:
            self.bias = nn.Parameter(torch.tensor(config.bias))
        lowest = config.min_temperature
        self._largest = math.inf if lowest is None else -math.log(lowest)

    def scale(self) -> Tensor:
        """Inverse temperature, exponentiated; in training never beyond its bound."""
        if self.training and self.log_scale.requires_grad and self._largest < math.inf:
            with torch.no_grad():
                # On the parameter itself, so that the bound can be left again.
                self.log_scale.clamp_(0.0, self._largest)
        return self.log_scale.exp()


class DualEncoder(Model):
    """Pictures and texts -> unit vectors in one space.

    Parity: tests/parity/test_dual_encoder.py, against CLIPModel and SiglipModel.
    """

    text_encoder: TextEncoder
    space: Space
    can = ("compare",)
    represents = ("image", "text")
    command = "diptych eval {} --image PICTURE --text WORDS"
    card_tag = "zero-shot-image-classification"
    card_usage = (
        'model = diptych.load("path/to/this/folder")\n'
        'print(model.similarity(["picture.png"], ["a red umbrella", "a cat"]))'
    )

    def __init__(
        self,
        config: DualEncoderConfig,
        vision_encoder: VisionEncoder,
        text_encoder: TextEncoder,
        space: Space,
    ):
        super().__init__()
        self.config = config
        self.vision_encoder = vision_encoder
        self.text_encoder = text_encoder
        self.space = space

    # -- computing --------------------------------------------------------------------------

    def _features(self, pixel_values: Tensor) -> Tensor:
        return self.vision_encoder.pooled(pixel_values, self.config.image_pool)[:, None]

    def embed_pixels(self, pixel_values: Tensor) -> Tensor:
        """Pictures [I, 3, H, W] -> unit vectors float32 [I, D]."""
        return self.embed_features(self.encode_pixels(pixel_values))

    def embed_features(self, features: Tensor) -> Tensor:
        """Pooled features [I, 1, C] (`encode_pixels`) -> unit vectors float32 [I, D]."""
        return _unit(self.space.image(_as_weights(features[:, 0], self.space.image)))

    def embed_ids(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids and mask int64 [n, T] -> unit vectors float32 [n, D]."""
        pooled = self.text_encoder(ids, mask)
        return _unit(self.space.text(_as_weights(pooled, self.space.text)))

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """A batch of pairs -> (pictures [n, D], texts [n, D])."""
        if batch.features is not None:
            images = self.embed_features(batch.features)
        else:
            assert batch.pixel_values is not None, "pairs have pictures"
            images = self.embed_pixels(batch.pixel_values)
        return images, self.embed_ids(batch.input_ids, batch.segment_ids)

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """Unit vectors [I, D] and [n, D] -> logits [I, n]: scaled cosines, plus the bias."""
        logits = self.scale() * images @ texts.T
        return logits if self.space.bias is None else logits + self.space.bias

    def scale(self) -> Tensor:
        """Inverse temperature of the logits, a scalar."""
        return self.space.scale()

    def represent(
        self, what: str, batch: Batch, *, space: str, layer: int = -1
    ) -> tuple[Tensor, Tensor | None]:
        """Unit vectors of the shared space, or patch features and text states; see `Model`."""
        del layer
        if what == "text":
            ids, mask = batch.input_ids, batch.segment_ids
            if space == "shared":
                return self.embed_ids(ids, mask), None
            return self.text_encoder.states(ids, mask), mask
        assert batch.pixel_values is not None, "pictures are prepared"
        if space == "shared":
            return self.embed_pixels(batch.pixel_values), None
        return self.vision_encoder(batch.pixel_values), None

    @cached_property
    def text_tokens(self) -> TextTokens:
        """What turns texts into ids."""
        return self.text_encoder.tokens()

    # -- asking -----------------------------------------------------------------------------

    @torch.inference_mode()
    @in_its_precision
    def encode_images(self, images: Iterable[Any], *, batch_size: int = 64) -> Tensor:
        """Paths, bytes or PIL pictures -> unit vectors float32 [I, D], on the CPU.

        Raises:
            MissingImage, ImageError: a picture cannot be read.
        """
        chunks = in_chunks(images, batch_size)
        rows = [self.embed_pixels(self.pixels_of(chunk)).cpu() for chunk in chunks]
        return torch.cat(rows) if rows else torch.zeros(0, 0)

    @torch.inference_mode()
    @in_its_precision
    def encode_texts(self, texts: Iterable[str], *, batch_size: int = 256) -> Tensor:
        """Texts -> unit vectors float32 [n, D], on the CPU. What is too long loses its end."""
        chunks = in_chunks(texts, batch_size)
        rows = [self.embed_ids(*self.ids_of(chunk)).cpu() for chunk in chunks]
        return torch.cat(rows) if rows else torch.zeros(0, 0)

    def similarity(self, images: Iterable[Any], texts: Iterable[str]) -> Tensor:
        """Cosines float32 [I, n] of pictures (paths, bytes, PIL) and texts."""
        return self.compare(self.encode_images(images), self.encode_texts(texts))

    @staticmethod
    def compare(images: Tensor, texts: Tensor) -> Tensor:
        """Unit vectors [I, D] and [n, D] -> cosines [I, n]."""
        return images @ texts.T

    @torch.inference_mode()
    def log_likelihoods(
        self,
        samples: Sequence[Sample],
        continuations: Sequence[Sequence[str]],
        *,
        images: Callable[[Image], bytes],
        chat: bool = True,
        templates: Sequence[str] = ("{}",),
    ) -> list[list[float]]:
        """Zero-shot classification: log-probability of each text among those of its sample.

        Args:
            templates: texts with one {}; a class is the mean of its vectors over all of them,
                as in CLIP, section 3.1.4.

        Raises:
            ModelError: a sample has no picture.
        """
        del chat  # there is no conversation here
        for sample in samples:
            if next(sample.images(), None) is None:
                raise ModelError(f"sample '{sample.id}' has no picture to classify")
        vectors = self.encode_images(images(next(s.images())) for s in samples)
        wanted = list(dict.fromkeys(t for texts in continuations for t in texts))
        filled = [template.replace("{}", t) for t in wanted for template in templates]
        encoded = self.encode_texts(filled).view(len(wanted), len(templates), -1)
        known = dict(zip(wanted, _unit(encoded.mean(1)), strict=True))
        rows = []
        for vector, texts in zip(vectors, continuations, strict=True):
            classes = torch.stack([known[t] for t in texts])
            logits = self.space.log_scale.exp().cpu() * classes @ vector
            rows.append(logits.log_softmax(0).tolist())
        return rows


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(vectors.float(), dim=-1)


def _as_weights(vectors: Tensor, layer: nn.Module) -> Tensor:
    weight = next(layer.parameters(), None)
    return vectors if weight is None else vectors.to(weight.dtype)
