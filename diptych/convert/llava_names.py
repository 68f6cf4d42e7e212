"""Names of weights in the layouts of LLaVA's kind, and the rows that an export adds.

Source: the published llava-hf and OpenGVLab checkpoints, and transformers' conversion_mapping.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from diptych.errors import ConfigError

Names = Literal["diptych", "published", "loaded"]
Keys = tuple[dict[Names, str], ...]
KEYS: Keys = (
    {
        "diptych": "vision_encoder.module.",
        "published": "vision_tower.",
        "loaded": "model.vision_tower.",
    },
    {
        "diptych": "connector.",
        "published": "multi_modal_projector.",
        "loaded": "model.multi_modal_projector.",
    },
    {
        "diptych": "language_model.module.model.",
        "published": "language_model.model.",
        "loaded": "model.language_model.",
    },
    {
        "diptych": "language_model.module.lm_head.",
        "published": "language_model.lm_head.",
        "loaded": "lm_head.",
    },
)
"""Prefixes of weight names: in a Vlm, in published files, and in the class once loaded."""

WRAPPED_TOWERS = ("clip_vision_model", "siglip_vision_model")
"""Towers whose published names have one more level, `vision_tower.vision_model.`."""

PAD_ROWS_TO = 64
"""A grown vocabulary is filled up to a multiple, as in the published checkpoints."""


def renamed(
    keys: Keys, tensors: Mapping[str, Tensor], source: Names, target: Names
) -> dict[str, Tensor]:
    """The same tensors under the names of another column of `keys`.

    Raises:
        ConfigError: a weight that the layout has no place for.
    """
    result = {}
    for name, tensor in tensors.items():
        for rule in keys:
            if name.startswith(rule[source]):
                result[rule[target] + name.removeprefix(rule[source])] = tensor
                break
        else:
            raise ConfigError(
                "the layout has no place for one of the model's weights",
                where=name,
                fix="language models of the Llama kind fit (llama, mistral, qwen2 and alike)",
            )
    return result


def grown(tensors: dict[str, Tensor], image_token: int) -> dict[str, Tensor]:
    """Embeddings and output layer with a row for the image mark.

    New rows are the mean of the others: their logit is the mean of all logits, so that no
    greedy choice ever falls on them, tied or not.
    """
    names = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")
    larger = dict(tensors)
    for name in names:
        rows = tensors.get(name)
        if rows is not None and image_token >= len(rows):
            target = -(-(image_token + 1) // PAD_ROWS_TO) * PAD_ROWS_TO
            larger[name] = torch.cat(
                [rows, rows.mean(0, keepdim=True).repeat(target - len(rows), 1)]
            )
    return larger


def wrapped(name: str) -> str:
    """A published name of a tower that has one more level."""
    return name.replace("vision_tower.", "vision_tower.vision_model.", 1)
