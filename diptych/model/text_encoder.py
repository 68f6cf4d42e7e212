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
from diptych.model.language_model import load_tokenizer
from diptych.model.vision_encoder import class_of, config_from_dict
from diptych.model.weights import FromHub, cast, load_pretrained, locate, reading

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
    from transformers import AutoConfig

    revision = None if config.tokenizer else config.revision
    tokenizer = tokenizer or load_tokenizer(config.tokenizer or config.weights, WHERE, revision)
    if config.weights is not None:
        folder = locate(config.weights, revision=config.revision, described=True)
        with reading(folder, f"{WHERE}.weights"):
            hf_config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        hf_config = getattr(hf_config, "text_config", hf_config)
    elif config.config is not None:
        ids = {f"{n}_token_id": getattr(tokenizer, f"{n}_token_id") for n in ("bos", "eos", "pad")}
        values = {"vocab_size": len(tokenizer), **ids, **config.config}
        hf_config = config_from_dict(values, f"{WHERE}.config")
    else:
        raise ConfigError(
            "the text encoder has neither weights nor config",
            where=WHERE,
            fix="set weights to a folder or hub name, or config to a Hugging Face config",
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
    if hf_config.vocab_size < len(tokenizer):
        raise ConfigError(
            f"the tokenizer has {len(tokenizer)} tokens, the model only {hf_config.vocab_size}",
            where=WHERE,
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
