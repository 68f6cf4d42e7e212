"""What learns, at which rate, and proof that nothing else does."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.config import Config
from diptych.errors import ConfigError, FrozenPartMoved, NothingLearns
from diptych.model.adapters import LoraConfig, add_adapters
from diptych.model.architecture import Model


class Learn(Config):
    """How one part learns; a part that a stage does not name is frozen."""

    how: Literal["full", "lora"] = "full"
    """All weights of the part, or LoRA adapters only."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate of the part; null takes the stage's."""
    lora: LoraConfig = LoraConfig()
    """Adapter settings, when `how` is lora."""


@dataclass
class Group:
    """Parameters that learn at one rate.

    Attributes:
        name: the part (or `objective`).
        parameters: name -> parameter.
        learning_rate: peak rate.
        num_total: parameters of the whole part, frozen ones included.
    """

    name: str
    parameters: dict[str, nn.Parameter]
    learning_rate: float
    num_total: int

    @property
    def num_trainable(self) -> int:
        return sum(p.numel() for p in self.parameters.values())


def apply(
    model: Model,
    learn: Mapping[str, Learn],
    learning_rate: float,
    objective: nn.Module | None = None,
) -> list[Group]:
    """Set what learns; returns the parameter groups, frozen parts left out.

    Raises:
        ConfigError: an unknown part, or nothing at all learns.
    """
    parts = model.config.parts
    for name in learn:
        if name not in parts:
            raise ConfigError(
                f"the model has no part '{name}'", where="learn", fix=f"parts: {', '.join(parts)}"
            )
    groups: list[Group] = []
    for name, part in model.named_parts():
        how = learn.get(name)
        if how is not None and how.how == "lora":
            add_adapters(model, name, how.lora)
        chosen: dict[str, nn.Parameter] = {}
        for key, parameter in part.named_parameters():
            learns = how is not None and (how.how == "full" or "lora_" in key)
            parameter.requires_grad_(learns)
            if learns:
                chosen[f"{name}.{key}"] = parameter
        if how is not None:
            total = sum(p.numel() for p in part.parameters())
            groups.append(Group(name, chosen, how.learning_rate or learning_rate, total))
    if objective is not None:
        own = {f"objective.{n}": p for n, p in objective.named_parameters() if p.requires_grad}
        if own:
            total = sum(p.numel() for p in own.values())
            groups.append(Group("objective", own, learning_rate, total))
    if not any(g.parameters for g in groups):
        raise ConfigError("nothing learns in this stage", where="learn", fix="name a part")
    return groups


class Witness:
    """Remembers the weights before the first step and checks them after it.

    Frozen parts are compared bit by bit (by hash, so no second copy of a large model is
    kept); every learning group must have moved.
    """

    def __init__(self, model: Model, groups: list[Group]):
        self._groups = groups
        self._frozen = {
            name: tensor
            for name, tensor in model.state_dict(keep_vars=True).items()
            if not any(name.startswith(f"{g.name}.") for g in groups)
            or (isinstance(tensor, nn.Parameter) and not tensor.requires_grad)
        }
        self._before = {name: _digest(tensor) for name, tensor in self._frozen.items()}
        self._start = {g.name: {n: _digest(p) for n, p in g.parameters.items()} for g in groups}

    def check(self) -> dict[str, int]:
        """Number of tensors that moved, by group.

        Raises:
            FrozenPartMoved: a tensor that should stand still changed.
            NothingLearns: no tensor of a learning group changed.
        """
        for name, tensor in self._frozen.items():
            if _digest(tensor) != self._before[name]:
                raise FrozenPartMoved(f"'{name}' is frozen and changed in the first step")
        moved = {}
        for group in self._groups:
            start = self._start[group.name]
            moved[group.name] = sum(_digest(p) != start[n] for n, p in group.parameters.items())
            if not moved[group.name]:
                raise NothingLearns(
                    f"no weight of '{group.name}' moved in the first step "
                    f"({group.num_trainable:,} should learn)",
                    fix="check the learning rate and that the data reach this part",
                )
        return moved


def _digest(tensor: Tensor) -> bytes:
    flat = tensor.detach().contiguous().view(-1)
    if flat.dtype == torch.bfloat16:
        flat = flat.view(torch.int16)
    return hashlib.blake2b(flat.cpu().numpy().tobytes(), digest_size=16).digest()
