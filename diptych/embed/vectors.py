"""Vectors as they are stored.

Shapes: n vectors, K tokens, D width.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from diptych.errors import ZeroVector


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

    def directed(self) -> np.ndarray:
        """Which of them have a direction, as they are stored: bool [n].

        A vector of zeros, or one with NaN or infinity, has no cosine with anything; a matrix counts
        as a whole.
        """
        found = self.numbers().reshape(len(self.values), -1)
        return np.isfinite(found).all(1) & (found != 0).any(1)

    def take(self, rows: np.ndarray) -> Vectors:
        """Some of them, by a mask bool [n] or by number."""
        return Vectors(
            self.values[rows],
            None if self.scales is None else self.scales[rows],
            None if self.lengths is None else self.lengths[rows],
        )


def no_direction(what: str, where: str | None = None) -> ZeroVector:
    """The error for a vector that `Vectors.directed` says has none."""
    return ZeroVector(
        f"{what} has a vector of zeros, or with numbers that are not finite: no cosine is defined",
        where=where,
        fix="look at the row; if there are many, at the model (--precision float32, --dtype)",
    )


def eight(data: bytes) -> int:
    """Eight bytes of a hash, as a number that fits int64."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little") >> 1
