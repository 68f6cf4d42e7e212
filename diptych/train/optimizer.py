"""AdamW over the parameter groups of a stage."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from diptych.model.trainable import Group
from diptych.train.stage import Stage


def build(groups: Sequence[Group], stage: Stage) -> torch.optim.AdamW:
    """One optimizer group per part, split into matrices (decayed) and the rest (not)."""
    parameter_groups = []
    for group in groups:
        matrices = [p for p in group.parameters.values() if p.ndim >= 2]
        others = [p for p in group.parameters.values() if p.ndim < 2]
        for chosen, decay in ((matrices, stage.weight_decay), (others, 0.0)):
            if chosen:
                parameter_groups.append(
                    {
                        "params": chosen,
                        "lr": group.learning_rate,
                        "peak": group.learning_rate,
                        "weight_decay": decay,
                        "name": group.name,
                    }
                )
    return torch.optim.AdamW(
        parameter_groups, betas=stage.betas, eps=stage.epsilon, fused=_can_fuse(groups)
    )


def _can_fuse(groups: Sequence[Group]) -> bool:
    dtypes = {p.dtype for g in groups for p in g.parameters.values()}
    return all(d.is_floating_point for d in dtypes)


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set every group's rate to `factor` of its peak; returns the highest."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    return max(group["lr"] for group in optimizer.param_groups)
