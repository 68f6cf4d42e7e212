"""This machine: threads read ahead and keep the order.

On a CPU each thread also computes what it has read (see `threads_each`); beside a GPU the threads
decode and the model runs in the thread that called.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch

from diptych.data.collate import Prepared
from diptych.data.picture_loader import Item
from diptych.data.sample import Sample
from diptych.embed.embedder import Embedder
from diptych.embed.engine import Pending, Work, batches, threads_each, vectors_of
from diptych.embed.vectors import Vectors

AHEAD = 3
"""Batches that are begun before they are asked for, beside one a thread."""


def compute(work: Work) -> Iterator[Pending]:
    """See `diptych.embed.engine`; shards come in order."""
    embedder, cut = work.embedder, _cut(work)
    on_cpu = embedder.model.device.type == "cpu"
    cores = torch.get_num_threads() // threads_each() if on_cpu else max(2, os.cpu_count() or 1)
    workers = work.workers or cores
    task = vectors_of if on_cpu else _decoded
    waiting: deque[
        tuple[Pending, list[Sample], bool, Future[tuple[Prepared, list[Vectors] | None]]]
    ] = deque()
    with _few_threads(on_cpu), ThreadPoolExecutor(workers, "read") as pool:
        while True:
            while len(waiting) < AHEAD + workers and (found := next(cut, None)) is not None:
                items = [Item(sample, work.read) for sample in found[1]]
                waiting.append((*found, pool.submit(task, embedder, items)))
            if not waiting:
                return
            work.step(0)
            shard, samples, last, future = waiting.popleft()
            prepared, vectors = future.result()
            if vectors is None:
                vectors = [embedder.embed(batch) for batch in prepared.batches]
            shard.add(samples, prepared, vectors, work.fields)
            work.step(len(samples))
            if last:
                yield shard


def _decoded(embedder: Embedder, items: list[Item]) -> tuple[Prepared, None]:
    return embedder.prepare(items), None


@contextmanager
def _few_threads(on_cpu: bool) -> Iterator[None]:
    """New threads compute with `threads_each` threads until the job is done."""
    before = torch.get_num_threads()
    if on_cpu:
        torch.set_num_threads(threads_each())
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cut(work: Work) -> Iterator[tuple[Pending, list[Sample], bool]]:
    """(shard, samples of a batch, whether it is the shard's last), in order."""
    for shard, samples in work.shards:
        parts = list(batches(work.embedder, samples))
        for number, part in enumerate(parts):
            yield shard, part, number == len(parts) - 1
