"""This machine: threads read ahead and keep the order.

On a CPU batches are computed side by side as the job's pace says: with one thread each, the thread
that read them computes them, too. Beside a GPU the threads decode and the model runs in the thread
that called.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from diptych.data.batching.collate import Prepared
from diptych.data.batching.picture_loader import Item
from diptych.data.sample import Sample
from diptych.embed.embedder import Embedder
from diptych.embed.engine import Pending, Work, batches, vectors_of
from diptych.embed.pace import using
from diptych.embed.vectors import Vectors

AHEAD = 3
"""Batches that are begun before they are asked for, beside one a thread."""

Computed = tuple[Prepared, list[Vectors]]


def compute(work: Work) -> Iterator[Pending]:
    """See `diptych.embed.engine`; shards come in order."""
    embedder, cut, pace = work.embedder, _cut(work), work.pace
    on_cpu = embedder.model.device.type == "cpu"
    cores = torch.get_num_threads() if on_cpu else max(2, os.cpu_count() or 1)
    in_reader = on_cpu and pace.threads == 1 and work.workers in (None, pace.lanes)
    readers = pace.lanes if in_reader else work.workers or cores
    lanes = pace.lanes if on_cpu and not in_reader and pace.lanes > 1 else 0
    waiting: deque[tuple[Pending, list[Sample], bool, Future[Any], Future[Computed] | None]]
    waiting = deque()
    with (
        using(pace.threads if on_cpu else torch.get_num_threads()),
        ThreadPoolExecutor(readers, "read") as pool,
        ThreadPoolExecutor(max(1, lanes), "compute") as computing,
    ):
        while True:
            while len(waiting) < AHEAD + readers and (found := next(cut, None)) is not None:
                items = [Item(sample, work.read) for sample in found[1]]
                task: Any = vectors_of if in_reader else _decoded
                read = pool.submit(task, embedder, items)
                chained = computing.submit(_computed, embedder, read) if lanes else None
                waiting.append((*found, read, chained))
            if not waiting:
                return
            work.step(0)
            shard, samples, last, read, later = waiting.popleft()
            done: Computed
            if in_reader:
                done = read.result()
            else:
                done = later.result() if later else _computed(embedder, read)
            shard.add(samples, *done, work.fields)
            work.step(len(samples))
            if last:
                yield shard


def _decoded(embedder: Embedder, items: list[Item]) -> Prepared:
    return embedder.prepare(items)


def _computed(embedder: Embedder, read: Future[Prepared]) -> Computed:
    prepared = read.result()
    return prepared, [embedder.embed(batch) for batch in prepared.batches]


def _cut(work: Work) -> Iterator[tuple[Pending, list[Sample], bool]]:
    """(shard, samples of a batch, whether it is the shard's last), in order."""
    size = work.embedder.config.batch_size
    if work.embedder.model.device.type == "cpu":
        size = work.pace.part(size)
    for shard, samples in work.shards:
        parts = list(batches(samples, size))
        for number, part in enumerate(parts):
            yield shard, part, number == len(parts) - 1
