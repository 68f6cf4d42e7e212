"""The end of the batch job: shards to their sinks, then one line each in the manifest."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diptych.embed.engine import Pending
from diptych.embed.sink import Shard, Sink
from diptych.embed.state import State
from diptych.embed.vectors import Vectors
from diptych.errors import SinkAway

log = logging.getLogger(__name__)


EXAMPLES = 5
"""Rows named of those whose texts were cut off."""


@dataclass
class Counts:
    """What a run has done so far.

    Attributes:
        truncated: rows written whose text was longer than the model's text encoder reads.
        cut_tokens: tokens that these lost together.
        truncated_examples: the first of them, with the tokens that each lost.
    """

    written: int = 0
    skipped: int = 0
    rejected: int = 0
    shards: int = 0
    truncated: int = 0
    cut_tokens: int = 0
    truncated_examples: list[dict[str, Any]] = field(default_factory=list)


class VectorWriter:
    """Writes shards in a thread of its own; the manifest has each when all sinks have it."""

    def __init__(
        self,
        sinks: Sequence[Sink],
        state: State,
        counts: Counts,
        *,
        patience_seconds: float,
        stopping: threading.Event,
    ):
        self.sinks = sinks
        self.state = state
        self.counts = counts
        self.patience_seconds = patience_seconds
        self.stopping = stopping
        self.queue: queue.Queue[Pending | None] = queue.Queue(maxsize=1)
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name="writer", daemon=True)

    def __enter__(self) -> VectorWriter:
        self.thread.start()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        """Wait for what was handed over, also when something else failed."""
        self._put(None)
        self.thread.join()
        if kind is None:
            self.check()

    def put(self, shard: Pending) -> None:
        """Hand a shard over; waits while the one before is being written."""
        self._put(shard)
        self.check()

    def check(self) -> None:
        """Raise what writing raised."""
        if self.error is not None:
            raise self.error

    def _put(self, shard: Pending | None) -> None:
        while self.thread.is_alive():
            try:
                self.queue.put(shard, timeout=0.2)
                return
            except queue.Full:
                continue

    def _run(self) -> None:
        try:
            while (shard := self.queue.get()) is not None:
                self._write(shard)
        except BaseException as error:  # handed to the thread that waits
            self.error = error

    def _write(self, pending: Pending) -> None:
        refused: dict[str, dict[str, Any]] = {}
        if pending.keys:
            shard = Shard(
                pending.number,
                pending.keys,
                joined(pending.vectors),
                [pending.rows[key] for key in pending.keys],
                pending.event_time_ns,
            )
            for sink in self.sinks:
                refused.update({r["id"]: r for r in self._patiently(sink, shard)})
        rejects = [*pending.rejects, *refused.values()]
        self.state.reject(pending.number, rejects)
        line = {
            "shard": pending.number,
            "written": len(pending.keys) - len(refused),
            "rejected": len(rejects),
            "event_time_ns": pending.event_time_ns,
            **_truncated([t for t in pending.truncated if t[0] not in refused]),
        }
        self.state.add(line, pending.identities)
        self.counts.written += line["written"]
        self.counts.truncated += line["truncated"]
        self.counts.cut_tokens += line["cut_tokens"]
        self.counts.truncated_examples += line["truncated_examples"]
        del self.counts.truncated_examples[EXAMPLES:]
        self.counts.rejected += len(rejects)
        self.counts.shards += 1

    def _patiently(self, sink: Sink, shard: Shard) -> list[dict[str, Any]]:
        """Write; while the sink is away, wait and try again, for as long as patience lasts."""
        deadline = time.monotonic() + self.patience_seconds
        pause = 0.2
        while True:
            try:
                return sink.write(shard)
            except SinkAway as away:
                is_over = time.monotonic() + pause > deadline
                if is_over or self.stopping.is_set():
                    waited = f"given up after {self.patience_seconds:.0f} seconds"
                    raise SinkAway(
                        f"{away.what}; {waited if is_over else 'asked to stop'}",
                        where=away.where,
                        fix="run the same command again when it is back: nothing is lost",
                    ) from away
                log.warning("%s; trying again in %.1f s", away, pause)
                self.stopping.wait(pause)
                pause = min(10.0, pause * 2)


def _truncated(found: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """What a shard's line says of texts that were cut off."""
    return {
        "truncated": len(found),
        "cut_tokens": sum(cut for _, cut in found),
        "truncated_examples": [{"id": key, "cut_tokens": cut} for key, cut in found[:EXAMPLES]],
    }


def joined(vectors: Sequence[Vectors]) -> Vectors:
    """Batches of vectors as one; matrices are padded to the longest."""
    values = [v.values for v in vectors]
    if values[0].ndim == 3:
        longest = max(v.shape[1] for v in values)
        values = [np.pad(v, ((0, 0), (0, longest - v.shape[1]), (0, 0))) for v in values]

    def one(parts: list[np.ndarray | None]) -> np.ndarray | None:
        real = [p for p in parts if p is not None]
        return np.concatenate(real) if real else None

    return Vectors(
        np.concatenate(values),
        one([v.scales for v in vectors]),
        one([v.lengths for v in vectors]),
    )
