"""Any Hugging Face text model -> one vector for a text.

Shapes: n texts, T tokens of the longest, C width.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.data.text.plain_text import TextTokens
from diptych.errors import ConfigError
from diptych.model import clip_weights
from diptych.model.text_config import resolved
from diptych.model.vision_encoder import class_of
from diptych.model.weights import FromHub, cast, load_pretrained, locate

WHERE = "model.text_encoder"


class TextEncoderConfig(FromHub):
    """Which text model and tokenizer, and how its states become one vector."""

    weights: str | None = None
    """Local folder or hub name of pretrained weights; null builds from `config`."""
    config: dict[str, Any] | None = None
    """Hugging Face config (with `model_type`) for a model that learns from scratch; its
    `vocab_size` follows the tokenizer when left out."""
    tokenizer: str | None = None
    """Local folder or hub name of the tokenizer; null takes the one beside the weights; `data`
    trains a small one on the run's training data, with `vocab_size` of `config` tokens."""
    pool: Literal["model", "mean", "first", "last"] = "model"
    """`model` takes the model's own pooled output (CLIP: at the end token, SigLIP: its head),
    `mean` the average over the text, `first` and `last` one token's state."""
    max_tokens: int | None = Field(default=None, ge=3)
    """Longest text, start and end tokens included; null takes the model's own length."""
    pad_to_max: bool = False
    """Fill every text up to `max_tokens` and let the model read the padding, as SigLIP does."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision in which the weights are kept."""


class TextEncoder(nn.Module):
    """ids and mask int64 [n, T] -> one vector a text [n, C].

    Parity: tests/parity/test_dual_encoder.py.
    """

    module: Any

    def __init__(self, config: TextEncoderConfig, module: nn.Module, tokenizer: Any):
        super().__init__()
        self.config = config
        self.module = module
        self.hf_config: Any = module.config
        self.tokenizer = tokenizer
        own = int(getattr(self.hf_config, "max_position_embeddings", 0) or 512)
        self.context_tokens = min(config.max_tokens or own, own)

    @property
    def dim(self) -> int:
        """Width of the pooled vector."""
        if self.config.pool == "model":
            return int(
                getattr(self.hf_config, "projection_size", None) or self.hf_config.hidden_size
            )
        return int(self.hf_config.hidden_size)

    def tokens(self) -> TextTokens:
        """What turns texts into this encoder's ids."""
        return TextTokens(self.tokenizer, self.context_tokens, self.config.pad_to_max)

    def states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Ids and mask int64 [n, T] -> last hidden states [n, T, D]."""
        return self._run(ids, mask).last_hidden_state

    def _run(self, ids: Tensor, mask: Tensor) -> Any:
        seen = None if self.config.pad_to_max else mask
        return self.module(input_ids=ids, attention_mask=seen)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        output = self._run(ids, mask)
        pool = self.config.pool
        if pool == "model":
            pooled = output.pooler_output
            if pooled is None:
                raise ConfigError(
                    f"a {self.hf_config.model_type} pools nothing itself",
                    where=f"{WHERE}.pool",
                    fix="use mean, first or last",
                )
            return pooled
        states = output.last_hidden_state
        if pool == "first":
            return states[:, 0]
        if pool == "last":
            last = mask.shape[1] - 1 if self.config.pad_to_max else mask.sum(1) - 1
            return states[torch.arange(len(states), device=states.device), last]
        weights = mask[..., None].to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1)


def resolve(config: TextEncoderConfig, tokenizer: Any = None) -> tuple[Any, Any]:
    """(HF config, tokenizer), no weights read.

    Raises:
        ConfigError: neither weights nor config, no tokenizer, or one that is too large.
    """
    hf_config, tokenizer = resolved(
        config, WHERE, "text encoder", tokenizer, ids=("bos", "eos", "pad"), inner="text_config"
    )
    old_way = hf_config.model_type == "clip_text_model" and hf_config.eos_token_id == 2
    if config.pool == "model" and old_way and tokenizer.eos_token_id != len(tokenizer) - 1:
        # transformers takes this number as the mark of OpenAI's first files.
        raise ConfigError(
            "with eos_token_id 2 CLIP pools at the largest token id of a text, which is not this "
            "tokenizer's end",
            where=f"{WHERE}.pool",
            fix="set pool to last, or use a tokenizer whose end token has another id",
        )
    return hf_config, tokenizer


def build(config: TextEncoderConfig, tokenizer: Any = None) -> TextEncoder:
    """The text encoder with its weights, or newly initialised; `tokenizer` instead of its own."""
    hf_config, tokenizer = resolve(config, tokenizer)
    kind = class_of(hf_config)
    if config.weights is None:
        module = kind._from_config(hf_config)
        clip_weights.initialise(module, hf_config.model_type)
    else:
        module = load_pretrained(
            kind,
            locate(config.weights, revision=config.revision),
            f"{WHERE}.weights",
            getattr(torch, config.dtype),
            heads=config.pool == "model",
            config=hf_config,
        )
    return TextEncoder(config, cast(module, getattr(torch, config.dtype)), tokenizer)
