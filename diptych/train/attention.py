"""Which attention kernel a step on a CPU takes.

PyTorch's fused attention computes short rows in bfloat16 slowly on CPUs, backwards above all: for
rows of 28 tokens 111 ms where plain matrix products take 29; from some 200 tokens on it is the
other way round (benchmarks/cpu_steps.py). Which of the two runs decides rounding only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel

from diptych.data.batching.batch import Batch

LONGEST = 160
"""Tokens up to which plain products are faster."""


@contextmanager
def chosen(model: Any, batch: Batch, precision: str) -> Iterator[None]:
    """Plain products for short rows in bfloat16 on a CPU, forwards and backwards; else as it is."""
    short = model.device.type == "cpu" and precision == "bf16" and longest(model, batch) <= LONGEST
    if not short:
        yield
        return
    with sdpa_kernel(SDPBackend.MATH):
        yield


def longest(model: Any, batch: Batch) -> int:
    """Tokens of the longest row that any part of the model reads."""
    lengths = [batch.input_ids.shape[1]]
    if batch.encoder_ids is not None:
        lengths.append(batch.encoder_ids.shape[1])
    encoder = model.vision_encoder
    if batch.pixel_values is not None and not encoder.is_convolutional:
        lengths.append(math.prod(encoder.grid) + encoder.num_prefix)
    return max(lengths)
