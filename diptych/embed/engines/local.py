"""This machine: threads decode ahead, the model runs in the thread that called."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from diptych.data.collate import Item, Prepared
from diptych.data.sample import Sample
from diptych.embed.engine import Pending, Work, batches

AHEAD = 3
"""Batches that are decoded before the model asks for them, beside one a thread."""


def compute(work: Work) -> Iterator[Pending]:
    """See `diptych.embed.engine`; shards come in order."""
    workers = work.workers or max(2, os.cpu_count() or 1)
    cut = _cut(work)
    waiting: deque[tuple[Pending, list[Sample], bool, Future[Prepared]]] = deque()
    with ThreadPoolExecutor(workers, "decode") as pool:
        while True:
            while len(waiting) < AHEAD + workers and (found := next(cut, None)) is not None:
                items = [Item(sample, work.read) for sample in found[1]]
                waiting.append((*found, pool.submit(work.embedder.prepare, items)))
            if not waiting:
                return
            work.step(0)
            shard, samples, last, prepared = waiting.popleft()
            shard.add(work.embedder, samples, prepared.result(), work.fields)
            work.step(len(samples))
            if last:
                yield shard


def _cut(work: Work) -> Iterator[tuple[Pending, list[Sample], bool]]:
    """(shard, samples of a batch, whether it is the shard's last), in order."""
    for shard, samples in work.shards:
        parts = list(batches(work.embedder, samples))
        for number, part in enumerate(parts):
            yield shard, part, number == len(parts) - 1
