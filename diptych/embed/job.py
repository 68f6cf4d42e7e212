"""The batch job: rows of a data set -> vectors in sinks, each exactly once, whatever happens.

    rows -> engine (decode pool -> bounded queue -> model) -> writer -> sinks, then the manifest

The shard is the unit of commit: when every sink has it, one line in the manifest says so. Which
rows are in a shard follows from the data alone, so a job that was killed goes on where the manifest
ends and writes the same bytes. What is held in memory does not grow with the number of rows.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from diptych import parts
from diptych.data.files import is_url, replacing
from diptych.data.index import Index
from diptych.data.sample import Image, Sample
from diptych.embed.embedder import Embedder
from diptych.embed.engine import FOLDER, Pending, Work
from diptych.embed.sink import About, Sink, open_sink, without_secrets
from diptych.embed.vectors import eight
from diptych.embed.writer import (
    MANIFEST,
    Counts,
    Writer,
    identities_file,
    read_manifest,
)
from diptych.errors import ConfigError, DataError, Interrupted
from diptych.machine import keep_freed_memory, memory_bytes
from diptych.progress import Progress

log = logging.getLogger(__name__)
RUN = "run.json"


@dataclass(frozen=True)
class JobConfig:
    """How a job runs; none of it changes a vector.

    Attributes:
        to: targets, such as parquet:OUT and redis://localhost/pictures.
        state: folder of manifest and rejects.
        shard_rows: rows of a shard.
        engine: local, or ray for a cluster.
        workers: decode threads, or replicas on a cluster; None takes what there is.
        fields: fields of the rows that are kept beside the vector.
        verify: look whether every written shard is still whole, and write again what is not.
        patience_seconds: how long to wait for a sink that has gone away.
        event_time_ns: when the vectors are true; None is now, the same for the whole run.
        limit: stop after so many rows.
        since: leave out rows from before this moment.
        time_field: field of a row that says when it is from (ISO 8601); None takes the time at
            which its picture's file was last changed.
    """

    to: tuple[str, ...]
    state: Path
    shard_rows: int = 4096
    engine: str = "local"
    workers: int | None = None
    fields: tuple[str, ...] = ()
    verify: bool = False
    patience_seconds: float = 300.0
    event_time_ns: int | None = None
    limit: int | None = None
    since: datetime | None = None
    time_field: str | None = None


def embed(
    embedder: Embedder, data: str, config: JobConfig, *, progress: Progress, **index: Any
) -> dict[str, Any]:
    """Embed every row of a data set that is not there yet; returns what `--json` prints.

    Args:
        index: `format` and `images` of the data set.

    Raises:
        ConfigError: the state is another job's.
        SinkAway: a sink did not come back in time; the same command goes on.
        Interrupted: stopped on request, everything finished is there.
    """
    return _Job(embedder, data, config, progress, index).run()


def aware(moment: datetime) -> datetime:
    """A time without a zone is in UTC."""
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@contextmanager
def _stop_signals(stopping: threading.Event) -> Iterator[None]:
    """SIGINT and SIGTERM ask the job to stop after the batch that it is at."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: Any) -> None:
        if stopping.is_set() and signum == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice
        stopping.set()

    kept = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


class _Job:
    def __init__(
        self, embedder: Embedder, data: str, config: JobConfig, progress: Progress, index: Any
    ):
        if not config.to:
            raise ConfigError("no place for the vectors is named", fix="--to parquet:OUT")
        self.embedder = embedder
        self.config = config
        self.progress = progress
        self.state = config.state
        self.state.mkdir(parents=True, exist_ok=True)
        self.index = Index.build(data, self.state / "data", verify="none", **index)
        self.about = self._about()
        if self.index.ledger.num_rejected:
            with replacing(self.state / "rejects" / "unreadable.jsonl") as temporary:
                shutil.copyfile(self.index.folder / "rejects.jsonl", temporary)
        self.manifest = read_manifest(self.state / MANIFEST)
        self.event_time_ns = self._claim()
        self.counts = Counts()
        self.stopping = threading.Event()

    def _about(self) -> About:
        """What the vectors are; a state folder keeps the name of its first data set."""
        settings = self.embedder.config
        return About(
            self.embedder.fingerprint, settings.what, settings.dtype, self.config.fields,
            data=self._known_run().get("data", self.index.folder.name), root=self.index.root,
            model=self.embedder.source, settings=settings.to_dict(),
        )  # fmt: skip

    def _known_run(self) -> dict[str, Any]:
        file = self.state / RUN
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def _claim(self) -> int:
        """Settle what the state folder is for; the event time of a run that was not finished."""
        mark = {
            "fingerprint": self.about.fingerprint,
            "to": sorted(map(without_secrets, self.config.to)),
            "data": self.about.data,
            "root": self.about.root,
        }
        # Which rows are computed together decides the last bits of a vector.
        cut = {
            "shard_rows": self.config.shard_rows,
            "batch_size": self.embedder.config.batch_size,
        }
        known = self._known_run()
        if known and {k: known.get(k) for k in mark} != mark:
            raise ConfigError(
                "the state folder is another job's (another model, place or folder of pictures, "
                "or other settings)",
                where=str(self.state),
                fix="name another one with --state",
            )
        if known.get("finished") is False and {k: known.get(k) for k in cut} != cut:
            raise ConfigError(
                f"the run that was stopped here had shards of {known.get('shard_rows')} rows and "
                f"batches of {known.get('batch_size')}",
                where=str(self.state),
                fix="finish it with the same settings first",
            )
        when = known.get("event_time_ns") if not known.get("finished", True) else None
        when = self.config.event_time_ns or when or time.time_ns()
        self._mark({**mark, **cut, "event_time_ns": when, "finished": False})
        return when

    def _mark(self, values: dict[str, Any]) -> None:
        with replacing(self.state / RUN) as temporary:
            temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    # -- the run ----------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        start = time.monotonic()
        if self.embedder.model.device.type == "cpu":
            keep_freed_memory()
        sinks = [open_sink(target, self.about) for target in self.config.to]
        try:
            self._check(sinks)
            writer = Writer(
                sinks,
                self.state,
                self.counts,
                event_time_ns=self.event_time_ns,
                patience_seconds=self.config.patience_seconds,
            )
            with _stop_signals(self.stopping), writer:
                self._compute(writer)
            for sink in sinks:
                sink.finish()
        finally:
            for sink in sinks:
                sink.close()
        self._mark({**self._known_run(), "finished": True})
        ledger = self.index.ledger
        return {
            "rows": len(self.index) + ledger.num_rejected,
            **asdict(self.counts),
            "rejected": self.counts.rejected + ledger.num_rejected,
            "seconds": time.monotonic() - start,
            "peak_memory_bytes": memory_bytes(),
            "fingerprint": self.about.fingerprint,
            "to": [without_secrets(target) for target in self.config.to],
            "state": str(self.state),
        }

    def _check(self, sinks: Sequence[Sink]) -> None:
        """Forget shards that a sink no longer has whole; they are computed again."""
        gone = [
            n
            for n in sorted(self.manifest)
            if self.config.verify and not all(sink.intact(n) for sink in sinks)
        ]
        if gone:
            for number in gone:
                del self.manifest[number]
            lines = (json.dumps(self.manifest[n]) + "\n" for n in sorted(self.manifest))
            with replacing(self.state / MANIFEST) as temporary:
                temporary.write_text("".join(lines), encoding="utf-8")
            self.progress.note(f"{len(gone)} shards are damaged or gone and are written again")

    def _compute(self, writer: Writer) -> None:
        """Let the engine fill the shards and hand them to the writer."""
        total = len(self.index) if self.config.limit is None else self.config.limit
        engine = parts.find(FOLDER, self.config.engine)
        with self.progress.task("embed", min(total, len(self.index))) as task:

            def step(rows: int) -> None:
                task.advance(count=rows)
                writer.check()
                if self.stopping.is_set():
                    raise Interrupted(
                        f"stopped after {self.counts.shards} shards; all of them are there",
                        where=str(self.state),
                        fix="run the same command again to go on",
                    )

            work = Work(
                self.embedder, self._shards(task), self.index.image_bytes, self.config.fields,
                self.config.workers, step,
            )  # fmt: skip
            for shard in engine.compute(work):
                writer.put(shard)

    # -- rows -------------------------------------------------------------------------------

    def _shards(self, task: Any) -> Iterator[tuple[Pending, list[Sample]]]:
        """Rows that are not there yet, cut into shards."""
        known = self._known()
        numbers = (n for n in itertools.count() if n not in self.manifest)
        shard, samples = None, []
        for row in range(min(len(self.index), self.config.limit or len(self.index))):
            sample = self.index[row]
            identity = self._identity(sample)
            place = int(np.searchsorted(known, identity))
            is_known = place < len(known) and known[place] == identity
            if is_known or (self.config.since and self._time(sample) < self.config.since):
                self.counts.skipped += 1
                task.advance()
                continue
            shard = shard or Pending(next(numbers))
            shard.identities.append(identity)
            samples.append(sample)
            if len(shard.identities) == self.config.shard_rows:
                yield shard, samples
                shard, samples = None, []
        if shard is not None:
            yield shard, samples

    def _known(self) -> np.ndarray:
        """Identities of the rows that are there, sorted."""
        found = [np.load(identities_file(self.state, n)) for n in self.manifest]
        return np.sort(np.concatenate(found)) if found else np.zeros(0, np.int64)

    def _time(self, sample: Sample) -> datetime:
        """When a row is from.

        Raises:
            DataError: nobody knows.
        """
        if (name := self.config.time_field) is not None:
            value = sample.meta.get(name)
            try:
                return aware(datetime.fromisoformat(str(value)))
            except ValueError:
                raise DataError(
                    f"the field '{name}' holds no time: {value!r}", where=sample.source,
                    fix="give times as ISO 8601, such as 2026-11-21T08:00:00",
                ) from None  # fmt: skip
        for image in sample.images():
            if image.data is None and image.span is None and not is_url(image.path):
                file = os.path.join(self.index.root, image.path)
                if os.path.exists(file):
                    return datetime.fromtimestamp(os.stat(file).st_mtime, UTC)
                return datetime.now(UTC)  # a missing picture is to become a reject
        raise DataError(
            "the row has no picture in a file of its own, so nobody knows when it is from",
            where=sample.source,
            fix="name a field of the rows that says so: --time-field",
        )

    def _identity(self, sample: Sample) -> int:
        """Eight bytes that change with the row's id, its words and its picture's file."""
        parts = [sample.id]
        for turn in sample.turns:
            parts += [repr(part) if not isinstance(part, Image) else "" for part in turn.parts]
        for image in sample.images():
            parts.append(f"{image.path} {image.span}")
            if image.data is not None:
                parts.append(hashlib.sha256(image.data).hexdigest())
            elif image.span is None and not is_url(image.path):
                try:
                    found = os.stat(os.path.join(self.index.root, image.path))
                    parts.append(f"{found.st_size} {found.st_mtime_ns}")
                except OSError:
                    parts.append("missing")
        return eight("\0".join(parts).encode("utf-8", "surrogatepass"))
