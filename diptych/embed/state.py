"""A job's folder: what the job is for, which shards are there, and which rows they hold.

    id                  names the folder to sinks that number their files by shard
    run.json            what the folder is for, and the run that is going on
    manifest.jsonl      one line a shard that every sink has, in the order of writing
    identities/N.npy    int64 [n, 2]: hash of each row's id, and of its id, words and picture
    rejects/            rows without a vector, with reasons

One process at a time works in it. Of a row that was written several times the last one counts.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from diptych.errors import ConfigError, DataError
from diptych.staging import flush, replacing

RUN = "run.json"
MANIFEST = "manifest.jsonl"


class State:
    """The folder, locked until `close`.

    Attributes:
        id: of the folder; a sink that numbers its files by shard belongs to one folder.
        manifest: lines of the shards that are there, by number, in the order of writing.
        gone: shards that were there and are to be written again: line and identities.

    Raises:
        ConfigError: another process works in it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / "lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise ConfigError(
                "another process works in this state folder",
                where=str(folder),
                fix="wait until it is done",
            ) from None
        self.id = self._own_id()
        self.run = self._read_run()
        self.manifest = read_manifest(folder / MANIFEST)
        self.gone: dict[int, tuple[dict[str, Any], np.ndarray]] = {}
        remove_leftovers(folder)

    def close(self) -> None:
        self._lock.release()

    # -- what the folder is for --------------------------------------------------------------

    def _own_id(self) -> str:
        """Made once, before anything that a sink writes could name it."""
        file = self.folder / "id"
        if not file.is_file():
            with replacing(file) as temporary:
                temporary.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
        return file.read_text(encoding="utf-8")

    def _read_run(self) -> dict[str, Any]:
        file = self.folder / RUN
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def check(self, mark: dict[str, Any], cut: dict[str, Any]) -> None:
        """Hold a job to what the folder is for.

        Args:
            mark: what the folder is for, for ever.
            cut: what a run that was stopped must be finished with.

        Raises:
            ConfigError: it is for something else.
        """
        known = self.run
        other = [k for k, v in mark.items() if known and known.get(k) != v]
        if other and not any(line["written"] for line in self.manifest.values()):
            self._forget_all()
            return
        if other == ["fields"]:
            raise ConfigError(
                f"this job keeps the fields {', '.join(known['fields']) or '(none)'}",
                where=str(self.folder),
                fix="name the same ones, or add --again, which writes every row anew",
            )
        if other == ["to"]:
            raise ConfigError(
                f"this job's vectors go to {' and '.join(known['to'])}",
                where=str(self.folder),
                fix="write into another place with a state of its own (--state), and name that "
                "place alone; or fill Redis from Parquet with `diptych store check --repair`",
            )
        if other:
            raise ConfigError(
                "the state folder is another job's (another model, folder of pictures, or other "
                "settings)",
                where=str(self.folder),
                fix="name another one with --state",
            )
        if known.get("finished") is False and {k: known.get(k) for k in cut} != cut:
            raise ConfigError(
                f"the run that was stopped here had shards of {known.get('shard_rows')} rows and "
                f"batches of {known.get('batch_size')}",
                where=str(self.folder),
                fix="finish it with the same settings first",
            )

    def _forget_all(self) -> None:
        """Nothing was written, so whatever the folder was for binds nobody."""
        for name in (RUN, MANIFEST):
            (self.folder / name).unlink(missing_ok=True)
        for name in ("identities", "rejects"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        self.run, self.manifest = {}, {}

    def claim(self, values: dict[str, Any]) -> None:
        """Note what the folder is for and that a run has begun."""
        self.run = {**values, "finished": False}
        self._write_run()

    def finish(self) -> None:
        """Note that the run is done."""
        self.run["finished"] = True
        self._write_run()

    def _write_run(self) -> None:
        with replacing(self.folder / RUN) as temporary:
            temporary.write_text(json.dumps(self.run, indent=2) + "\n", encoding="utf-8")

    # -- shards ------------------------------------------------------------------------------

    def forget(self, is_whole: Callable[[int], bool]) -> int:
        """Take shards that are not whole off the manifest, so that their rows are made again."""
        for number in [n for n in self.manifest if not is_whole(n)]:
            self.gone[number] = (self.manifest.pop(number), self.identities(number))
        if self.gone:
            with replacing(self.folder / MANIFEST) as temporary:
                lines = (json.dumps(line) + "\n" for line in self.manifest.values())
                temporary.write_text("".join(lines), encoding="utf-8")
        return len(self.gone)

    def add(self, line: dict[str, Any], identities: list[tuple[int, int]]) -> None:
        """A shard is there for good."""
        with replacing(self._identities_file(line["shard"])) as temporary:
            with temporary.open("wb") as file:
                np.save(file, np.array(identities, np.int64).reshape(-1, 2))
        append(self.folder / MANIFEST, line)
        self.manifest[line["shard"]] = line

    def identities(self, number: int) -> np.ndarray:
        """int64 [n, 2] of a shard.

        Raises:
            DataError: the file is damaged.
        """
        file = self._identities_file(number)
        try:
            return np.load(file).reshape(-1, 2)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(
                f"the job's record of its rows is damaged: {error}",
                where=str(file),
                fix="remove the state folder and what it wrote, and embed again",
            ) from error

    def _identities_file(self, number: int) -> Path:
        return self.folder / "identities" / f"{number:06d}.npy"

    def known(self) -> Known:
        """The rows that are there."""
        return Known([(self.identities(n), line) for n, line in self.manifest.items()])

    # -- rows without a vector ---------------------------------------------------------------

    def reject(self, number: int, rejects: list[dict[str, Any]]) -> None:
        """Keep a shard's rejects; none removes the file that an earlier attempt left."""
        file = self.folder / "rejects" / f"{number:06d}.jsonl"
        if not rejects:
            file.unlink(missing_ok=True)
            return
        with replacing(file) as temporary:
            lines = (json.dumps(r, ensure_ascii=False) + "\n" for r in rejects)
            temporary.write_text("".join(lines), encoding="utf-8")

    def reject_unreadable(self, source: Path, count: int) -> None:
        """Keep the rows that the index could not read."""
        file = self.folder / "rejects" / "unreadable.jsonl"
        if not count:
            file.unlink(missing_ok=True)
            return
        with replacing(file) as temporary:
            shutil.copyfile(source, temporary)


class Known:
    """Rows that are there: of each id what it was when it was written last, and when that was.

    25 bytes a row in memory.
    """

    def __init__(self, shards: list[tuple[np.ndarray, dict[str, Any]]]):
        rows = np.concatenate([found for found, _ in shards] or [np.zeros((0, 2), np.int64)])
        times = np.repeat(
            np.array([line["event_time_ns"] for _, line in shards], np.int64),
            [len(found) for found, _ in shards],
        )
        order = np.argsort(rows[:, 0], kind="stable")
        ids = rows[order, 0]
        is_last = np.ones(len(ids), bool)
        is_last[:-1] = ids[1:] != ids[:-1]
        self.ids = ids[is_last]
        self.identities = rows[order, 1][is_last]
        self.times = times[order][is_last]
        self._asked = np.zeros(len(self.ids), bool)

    def get(self, id: int) -> tuple[int, int] | None:
        """(identity, event time) of a row by the hash of its id."""
        place = int(np.searchsorted(self.ids, id))
        if place < len(self.ids) and self.ids[place] == id:
            self._asked[place] = True
            return int(self.identities[place]), int(self.times[place])
        return None

    @property
    def num_unasked(self) -> int:
        """Rows that nobody asked for: when all data were visited, those that are not in them."""
        return int((~self._asked).sum())


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left half-written here; nobody else may be writing."""
    for left in folder.glob(".*.partial"):
        left.unlink(missing_ok=True)
    for inner in ("identities", "rejects"):
        for left in (folder / inner).glob(".*.partial"):
            left.unlink(missing_ok=True)


def append(path: Path, line: dict[str, Any]) -> None:
    """Add a line and flush it to the disk."""
    with path.open("ab") as file:
        file.write(json.dumps(line).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    flush(path.parent)


def read_manifest(path: Path) -> dict[int, dict[str, Any]]:
    """Committed shards by number, as written; a line that a kill cut short does not count."""
    if not path.is_file():
        return {}
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with replacing(path) as temporary:
            temporary.write_bytes(whole)
    found: dict[int, dict[str, Any]] = {}
    for line in map(json.loads, whole.splitlines()):
        found.pop(line["shard"], None)  # written again: it counts from here
        found[line["shard"]] = line
    return found
