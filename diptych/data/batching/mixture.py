"""Mixture: which samples make up step N, as a pure function of the seed.

There is no iterator state: the samples of any step can be named without visiting the steps
before it. That makes resume exact and lets workers prepare steps in any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from diptych.errors import ConfigError


class Mixture:
    """Weighted, seeded order over several data sets.

    Without weights an epoch visits every sample of every set once. With weights, each
    position draws a set by weight and takes the next sample of that set's own shuffled
    order, starting over (newly shuffled) when it ends.

    Args:
        groups: for each data set, one key per sample; samples with equal keys (the same
            picture) stay side by side in the order, so that a step can share their tokens.
        weights: one per data set, or None.
        seed: changes the order.
        shuffle: False visits everything in file order.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[Any]],
        *,
        weights: Sequence[float] | None = None,
        seed: int = 0,
        shuffle: bool = True,
    ):
        self.sizes = [len(g) for g in groups]
        if not self.sizes or not all(self.sizes):
            empty = self.sizes.index(0) if 0 in self.sizes else 0
            raise ConfigError(f"data set number {empty} has no samples to learn from")
        if weights is not None and (len(weights) != len(groups) or min(weights) <= 0):
            raise ConfigError("give every data set a weight above zero, or none at all")
        self._runs = [_runs(g) for g in groups]
        self._weights = weights
        self._seed = seed
        self._shuffle = shuffle
        # Epoch orders are as long as the data; only the newest few are kept.
        self._order = lru_cache(maxsize=2 * len(groups))(self._epoch_order)
        self._draws = lru_cache(maxsize=4)(self._block_of_draws)

    @property
    def epoch_length(self) -> int:
        """Samples in one epoch (with weights: in all sets together)."""
        return sum(self.sizes)

    def at(self, position: int) -> tuple[int, int]:
        """(data set, sample) at a position of the endless sequence."""
        if self._weights is None:
            epoch, offset = divmod(position, self.epoch_length)
            sources, rows = self._unweighted(epoch)
            return int(sources[offset]), int(rows[offset])
        source, count = self._drawn(position)
        epoch, offset = divmod(count, self.sizes[source])
        return source, int(self._order(source, epoch)[offset])

    def step(self, step: int, batch_size: int) -> list[tuple[int, int]]:
        """The samples of one optimizer step."""
        return [self.at(step * batch_size + i) for i in range(batch_size)]

    def _unweighted(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        cached = getattr(self, "_epoch_cache", None)
        if cached is None or cached[0] != epoch:
            sources = np.repeat(np.arange(len(self.sizes)), self.sizes)
            rows = np.concatenate([np.arange(n) for n in self.sizes])
            if self._shuffle:
                lengths = np.concatenate([np.diff(starts) for _, starts in self._runs])
                rows = np.concatenate([rows for rows, _ in self._runs])
                order = _shuffled(lengths, self._rng(epoch, 0))
                sources, rows = sources[order], rows[order]
            self._epoch_cache = cached = (epoch, (sources, rows))
        return cached[1]

    def _epoch_order(self, source: int, epoch: int) -> np.ndarray:
        rows, starts = self._runs[source]
        if not self._shuffle:
            return np.arange(self.sizes[source])
        return rows[_shuffled(np.diff(starts), self._rng(epoch, source + 1))]

    _BLOCK = 4096

    def _drawn(self, position: int) -> tuple[int, int]:
        block, offset = divmod(position, self._BLOCK)
        sources, counts = self._draws(block)
        return int(sources[offset]), int(counts[offset])

    def _block_of_draws(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        assert self._weights is not None
        share = np.asarray(self._weights, dtype=np.float64)
        share = np.cumsum(share / share.sum())
        before = np.zeros(len(self.sizes), dtype=np.int64)
        sources = np.empty(0, dtype=np.int64)
        for number in range(block + 1):
            if number:
                before += np.bincount(sources, minlength=len(self.sizes))
            draws = self._rng(number, 2**20).random(self._BLOCK)
            sources = np.minimum(np.searchsorted(share, draws, side="right"), len(share) - 1)
        counts = np.empty(self._BLOCK, dtype=np.int64)
        for source in range(len(self.sizes)):
            hits = sources == source
            counts[hits] = before[source] + np.arange(hits.sum())
        return sources, counts

    def _rng(self, epoch: int, stream: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox([self._seed, epoch * 2**21 + stream]))

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for cache in ("_order", "_draws", "_epoch_cache"):
            state.pop(cache, None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._order = lru_cache(maxsize=2 * len(self.sizes))(self._epoch_order)
        self._draws = lru_cache(maxsize=4)(self._block_of_draws)


def _runs(keys: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """(rows, starts): rows with equal keys side by side, and where each run starts, and the end."""
    runs: dict[Any, list[int]] = {}
    for row, key in enumerate(keys):
        runs.setdefault(("alone", row) if key is None else ("key", key), []).append(row)
    rows = np.fromiter((r for run in runs.values() for r in run), np.int64, len(keys))
    return rows, np.cumsum([0, *(len(run) for run in runs.values())])


def _shuffled(lengths: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Positions of consecutive runs of these lengths, in a new order of the runs."""
    order = rng.permutation(len(lengths))
    moved = lengths[order]
    starts = (np.cumsum(lengths) - lengths)[order]
    return np.repeat(starts - (np.cumsum(moved) - moved), moved) + np.arange(moved.sum())
