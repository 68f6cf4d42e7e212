"""Samples -> one vector each (or one matrix), from any model.

What a model offers is its `represent`: token states before any projection, or vectors of its shared
space. Pooling, normalising and storing in fewer bits are the same for every model and happen here.
A fingerprint names everything that decides the numbers: weights, preprocessing and these settings.

Shapes: n samples, K tokens, D width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from diptych.config import Config
from diptych.data.batching.batch import Batch
from diptych.data.batching.collate import Prepared
from diptych.data.batching.picture_loader import Item
from diptych.embed.vectors import Vectors
from diptych.errors import ConfigError
from diptych.model.architecture import Model

What = Literal["image", "text", "multimodal"]


class EmbedConfig(Config):
    """What is taken from a model, and how it becomes a vector."""

    what: What = "image"
    """The picture, the text, or both read together."""
    space: Literal["shared", "states"] = "shared"
    """`shared`: vectors that pictures and texts are compared by; `states`: token states before any
    projection, for models and uses that have no such space."""
    pool: Literal["mean", "cls", "max", "none"] = "mean"
    """How several tokens become one vector: their mean, the first, the maximum of each number; none
    keeps the matrix. A model that gives one vector is not pooled."""
    layer: int = -1
    """Of a language model: which hidden state is read; -1 is the last."""
    normalize: bool = True
    """Vectors of length one, so that their products are cosines."""
    dtype: Literal["float32", "float16", "int8"] = "float32"
    """How numbers are stored; int8 has one scale a vector."""
    precision: Literal["float32", "bf16"] = "float32"
    """How the model computes."""
    batch_size: int = Field(default=32, ge=1)
    """Samples computed at once."""


class Embedder:
    """A model and what is taken from it.

    Args:
        source: where the model was loaded from; written down beside its vectors.

    Raises:
        ConfigError: the model has nothing of that kind.

    Parity: tests/conformance/test_lavis_qformer_stage1.py (`image`, `text`, `multimodal` of LAVIS).
    """

    def __init__(self, model: Model, config: EmbedConfig, source: str = ""):
        if config.what not in model.represents:
            raise ConfigError(
                f"a {model.config.name} has no {config.what} vectors",
                where="what",
                fix=f"it has: {', '.join(model.represents)}",
            )
        self.model = model.eval()
        self.config = config
        self.source = source
        self.collator = model.representing(config.what)

    @cached_property
    def fingerprint(self) -> str:
        """Twelve letters and digits that change with anything that decides the numbers."""
        digest = hashlib.sha256(json.dumps(self._settings(), sort_keys=True, default=str).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(str(tensor.dtype).encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
        return digest.hexdigest()[:12]

    def shape(self) -> dict[str, Any]:
        """What decides how much there is to compute: settings and architecture, not weights."""
        return self._settings()

    def in_precision(self, precision: Literal["float32", "bf16"]) -> Embedder:
        """The same model, which computes in that precision."""
        return Embedder(
            self.model, self.config.model_copy(update={"precision": precision}), self.source
        )

    def _settings(self) -> dict[str, Any]:
        """All of the settings but the batch, which decides no more than the last bits."""
        settings = self.config.to_dict()
        settings.pop("batch_size")
        tokenizer = getattr(self.model.tokenizer, "backend_tokenizer", None)
        words = tokenizer.to_str() if tokenizer is not None else repr(self.model.tokenizer)
        return {
            "settings": settings,
            "architecture": _shape(self.model.config.deciding()),
            "modules": [
                _shape(module.config.to_dict())
                for module in self.model.modules()
                if isinstance(module, PreTrainedModel)
            ],
            "preprocessing": self.model.preprocessing.deciding(),
            "tokenizer": hashlib.sha256(words.encode()).hexdigest(),
        }

    def prepare(self, items: Sequence[Item]) -> Prepared:
        """Decode and tokenise; rows that cannot be read are among the rejected."""
        return self.collator(items)

    @torch.inference_mode()
    def embed(self, batch: Batch) -> Vectors:
        """Vectors of a batch's samples, in the order of its `sample_ids`."""
        config, device = self.config, self.model.device
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            states, mask = self.model.represent(
                config.what, batch.to(device), space=config.space, layer=config.layer
            )
        return stored(pooled(states.float(), mask, config), mask, config)


_ELSEWHERE = ("weights", "config", "tokenizer", "revision", "transformers_version", "dtype")
"""Keys that say where a part came from (what it is stands in its module's config)."""


def _shape(values: Any) -> Any:
    """A config without what does not change a number: places, versions, private notes."""
    if isinstance(values, dict):
        kept = {k: v for k, v in values.items() if k not in _ELSEWHERE and str(k)[:1] != "_"}
        return {str(k): _shape(v) for k, v in kept.items()}
    return [_shape(v) for v in values] if isinstance(values, list | tuple) else values


def pooled(states: Tensor, mask: Tensor | None, config: EmbedConfig) -> Tensor:
    """States [n, K, D] (or vectors [n, D]) and mask [n, K] -> [n, D]; matrices with `none`."""
    if states.ndim == 3 and config.pool != "none":
        if config.pool == "cls":
            states = states[:, 0]
        elif mask is None:
            states = states.mean(1) if config.pool == "mean" else states.amax(1)
        else:
            real = mask[..., None].bool()
            if config.pool == "mean":
                states = states.masked_fill(~real, 0.0).sum(1) / real.sum(1)
            else:
                states = states.masked_fill(~real, -torch.inf).amax(1)
    return F.normalize(states, dim=-1) if config.normalize else states


def stored(vectors: Tensor, mask: Tensor | None, config: EmbedConfig) -> Vectors:
    """Vectors float32 -> the numbers that are kept; padding of a matrix becomes zero."""
    lengths = None
    if vectors.ndim == 3:
        counts = vectors.new_full((len(vectors),), vectors.shape[1])
        if mask is not None:
            counts = mask.sum(1)
            vectors = vectors.masked_fill(~mask[..., None].bool(), 0.0)
        lengths = counts.cpu().numpy().astype(np.int64)
    values = vectors.cpu().numpy()
    if config.dtype != "int8":
        return Vectors(values.astype(config.dtype), None, lengths)
    largest = np.abs(values).reshape(len(values), -1).max(1)
    # What is not finite has no eight bits; its scale says so.
    is_finite = np.isfinite(largest)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    scales = np.where(is_finite, scales, np.float32(np.nan))
    values = np.where(is_finite.reshape(-1, *(1,) * (values.ndim - 1)), values, 0)
    whole = np.rint(values / np.nan_to_num(scales, nan=1).reshape(-1, *(1,) * (values.ndim - 1)))
    return Vectors(whole.astype(np.int8), scales, lengths)
