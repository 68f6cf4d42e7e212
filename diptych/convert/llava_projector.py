"""LLaVA's two-layer projector and Diptych's connectors, both ways.

`mlp` is the projector. `linear` is one by an identity: relu(x) - relu(-x) = x, so
linear_1 = [I; -I; 0], ReLU, linear_2 = [W, -W, 0] is W x, where twice the encoder's width fits
the language model's. Parity: tests/parity/test_hf_llava.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.errors import CheckpointError, ConfigError
from diptych.model.architectures.vlm import Vlm
from diptych.model.connectors.linear import Linear
from diptych.model.connectors.mlp import Mlp

FITS = {
    "pixel_shuffle": "it is InternVL's shape (InternVLForConditionalGeneration)",
    "downsample": "it is VILA's shape, which no server reads as a plain transformers folder",
    "resampler": "it is near BLIP-2's shape (Blip2ForConditionalGeneration)",
}


def to_projector(model: Vlm) -> tuple[dict[str, Tensor], str]:
    """Weights of the two-layer projector that is the connector, and its activation.

    Raises:
        ConfigError: the connector has another shape.
    """
    connector = model.connector
    if isinstance(connector, Mlp):
        return {n: t.detach().cpu() for n, t in connector.state_dict().items()}, "gelu"
    if isinstance(connector, Linear):
        weight = connector.projection.weight.detach().cpu()
        text_dim, vision_dim = weight.shape
        if 2 * vision_dim > text_dim:
            raise ConfigError(
                f"a linear connector fits the layout where twice the encoder's width "
                f"({vision_dim}) is at most the language model's ({text_dim})",
                where="model.connector",
                fix="train with the mlp connector; as it is, only PaliGemma's shape would hold it",
            )
        first, second = torch.zeros(text_dim, vision_dim), torch.zeros(text_dim, text_dim)
        first[:vision_dim] = torch.eye(vision_dim)
        first[vision_dim : 2 * vision_dim] = -torch.eye(vision_dim)
        second[:, :vision_dim] = weight
        second[:, vision_dim : 2 * vision_dim] = -weight
        return {
            "linear_1.weight": first,
            "linear_1.bias": torch.zeros(text_dim),
            "linear_2.weight": second,
            "linear_2.bias": connector.projection.bias.detach().cpu(),
        }, "relu"
    name = model.config.connector.name
    raise ConfigError(
        f"the layout holds the connectors mlp and linear, not {name}",
        where="model.connector",
        fix=f"{FITS.get(name, 'it has no public shape')}; keep the Diptych folder, or train "
        "with the mlp connector",
    )


def to_connector(
    tensors: Mapping[str, Tensor], config: Any, where: Path
) -> tuple[str, dict[str, Tensor]]:
    """Name of the connector that the projector is, and its weights.

    Args:
        tensors: weights under Diptych's names, `connector.linear_1.weight` and so on; a bias
            that is not there is zero.
        config: the folder's LlavaConfig, read from `where`.

    Raises:
        CheckpointError: an activation that no connector has.
    """
    activation = config.projector_hidden_act
    found = {n: t for n, t in tensors.items() if n.startswith("connector.")}
    for layer in ("linear_1", "linear_2"):
        weight = found[f"connector.{layer}.weight"]
        found.setdefault(f"connector.{layer}.bias", weight.new_zeros(len(weight)))
    if activation == "gelu":
        return "mlp", found
    first, second = (found[f"connector.linear_{i}.weight"] for i in (1, 2))
    dim = first.shape[1]
    if activation == "relu" and 2 * dim <= len(first):
        eye = torch.eye(dim, dtype=first.dtype)
        is_identity = (
            torch.equal(first[:dim], eye)
            and torch.equal(first[dim : 2 * dim], -eye)
            and not first[2 * dim :].any()
            and not found["connector.linear_1.bias"].any()
            and torch.equal(second[:, :dim], -second[:, dim : 2 * dim])
        )
        if is_identity:
            return "linear", {
                "connector.projection.weight": second[:, :dim],
                "connector.projection.bias": found["connector.linear_2.bias"],
            }
    raise CheckpointError(
        f"the projector's activation is {activation}; Diptych's mlp has gelu",
        where=f"{where}: projector_hidden_act",
    )
