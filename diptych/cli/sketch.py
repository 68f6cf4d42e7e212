"""A recipe's model on the meta device: its shapes and counts without weights or memory.

Sizes stand in place of weights, a number in place of a tokenizer; of a model on a hub no more
than its config is fetched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from diptych.data.text.tokenizer import VOCAB_SIZE
from diptych.errors import ConfigError
from diptych.model import packages, vision_encoder
from diptych.model.architecture import ArchitectureConfig, Model, config_from_dict, written
from diptych.model.query_former import bert_sizes
from diptych.model.text_config import TRAINED_ON_DATA, load_tokenizer
from diptych.model.weights import locate, of_a_model, reading
from diptych.recipe import CHAINED, Recipe, load


def meta_model(recipe: Recipe) -> Model:
    """The recipe's model on the meta device.

    Counts are those of the real model, but for a tokenizer trained on so few texts that it has
    fewer tokens than asked for.

    Raises:
        WeightsNotFound: the config of pretrained weights is neither local nor reachable.
        ConfigError: weights of a model that has no such part.
    """
    config = _sized(recipe.model)
    tokenizer = _tokenizer(config.text_config, recipe.model.text_config)
    with torch.device("meta"), _quiet():
        return config.compose(tokenizer)


def _sized(config: ArchitectureConfig) -> ArchitectureConfig:
    """The config with sizes in place of weights."""
    update = {}
    for name in type(config).model_fields:
        part = getattr(config, name)
        source = getattr(part, "weights", None)
        if source is None:
            continue
        where = f"model.{name}.weights"
        if source.startswith(CHAINED):
            owner = _sized(load(source.removeprefix(CHAINED)).model)
        elif (own := of_a_model(source)) is not None:
            owner = config_from_dict(own[1], where=str(own[0]))
        else:
            update[name] = _of_others(part, source, where)
            continue
        # Stage 1 of BLIP-2 calls query_former what is the connector of stage 2.
        its = getattr(owner, "query_former" if name == "connector" else name, None)
        if its is None:
            raise ConfigError(f"'{source}' is a {owner.name} and has no {name}", where=where)
        update[name] = part.model_copy(update=_of_ours(part, its))
    return config.model_copy(update=update)


def _of_ours(part: Any, its: Any) -> dict[str, Any]:
    """What a part takes over from that of another of our models."""
    taken = {"weights": None, "revision": None, "config": its.config}
    if hasattr(part, "image"):
        taken["image"] = part.image or its.image
    if hasattr(part, "tokenizer"):
        taken["tokenizer"] = part.tokenizer or its.tokenizer
    elif hasattr(its, "cross_attention_every"):
        every = its.cross_attention_every
        taken["config"] = {"cross_attention_frequency": every, **its.config}
    return taken


def _of_others(part: Any, source: str, where: str) -> Any:
    """A part with the sizes of Hugging Face weights."""
    if isinstance(part, vision_encoder.VisionEncoderConfig):
        known, hf_config = vision_encoder.resolve(part)
        return known.model_copy(
            update={"weights": None, "revision": None, "config": written(hf_config)}
        )
    hf_config = _hf_config(source, part.revision, where)
    if hasattr(part, "num_layers") and hf_config.model_type != "blip_2_qformer":
        sizes = bert_sizes(hf_config, part.num_layers, where)
    else:
        sizes = written(hf_config)
    vocab_size = getattr(hf_config, "vocab_size", None)
    if vocab_size is not None:  # a class's own default is not written
        sizes["vocab_size"] = vocab_size
    return part.model_copy(update={"weights": None, "revision": None, "config": sizes})


def _hf_config(source: str, revision: str | None, where: str) -> Any:
    from transformers import AutoConfig

    known = packages.find(source) if revision is None else None
    if known is not None and known.config:
        return vision_encoder.config_from_dict(known.config, where)
    folder = locate(source, revision=revision, described=True)
    with reading(folder, where):
        hf_config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return hf_config.get_text_config()


class _Counted:
    """Stands where a tokenizer would be: it has so many tokens, and encodes nothing."""

    def __init__(self, size: int, trained: bool):
        self._size = size
        self._added: set[str] = set()
        self.pad_token = "[PAD]"
        # One that a run trains knows turns of a conversation, not the frame of a BERT's text.
        self.cls_token = None if trained else "[CLS]"
        self.sep_token = None if trained else "[SEP]"
        self.bos_token_id = self.eos_token_id = self.pad_token_id = size - 1
        self.cls_token_id = self.sep_token_id = size - 1

    def __len__(self) -> int:
        return self._size + len(self._added)

    def get_vocab(self) -> dict[str, int]:
        return dict.fromkeys(self._added, self._size)

    def add_special_tokens(self, tokens: dict[str, str]) -> None:
        self._added |= set(tokens.values())

    def add_tokens(self, tokens: list[str], special_tokens: bool = False) -> None:
        del special_tokens
        self._added |= set(tokens)

    def convert_tokens_to_ids(self, token: str) -> int:
        del token
        return self._size


def _tokenizer(sized: Any, named: Any) -> Any:
    """The tokenizer where it lies here, else its size where that is known."""
    source = sized.tokenizer or named.weights
    size = (sized.config or {}).get("vocab_size")
    if source == TRAINED_ON_DATA:
        return _Counted(size or VOCAB_SIZE, True)
    known = packages.find(source or "")
    if known is not None and known.config:
        size = known.config.get("vocab_size", size)
    if size is None or Path(source).expanduser().is_dir():
        return load_tokenizer(source, "model.tokenizer")
    return _Counted(size, False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    import logging

    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
