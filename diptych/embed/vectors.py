"""Vectors as they are stored.

Shapes: n vectors, K tokens, D width.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Vectors:
    """Vectors as they are stored.

    Attributes:
        values: [n, D], or [n, K, D] without pooling; float32, float16 or int8.
        scales: float32 [n] for int8 (value * scale is the number), else None.
        lengths: int64 [n], tokens of each matrix that are real; None with pooling.
    """

    values: np.ndarray
    scales: np.ndarray | None = None
    lengths: np.ndarray | None = None

    def numbers(self) -> np.ndarray:
        """What is stored, as float32."""
        found = self.values.astype(np.float32)
        if self.scales is not None:
            found *= self.scales.reshape(-1, *(1,) * (found.ndim - 1))
        return found


def eight(data: bytes) -> int:
    """Eight bytes of a hash, as a number that fits int64."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little") >> 1
