"""Which pictures are nearly the same, and which rows belong together because of it.

Shapes: N pictures, B bits of a hash.
"""

from __future__ import annotations

import io
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from PIL import Image as Pillow

HASH_SIDE = 16
MAX_BITS = 16
"""Of 256: pictures whose outlines differ in at most so many bits ..."""
MAX_COLOUR = 0.06
"""... and whose 16 x 16 thumbnails differ by at most so much on average (0 to 1)."""


def signature(png: bytes) -> tuple[np.ndarray, np.ndarray]:
    """(outline as +-1 float32 [256], thumbnail float32 [768]) of a picture.

    The outline says of each of 16 x 16 cells whether its right neighbour is brighter.
    Source: difference hash (dHash), after Neal Krawetz.
    """
    shown = Pillow.open(io.BytesIO(png)).convert("RGB")
    grey = np.asarray(shown.convert("L").resize((HASH_SIDE + 1, HASH_SIDE), Pillow.Resampling.BOX))
    bits = (grey[:, 1:].astype(np.int16) > grey[:, :-1].astype(np.int16)).ravel()
    small = np.asarray(shown.resize((HASH_SIDE, HASH_SIDE), Pillow.Resampling.BOX), np.float32)
    return np.where(bits, 1, -1).astype(np.float32), small.ravel() / 255


def near_duplicates(signatures: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of pictures that are nearly the same; compared in blocks."""
    if not signatures:
        return []
    outlines = np.stack([s[0] for s in signatures])
    thumbnails = np.stack([s[1] for s in signatures])
    bits = outlines.shape[1]
    pairs = []
    for start in range(0, len(outlines), 1024):
        block = outlines[start : start + 1024]
        differing = (bits - block @ outlines.T) / 2
        rows, columns = np.nonzero(differing <= MAX_BITS)
        for i, j in zip(rows + start, columns, strict=True):
            if i < j and np.abs(thumbnails[i] - thumbnails[j]).mean() <= MAX_COLOUR:
                pairs.append((int(i), int(j)))
    return pairs


class Groups:
    """Rows that must stay together: joined by keys and by pairs (disjoint sets)."""

    def __init__(self, count: int):
        self._parent = list(range(count))

    def join(self, a: int, b: int) -> None:
        """Rows `a` and `b` belong together."""
        self._parent[max(self._root(a), self._root(b))] = min(self._root(a), self._root(b))

    def join_equal(self, keys: Iterable[Hashable]) -> None:
        """Rows with equal keys belong together; one key a row, None joins nothing."""
        first: dict[Hashable, int] = {}
        for row, key in enumerate(keys):
            if key is not None:
                self.join(first.setdefault(key, row), row)

    def lists(self) -> list[list[int]]:
        """The groups, each in row order, ordered by their first row."""
        found: dict[int, list[int]] = {}
        for row in range(len(self._parent)):
            found.setdefault(self._root(row), []).append(row)
        return list(found.values())

    def _root(self, row: int) -> int:
        while self._parent[row] != row:
            self._parent[row] = self._parent[self._parent[row]]
            row = self._parent[row]
        return row
