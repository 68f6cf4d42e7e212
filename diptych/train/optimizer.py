"""AdamW, or Muon with AdamW, over the parameter groups of a stage."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from diptych.model.trainable import Group
from diptych.train.stage import Stage

_TABLES = re.compile(r"(embed|lm_head|queries|\bwte|\bwpe|\bshared\.)")
"""Names of embeddings, learned queries and output layers, whose rows stand for one thing each."""


def build(groups: Sequence[Group], stage: Stage) -> torch.optim.Optimizer:
    """One optimizer group per part, split into tables (see `embeddings_rate`) and other matrices
    (both decayed) and the rest (not).

    With `optimizer: muon`, the matrices and convolutions of hidden layers go to Muon.
    """
    muon_groups: list[dict[str, Any]] = []
    adamw_groups: list[dict[str, Any]] = []
    for group in groups:
        hidden, tables, matrices, others = [], [], [], []
        for name, parameter in group.parameters.items():
            if stage.optimizer == "muon" and _is_hidden(group.name, name, parameter):
                hidden.append(parameter)
            elif parameter.ndim >= 2 and _TABLES.search(name):
                tables.append(parameter)
            elif parameter.ndim >= 2:
                matrices.append(parameter)
            else:
                others.append(parameter)
        for target, chosen, decay, share in (
            (muon_groups, hidden, stage.weight_decay, 1.0),
            (adamw_groups, tables, stage.weight_decay, stage.embeddings_rate),
            (adamw_groups, matrices, stage.weight_decay, 1.0),
            (adamw_groups, others, 0.0, 1.0),
        ):
            if chosen:
                rate = share * group.learning_rate
                target.append(
                    {
                        "params": chosen,
                        "lr": rate,
                        "peak": rate,
                        "weight_decay": decay,
                        "name": group.name,
                    }
                )
    adamw = None
    if adamw_groups:
        adamw = torch.optim.AdamW(
            adamw_groups, betas=stage.betas, eps=stage.epsilon, fused=_can_fuse(groups)
        )
    if not muon_groups:
        assert adamw is not None  # a stage learns something
        return adamw
    # With updates of AdamW's size, rates mean the same for both.
    with _as_matrices(muon_groups):
        muon = torch.optim.Muon(muon_groups, adjust_lr_fn="match_rms_adamw")
    return Both(muon, adamw)


def _is_hidden(group: str, name: str, parameter: torch.nn.Parameter) -> bool:
    kind = parameter.ndim == 2 or parameter.ndim >= 4  # matrices and convolutions
    return kind and group != "objective" and not _TABLES.search(name)


@contextmanager
def _as_matrices(groups: Sequence[dict[str, Any]]) -> Iterator[None]:
    """Convolutions [out, in, h, w] stand as matrices [out, in * h * w] inside.

    PyTorch's Muon takes matrices alone; filters flattened so are how Muon was first used on
    convolutions (Jordan et al., kellerjordan.github.io/posts/muon).
    """
    changed = [(p, p.data, p.grad) for g in groups for p in g["params"] if p.ndim > 2]
    for parameter, weights, gradient in changed:
        # In the order they lie in memory (channels last, say), so that no number is copied;
        # Muon's step does not depend on the order of columns.
        order = sorted(range(1, weights.ndim), key=weights.stride, reverse=True)
        _swap(parameter, *(_flat(t, order) for t in (weights, gradient)))
    try:
        yield
    finally:
        for parameter, weights, gradient in changed:
            _swap(parameter, weights, gradient)


def _flat(tensor: Tensor | None, order: Sequence[int]) -> Tensor | None:
    return None if tensor is None else tensor.detach().permute(0, *order).flatten(1)


def _swap(parameter: torch.nn.Parameter, weights: Any, gradient: Tensor | None) -> None:
    parameter.grad = None  # it must always have the shape of the weights
    parameter.data = weights
    parameter.grad = gradient


class Both(torch.optim.Optimizer):
    """Muon on some groups and AdamW on the others, as one optimizer.

    Source: Muon is made for hidden matrices and leaves embeddings, output layers and vectors
    to AdamW (Liu et al., arXiv:2502.16982); both are PyTorch's.
    """

    def __init__(self, muon: torch.optim.Optimizer, adamw: torch.optim.Optimizer | None):
        self._parts = [part for part in (muon, adamw) if part is not None]
        for number, part in enumerate(self._parts):
            for group in part.param_groups:
                group["part"] = number
        super().__init__([g for part in self._parts for g in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of each part, on the groups and the state that this optimizer holds."""
        assert closure is None
        for number, part in enumerate(self._parts):
            # Handed over anew: loading a state replaces the dictionaries.
            part.param_groups = [g for g in self.param_groups if g["part"] == number]
            part.state = self.state
            with _as_matrices(part.param_groups if isinstance(part, torch.optim.Muon) else ()):
                part.step()


def _can_fuse(groups: Sequence[Group]) -> bool:
    dtypes = {p.dtype for g in groups for p in g.parameters.values()}
    return all(d.is_floating_point for d in dtypes)


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set every group's rate to `factor` of its peak; returns the highest."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    return max(group["lr"] for group in optimizer.param_groups)
