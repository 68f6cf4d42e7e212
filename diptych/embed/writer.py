"""The end of the batch job: shards to their sinks, then one line each in the manifest."""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diptych.data.files import replacing, sync
from diptych.embed.engine import Pending
from diptych.embed.sink import Shard, Sink
from diptych.embed.vectors import Vectors
from diptych.errors import SinkAway

log = logging.getLogger(__name__)
MANIFEST = "manifest.jsonl"


@dataclass
class Counts:
    """What a run has done so far."""

    written: int = 0
    skipped: int = 0
    rejected: int = 0
    shards: int = 0


class Writer:
    """Writes shards in a thread of its own; the manifest has each when all sinks have it."""

    def __init__(
        self,
        sinks: Sequence[Sink],
        state: Path,
        counts: Counts,
        *,
        event_time_ns: int,
        patience_seconds: float,
    ):
        self.sinks = sinks
        self.state = state
        self.counts = counts
        self.event_time_ns = event_time_ns
        self.patience_seconds = patience_seconds
        self.queue: queue.Queue[Pending | None] = queue.Queue(maxsize=1)
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name="writer", daemon=True)

    def __enter__(self) -> Writer:
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
        if pending.keys:
            shard = Shard(
                pending.number,
                pending.keys,
                joined(pending.vectors),
                [pending.rows[key] for key in pending.keys],
                self.event_time_ns,
            )
            for sink in self.sinks:
                self._patiently(sink, shard)
        rejects = self.state / "rejects" / f"{pending.number:06d}.jsonl"
        if pending.rejects:
            with replacing(rejects) as temporary:
                lines = (json.dumps(r, ensure_ascii=False) + "\n" for r in pending.rejects)
                temporary.write_text("".join(lines), encoding="utf-8")
        else:
            rejects.unlink(missing_ok=True)
        with replacing(identities_file(self.state, pending.number)) as temporary:
            with temporary.open("wb") as file:
                np.save(file, np.array(pending.identities, np.int64))
        line = {
            "shard": pending.number,
            "written": len(pending.keys),
            "rejected": len(pending.rejects),
            "event_time_ns": self.event_time_ns,
        }
        append(self.state / MANIFEST, line)
        self.counts.written += len(pending.keys)
        self.counts.rejected += len(pending.rejects)
        self.counts.shards += 1

    def _patiently(self, sink: Sink, shard: Shard) -> None:
        """Write; while the sink is away, wait and try again, for as long as patience lasts."""
        deadline = time.monotonic() + self.patience_seconds
        pause = 0.2
        while True:
            try:
                sink.write(shard)
                return
            except SinkAway as away:
                if time.monotonic() + pause > deadline:
                    raise SinkAway(
                        f"{away.what}; given up after {self.patience_seconds:.0f} seconds",
                        where=away.where,
                        fix="run the same command again when it is back: nothing is lost",
                    ) from away
                log.warning("%s; trying again in %.1f s", away, pause)
                time.sleep(pause)
                pause = min(10.0, pause * 2)


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


def identities_file(state: Path, number: int) -> Path:
    return state / "identities" / f"{number:06d}.npy"


def append(path: Path, line: dict[str, Any]) -> None:
    """Add a line and flush it to the disk."""
    with path.open("ab") as file:
        file.write(json.dumps(line).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    sync(path.parent)


def read_manifest(path: Path) -> dict[int, dict[str, Any]]:
    """Committed shards by number; a line that a kill cut short counts as not written."""
    if not path.is_file():
        return {}
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with replacing(path) as temporary:
            temporary.write_bytes(whole)
    return {line["shard"]: line for line in map(json.loads, whole.splitlines())}
