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
from diptych.model.adapters import LoraConfig
from diptych.model.architecture import Model
from diptych.model.weights import cast


class Learn(Config):
    """How one part learns; a part that a stage does not name is frozen."""

    how: Literal["full", "lora"] = "full"
    """All weights of the part, in float32 while they learn, or LoRA adapters only."""
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

    Parts are held as `hold_precision` says.

    Raises:
        ConfigError: an unknown part, or nothing at all learns.
    """
    parts = model.config.parts
    for name in learn:
        if name not in parts:
            raise ConfigError(
                f"the model has no part '{name}'", where="learn", fix=f"parts: {', '.join(parts)}"
            )
    hold_precision(model, learn)
    groups: list[Group] = []
    for name, part in model.named_parts():
        how = learn.get(name)
        if how is not None and how.how == "lora":
            model.add_adapters(name, how.lora)
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


def hold_precision(model: Model, learn: Mapping[str, Learn]) -> None:
    """Hold parts that learn in full in float32, and all others as their config says, in place.

    A step of 2e-5 is less than half the distance between bfloat16's neighbours of most weights:
    added there it is lost. Autocast still computes in bfloat16 where the stage says so. Adapters
    are float32 whatever their part is.

    Args:
        learn: of the stage; empty after the last one, so that everything goes back.
    """
    for name, part in model.named_parts():
        how = learn.get(name)
        full = how is not None and how.how == "full"
        kept = getattr(getattr(model.config, name, None), "dtype", "float32")
        dtype = torch.float32 if full else getattr(torch, kept)
        own = {n: p for n, p in part.named_parameters() if "lora_" not in n}
        if any(p.dtype != dtype for p in own.values()):
            adapters = {n: p.data for n, p in part.named_parameters() if n not in own}
            cast(part, dtype)
            for n, data in adapters.items():
                part.get_parameter(n).data = data


SAMPLED = 65_536
"""Numbers of each tensor that are looked at one by one: no second copy of a large model is kept."""
LEAST_HELD = 0.5
"""Of the numbers that a gradient reached, the share that must be able to take a step of the peak
rate. In float32 all of them can, at any rate in use; of bfloat16 weights of 0.02 a fifth can at
2e-5, and then most of the part stands still however long it learns. Numbers that no gradient
reached (unseen words, dead units), and those whose step is small because the rate still rises, do
not count against a part."""


@dataclass(frozen=True)
class Moved:
    """How much of a group the first step moved.

    Attributes:
        tensors: tensors in which any number changed.
        share: share of the group's numbers that changed, estimated from up to `SAMPLED` of each
            tensor.
        held: of those that a gradient reached, the share that can take a step of the peak rate.
    """

    tensors: int
    share: float
    held: float


class Witness:
    """Remembers the weights before the first step and checks them after it.

    Frozen parts are compared bit by bit (by hash, so no second copy of a large model is
    kept); every learning group must have moved, and not lose its steps to rounding.

    Attributes:
        frozen: hash of every tensor that must stand still, by its name in the model.
    """

    def __init__(self, model: Model, groups: list[Group]):
        self._groups = groups
        tensors = model.state_dict(keep_vars=True)
        self._frozen = {
            name: tensor
            for name, tensor in tensors.items()
            if not any(name.startswith(f"{g.name}.") for g in groups)
            or (isinstance(tensor, nn.Parameter) and not tensor.requires_grad)
        }
        self.frozen = digests(self._frozen)
        self._start = {g.name: digests(g.parameters) for g in groups}
        self._seen = {
            name: _sample(parameter).clone()
            for g in groups
            for name, parameter in g.parameters.items()
        }
        self._reached: dict[str, Tensor] = {}

    @torch.no_grad()
    def gradients(self) -> None:
        """Remember which numbers a gradient reaches; called before each step until `check`."""
        for group in self._groups:
            for name, parameter in group.parameters.items():
                if parameter.grad is None:
                    reached = torch.zeros_like(self._seen[name], dtype=torch.bool)
                else:
                    reached = _sample(parameter.grad) != 0
                self._reached[name] = self._reached.get(name, False) | reached

    def check(self) -> dict[str, Moved]:
        """How much moved, by group.

        Raises:
            FrozenPartMoved: a tensor that should stand still changed.
            NothingLearns: no tensor of a learning group changed, or most steps are lost in
                rounding.
        """
        for name, tensor in self._frozen.items():
            if digest(tensor) != self.frozen[name]:
                raise FrozenPartMoved(f"'{name}' is frozen and changed in the first step")
        moved = {}
        for group in self._groups:
            start = self._start[group.name]
            tensors = sum(digest(p) != start[n] for n, p in group.parameters.items())
            if not tensors:
                raise NothingLearns(
                    f"no weight of '{group.name}' moved in the first step "
                    f"({group.num_trainable:,} should learn)",
                    fix="check the learning rate and that the data reach this part",
                )
            found = moved[group.name] = Moved(tensors, *self._shares(group))
            if found.held < LEAST_HELD:
                dtypes = {str(p.dtype).removeprefix("torch.") for p in group.parameters.values()}
                raise NothingLearns(
                    f"{1 - found.held:.0%} of the numbers of '{group.name}' lose their steps to "
                    f"rounding: {group.learning_rate:g} is too little for {' and '.join(dtypes)} "
                    f"({found.share:.0%} moved in the first step)",
                    fix="keep weights that learn in float32, or raise the learning rate",
                )
        return moved

    @torch.no_grad()
    def _shares(self, group: Group) -> tuple[float, float]:
        """Of the group's numbers: the share that moved, and of those reached the share held."""
        moved = reached = lost = 0.0
        for name, parameter in group.parameters.items():
            before = self._seen[name]
            if not before.numel():
                continue
            each = parameter.numel() / before.numel()
            changed = _sample(parameter) != before
            touched = self._reached.get(name, torch.ones_like(changed)) | changed
            # AdamW and Muon move a number by about the rate, however small its gradient is.
            half_step = before.abs().float() * torch.finfo(before.dtype).eps / 2
            held = changed | (half_step < group.learning_rate)
            moved += each * int(changed.sum())
            reached += each * int(touched.sum())
            lost += each * int((touched & ~held).sum())
        return moved / max(1, group.num_trainable), 1 - lost / max(1.0, reached)


def _sample(tensor: Tensor) -> Tensor:
    """Up to `SAMPLED` numbers, spread evenly; a copy only where the tensor does not lie flat."""
    flat = tensor.detach().reshape(-1)
    return flat[:: max(1, -(-flat.numel() // SAMPLED))]


def digests(tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
    """Hash of every tensor's bits, by name."""
    return {name: digest(tensor) for name, tensor in tensors.items()}


def digest(tensor: Tensor) -> bytes:
    """Hash of a tensor's bits."""
    flat = tensor.detach().contiguous().view(-1)
    if flat.dtype == torch.bfloat16:
        flat = flat.view(torch.int16)
    return hashlib.blake2b(flat.cpu().numpy().tobytes(), digest_size=16).digest()


def normalises_over_batch(model: nn.Module) -> str | None:
    """Name of a layer in training mode whose output depends on what else is in the batch."""
    for name, layer in model.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training:
            return name
    return None
