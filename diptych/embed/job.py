"""The batch job: rows of a data set -> vectors in sinks, each exactly once, whatever happens.

    rows -> engine (decode pool -> bounded queue -> model) -> writer -> sinks, then the manifest

The shard is the unit of commit: when every sink has it, one line in the manifest says so. Which
rows are in a shard follows from the data alone, so a job that was killed goes on where the manifest
ends and writes the same bytes. What is held in memory does not grow with the number of rows.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.text import Text

from diptych import parts
from diptych.data.batching.picture_loader import Item
from diptych.data.checking.index import Index
from diptych.data.reading.files import is_url, join
from diptych.data.reading.keys import has_own_id
from diptych.data.sample import Image, Sample
from diptych.data.source import is_pictures_alone
from diptych.embed.embedder import Embedder
from diptych.embed.engine import FOLDER, Pending, Work
from diptych.embed.pace import NUM_ROWS, Pace, fits, usual
from diptych.embed.pace import settled as settled_pace
from diptych.embed.sink import (
    About,
    Sink,
    as_text,
    open_sink,
    refuse_fields,
    settled,
    without_secrets,
)
from diptych.embed.state import Known, State
from diptych.embed.vector_writer import Counts, VectorWriter
from diptych.embed.vectors import eight
from diptych.errors import ConfigError, DataError, Interrupted
from diptych.machine import keep_freed_memory, memory_bytes
from diptych.progress import Progress

PASSED_OVER = "passed over: "
"""How a ledger's notes begin that count what is no row of the data."""


@dataclass(frozen=True)
class JobConfig:
    """How a job runs; none of it changes a vector.

    Attributes:
        to: targets, such as parquet:OUT and redis://localhost/pictures.
        state: folder of manifest and rejects.
        shard_rows: rows of a shard.
        engine: local, or ray for a cluster.
        workers: threads that read rows, or copies of the model on a cluster; None takes what
            there is.
        fields: fields of the rows that are kept beside the vector.
        verify: look whether every written shard is still whole, and write again what is not.
        again: write every row again, also those that are there.
        patience_seconds: how long to wait for a sink that has gone away.
        event_time_ns: when the vectors are true; None is now, the same for the whole run.
        limit: stop after so many rows.
        since: leave out rows from before this moment.
        time_field: field of a row that says when it is from (ISO 8601); None takes the time at
            which its picture's file was last changed.
        pace: how batches are computed, as `pace.settled` found it; None looks for itself.
    """

    to: tuple[str, ...]
    state: Path
    shard_rows: int = 4096
    engine: str = "local"
    workers: int | None = None
    fields: tuple[str, ...] = ()
    verify: bool = False
    again: bool = False
    patience_seconds: float = 300.0
    event_time_ns: int | None = None
    limit: int | None = None
    since: datetime | None = None
    time_field: str | None = None
    pace: Pace | None = None


def embed(
    embedder: Embedder, data: str, config: JobConfig, *, progress: Progress, **index: Any
) -> dict[str, Any]:
    """Embed every row of a data set that is not there yet; returns what `--json` prints.

    Args:
        index: `format` and `images` of the data set.

    Raises:
        ConfigError: the state is another job's, or another process works in it.
        SinkAway: a sink did not come back in time; the same command goes on.
        Interrupted: stopped on request, everything finished is there.
    """
    refuse_fields(config.fields)
    state = State(config.state.expanduser().resolve())
    try:
        return _Job(embedder, data, config, state, progress, index).run()
    finally:
        state.close()


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
        self,
        embedder: Embedder,
        data: str,
        config: JobConfig,
        state: State,
        progress: Progress,
        index: Any,
    ):
        if not config.to:
            raise ConfigError("no place for the vectors is named", fix="--to parquet:OUT")
        self.embedder = embedder
        self.config = config
        self.state = state
        self.progress = progress
        if not index.get("format") and embedder.config.what == "image" and is_pictures_alone(data):
            index = {**index, "format": "pictures"}
        self.index = Index.build(data, state.folder / "data", verify="none", unique=True, **index)
        self.known = Known([])
        notes = self.index.ledger.notes.items()
        self.passed_over = {
            what.removeprefix(PASSED_OVER): count
            for what, count in notes
            if what.startswith(PASSED_OVER)
        }
        self.is_remote = is_url(self.index.root)
        self.about = self._about()
        self.to = sorted(without_secrets(settled(target)) for target in config.to)
        self.counts = Counts()
        self.stopping = threading.Event()

    def _about(self) -> About:
        """What the vectors are; a state folder keeps the name of its first data set."""
        settings = self.embedder.config
        return About(
            self.embedder.fingerprint, settings.what, settings.dtype, self.config.fields,
            data=self.state.run.get("data", self.index.folder.name), root=self.index.root,
            model=self.embedder.source, settings=settings.to_dict(), owner=self.state.id,
        )  # fmt: skip

    # -- the run ----------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        start = time.monotonic()
        mark = {
            "fingerprint": self.about.fingerprint, "to": self.to, "data": self.about.data,
            "root": self.about.root,
        }  # fmt: skip
        # Which rows are computed together decides the last bits of a vector.
        cut = {
            "shard_rows": self.config.shard_rows,
            "batch_size": self.embedder.config.batch_size,
        }
        kept = {} if self.config.again else {"fields": list(self.config.fields)}
        self.state.check({**mark, **kept}, cut)
        if self.embedder.model.device.type == "cpu":
            keep_freed_memory()
        rows = range(min(len(self.index), NUM_ROWS))
        first = [Item(self._named(self.index[row], row), self.index.image_bytes) for row in rows]
        begun = self.state.run if self.state.run.get("finished") is False else {}
        if self.config.engine != "local":  # a cluster's nodes are not measured
            self.pace = usual(self.embedder.config.precision)
        elif (known := begun.get("pace")) is not None and fits(Pace(**known)):
            self.pace = Pace(**known)  # as the run that was stopped computed
        else:
            self.pace = self.config.pace or settled_pace(self.embedder, first)
        self.progress.note(Text(f"pace: {self.pace}"))
        sinks: list[Sink] = []
        try:
            # Before the folder is claimed: a place that cannot be opened claims nothing.
            sinks += (open_sink(target, self.about) for target in self.config.to)
            known = self.state.run
            unfinished = known.get("event_time_ns") if known.get("finished") is False else None
            self.event_time_ns: int = self.config.event_time_ns or unfinished or time.time_ns()
            self.state.claim(
                {**mark, **cut, "fields": list(self.config.fields),
                 "event_time_ns": self.event_time_ns, "pace": asdict(self.pace)}
            )  # fmt: skip
            rejected = self.index.ledger.num_rejected
            self.state.reject_unreadable(self.index.folder / "rejects.jsonl", rejected)
            self._verify(sinks)
            writer = VectorWriter(
                sinks, self.state, self.counts, patience_seconds=self.config.patience_seconds,
                stopping=self.stopping,
            )  # fmt: skip
            with _stop_signals(self.stopping), writer:
                self._compute(writer)
            for sink in sinks:
                sink.finish()
        finally:
            for sink in sinks:
                sink.close()
        self.state.finish()
        self._note()
        return {
            "rows": len(self.index) + rejected,
            **asdict(self.counts),
            "rejected": self.counts.rejected + rejected,
            "not_in_data": 0 if self.config.limit else self.known.num_unasked,
            "passed_over": self.passed_over,
            "seconds": time.monotonic() - start,
            "peak_memory_bytes": memory_bytes(),
            "pace": asdict(self.pace),
            "fingerprint": self.about.fingerprint,
            "to": [without_secrets(target) for target in self.config.to],
            "state": str(self.state.folder),
        }

    def _verify(self, sinks: list[Sink]) -> None:
        """Take off the manifest what is no longer whole.

        Without `verify` only the newest shard is looked at: when it is gone, the place was emptied.
        """

        def is_whole(number: int) -> bool:
            # A shard of rejects alone was written nowhere.
            is_empty = not self.state.manifest[number]["written"]
            return is_empty or all(sink.intact(number) for sink in sinks)

        written = [n for n, line in self.state.manifest.items() if line["written"]]
        if all(map(is_whole, written if self.config.verify else written[-1:])):
            return
        gone = self.state.forget(is_whole)
        self.progress.note(f"{gone} shards are damaged or gone and are written again")

    def _note(self) -> None:
        """Say what nobody would look for."""
        counts = self.counts
        if counts.truncated:
            some = ", ".join(f"{e['id']} ({e['cut_tokens']})" for e in counts.truncated_examples)
            said = (
                f"{counts.truncated:,} texts are longer than the text encoder reads and lost their "
                f"end, {counts.cut_tokens:,} tokens in all; the first: {some}"
            )
            self.progress.note(Text(said))  # ids may hold what looks like markup
        if self.passed_over:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.passed_over.items())
            self.progress.note(Text(f"passed over in the data: {kinds}"))
        if not self.config.limit and (gone := self.known.num_unasked):
            self.progress.note(
                f"{gone:,} rows of earlier runs are not in these data; their vectors stay"
            )

    def _compute(self, writer: VectorWriter) -> None:
        """Let the engine fill the shards and hand them to the writer."""
        total = min(len(self.index), self.config.limit or len(self.index))
        engine = parts.find(FOLDER, self.config.engine)
        start = time.monotonic()
        done = 0
        with self.progress.task("embed", total) as task:

            def step(rows: int) -> None:
                nonlocal done
                done += rows
                now = time.monotonic()
                rate = done / max(now - start, 1e-9)
                task.advance(f"{rate:.1f} rows/s", count=rows)
                left = total - done - self.counts.skipped
                if done:  # without a first row nobody knows how long it takes
                    self.progress.line(
                        f"embed {done:,} of {done + left:,}: {rate:.1f} rows/s, "
                        f"{left / rate / 60:.1f} minutes left",
                        last=not left,
                    )
                writer.check()
                if self.stopping.is_set():
                    raise Interrupted(
                        f"stopped after {self.counts.shards} shards; all of them are there",
                        where=str(self.state.folder),
                        fix="run the same command again to go on",
                    )

            work = Work(
                self.embedder, self._shards(task), self.index.image_bytes, self.config.fields,
                self.config.workers, step, self.pace,
            )  # fmt: skip
            for shard in engine.compute(work):
                if self.is_remote:
                    # What could not be fetched now may be there the next time.
                    failed = {eight(r["id"].encode()) for r in shard.rejects}
                    shard.identities = [i for i in shard.identities if i[0] not in failed]
                writer.put(shard)

    # -- rows -------------------------------------------------------------------------------

    def _shards(self, task: Any) -> Iterator[tuple[Pending, list[Sample]]]:
        """Rows that are not there yet, cut into shards."""
        known = self.known = self.state.known()
        here = self.state.manifest
        free = (n for n in itertools.count() if n not in here and n not in self.state.gone)
        # Shards that are written again come first, so that they get their own rows back.
        numbers = itertools.chain(sorted(self.state.gone), free)
        shard, samples, size = None, [], 0
        for row in range(min(len(self.index), self.config.limit or len(self.index))):
            sample = self._named(self.index[row], row)
            id, identity = eight(sample.id.encode()), self._identity(sample)
            before = known.get(id)
            is_there = before is not None and before[0] == identity and not self.config.again
            if is_there or (self.config.since and self._time(sample) < self.config.since):
                self.counts.skipped += 1
                task.advance()
                continue
            if shard is None:
                shard = Pending(next(numbers), event_time_ns=self.event_time_ns)
                size = len(self.state.gone.get(shard.number, (None, ()))[1])
                size = size or self.config.shard_rows
            if before is not None:
                # Newer than what it replaces, also when a run goes on with its own time.
                shard.event_time_ns = max(shard.event_time_ns, before[1] + 1)
            shard.identities.append((id, identity))
            samples.append(sample)
            if len(samples) == size:
                yield self._ready(shard, samples), samples
                shard, samples = None, []
        if shard is not None:
            yield self._ready(shard, samples), samples

    def _ready(self, shard: Pending, samples: list[Sample]) -> Pending:
        """The shard as it is to be computed.

        Raises:
            ConfigError: none of the first rows has a field that is to be kept.
        """
        for name in self.config.fields if not self.state.manifest else ():
            if shard.number == 0 and not any(name in sample.meta for sample in samples):
                there = sorted({k for s in samples for k in s.meta if not k.startswith("_")})
                raise ConfigError(
                    f"no row has a field '{name}'",
                    where=samples[0].source,
                    fix=f"the rows have: {', '.join(there) or 'no other fields'}",
                )
        if shard.number in self.state.gone:
            # Written again with the very same rows it keeps its time, and so its bytes.
            line, identities = self.state.gone[shard.number]
            if identities.tolist() == [list(i) for i in shard.identities]:
                shard.event_time_ns = line["event_time_ns"]
        return shard

    def _named(self, sample: Sample, row: int) -> Sample:
        """A row without an id of its own is named by its data set too: places may be shared."""
        own = has_own_id(sample)
        return sample if own else replace(sample, id=f"{self.about.data}-{row}")

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
        """Eight bytes that change with the row's id, words, picture and kept fields.

        A picture in a file of its own or in a tar is known by name, size and time; one inside the
        data (Parquet) by its bytes; one at a URL by its name alone.
        """
        parts = [sample.id]
        # A row without kept fields has the identity that earlier versions gave it.
        parts += [f"{name}={as_text(sample.meta.get(name))}" for name in self.config.fields]
        for turn in sample.turns:
            parts += [repr(part) if not isinstance(part, Image) else "" for part in turn.parts]
        for image in sample.images():
            if image.data is not None:
                parts.append(hashlib.sha256(image.data).hexdigest())
                continue
            file = join(self.index.root, image.path)
            if image.span and Path(file).parent == self.index.folder:
                parts.append(hashlib.sha256(self.index.image_bytes(image)).hexdigest())
                continue
            parts.append(f"{image.path} {image.span}")
            if not is_url(file):
                try:
                    found = os.stat(file)
                    parts.append(f"{found.st_size} {found.st_mtime_ns}")
                except OSError:
                    parts.append("missing")
        return eight("\0".join(parts).encode("utf-8", "surrogatepass"))
