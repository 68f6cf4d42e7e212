"""Losses of one optimizer step, left on their device until all of them are there.

To look at a number on a GPU is to wait for it, and nothing is computed meanwhile. So the losses of
all micro-batches and the gradients' norm are fetched together, once a step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diptych.data.batching.batch import Batch
from diptych.errors import LossNotFinite
from diptych.train import processes


class StepLosses:
    """Named sums of losses of a step's micro-batches."""

    def __init__(self) -> None:
        self._losses: list[dict[str, Tensor]] = []
        self._samples: list[tuple[str, ...]] = []
        self._values: list[dict[str, float]] = []

    def add(self, batch: Batch, losses: Mapping[str, Tensor]) -> None:
        """The losses of a micro-batch, each a scalar tensor."""
        self._losses.append({name: value.detach() for name, value in losses.items()})
        self._samples.append(batch.sample_ids)

    def fetch(self, *others: Tensor) -> list[float]:
        """Fetch the losses, and other scalars (returned) with them."""
        flat = [value for losses in self._losses for value in losses.values()]
        if not flat and not others:
            return []
        numbers = iter(torch.stack([v.float() for v in (*flat, *others)]).tolist())
        self._values = [{name: next(numbers) for name in losses} for losses in self._losses]
        return list(numbers)

    @property
    def total(self) -> float:
        """Sum of all that was fetched, of this process."""
        return sum(sum(values.values()) for values in self._values)

    def sums(self, accelerator: Any) -> dict[str, float]:
        """Sums by name over all micro-batches, and over all processes."""
        sums: dict[str, float] = {}
        for values in self._values:
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value
        names = sorted(sums)
        numbers = torch.tensor([sums[n] for n in names], dtype=torch.float32)
        if accelerator.num_processes > 1 and names:
            numbers = accelerator.reduce(numbers.to(accelerator.device), "sum")
        return dict(zip(names, numbers.tolist(), strict=True))

    def refuse(self, norm: float, where: str) -> None:
        """Name what was not finite in this step; called by every process, and all say the same.

        Raises:
            LossNotFinite: always.
        """
        own = [
            (sum(values.values()), ", ".join(ids[:4]))
            for values, ids in zip(self._values, self._samples, strict=True)
            if not math.isfinite(sum(values.values()))
        ]
        found = [one for several in processes.gathered(own) for one in several]
        what = f"the loss is {found[0][0]}" if found else f"the gradient norm is {norm}"
        samples = found[0][1] if found else ", ".join(i for ids in self._samples for i in ids[:4])
        raise LossNotFinite(
            f"{what} at {where}",
            where=samples,
            fix="lower the learning rate, or look at these samples",
        )
