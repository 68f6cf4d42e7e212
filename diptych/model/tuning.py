"""What makes steps quick on a CPU, behind one object; on any other device it does nothing.

- Freed memory is kept for the next step instead of being handed back to the system
  (`machine.KeptMemory`).
- Numbers of rows are rounded up to sizes that come up again (`machine.common_size`): a matrix
  product is compiled for its shape.
- PyTorch's fused attention computes short rows in bfloat16 slowly, backwards above all: for rows
  of 28 tokens 111 ms where plain matrix products take 29; from some 200 tokens on it is the other
  way round. Which of the two runs decides rounding only.

Figures: benchmarks/cpu_steps.py.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from diptych.data.batching.batch import Batch
from diptych.machine import KeptMemory, common_size

LONGEST = 160
"""Tokens up to which plain products are faster."""


class Tuning:
    """For devices that need none."""

    def begin(self) -> None:
        """Before a loop of steps."""

    def after_step(self) -> None:
        """After each of them."""

    def size(self, size: int) -> int:
        """How many rows to compute where `size` are needed."""
        return size

    def attention(self, model: Any, batch: Batch, precision: str) -> AbstractContextManager[Any]:
        """The attention kernel of a step, forwards and backwards."""
        return nullcontext()


class CpuTuning(Tuning):
    """For CPUs."""

    def __init__(self) -> None:
        self._memory: KeptMemory | None = None

    def begin(self) -> None:
        self._memory = KeptMemory()

    def after_step(self) -> None:
        if self._memory is not None:
            self._memory.after_step()

    def size(self, size: int) -> int:
        return common_size(size)

    def attention(self, model: Any, batch: Batch, precision: str) -> AbstractContextManager[Any]:
        short = precision == "bf16" and longest(model, batch) <= LONGEST
        return sdpa_kernel(SDPBackend.MATH) if short else nullcontext()


def tuned(device: torch.device | str) -> Tuning:
    """What suits a device."""
    return CpuTuning() if torch.device(device).type == "cpu" else Tuning()


def longest(model: Any, batch: Batch) -> int:
    """Tokens of the longest row that any part of the model reads."""
    lengths = [batch.input_ids.shape[1]]
    if batch.encoder_ids is not None:
        lengths.append(batch.encoder_ids.shape[1])
    encoder = model.vision_encoder
    if batch.pixel_values is not None and not encoder.is_convolutional:
        lengths.append(math.prod(encoder.grid) + encoder.num_prefix)
    return max(lengths)
