"""What every part that reads text settles first: its Hugging Face config and its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diptych.errors import ConfigError, WeightsNotFound
from diptych.model.vision_encoder import config_from_dict
from diptych.model.weights import locate, reading

TRAINED_ON_DATA = "data"
"""As a tokenizer's name: it is trained on the run's own data."""


def load_tokenizer(source: str | None, where: str, revision: str | None = None) -> Any:
    """The tokenizer of a folder or hub name, there at a revision.

    Raises:
        ConfigError: none is named, or it is one that only a run can train.
        WeightsNotFound: there is none that transformers can read.
    """
    from transformers import AutoTokenizer

    if source is None:
        raise ConfigError(
            "a model from scratch needs a tokenizer",
            where=f"{where}.tokenizer",
            fix="name a folder or model whose tokenizer it shall use",
        )
    if source == TRAINED_ON_DATA:
        raise ConfigError(
            "the tokenizer is to be trained on the data, which only a run can do",
            where=f"{where}.tokenizer",
            fix="use `diptych train`, or name a tokenizer",
        )
    try:
        folder = locate(source, revision=revision, described=True)
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsNotFound(
            f"'{source}' holds no tokenizer that transformers can read: {error}",
            where=f"{where}.tokenizer",
        ) from error


def resolved(
    config: Any,
    where: str,
    part: str,
    tokenizer: Any = None,
    *,
    ids: Sequence[str] = ("bos", "eos"),
    inner: str | None = None,
) -> tuple[Any, Any]:
    """(HF config, tokenizer) of a part's config, no weights read.

    Args:
        config: with `weights`, `revision`, `config` and `tokenizer`.
        where, part: what recipes and people call it, for errors.
        tokenizer: takes the place of the one that the config names.
        ids: special tokens whose ids a config from scratch takes from the tokenizer.
        inner: name of the part's own config inside that of a model with more parts.

    Raises:
        ConfigError: neither weights nor config, no tokenizer, or one that is too large.
    """
    from transformers import AutoConfig

    revision = None if config.tokenizer else config.revision
    tokenizer = tokenizer or load_tokenizer(config.tokenizer or config.weights, where, revision)
    if config.weights is not None:
        folder = locate(config.weights, revision=config.revision, described=True)
        with reading(folder, f"{where}.weights"):
            hf_config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        hf_config = getattr(hf_config, inner, hf_config) if inner else hf_config
    elif config.config is not None:
        own = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ids}
        values = {"vocab_size": len(tokenizer), **own, **config.config}
        hf_config = config_from_dict(values, f"{where}.config")
    else:
        raise ConfigError(
            f"the {part} has neither weights nor config",
            where=where,
            fix="set weights to a folder or hub name, or config to a Hugging Face config",
        )
    if hf_config.vocab_size < len(tokenizer):
        raise ConfigError(
            f"the tokenizer has {len(tokenizer)} tokens, the model only {hf_config.vocab_size}",
            where=where,
        )
    return hf_config, tokenizer
