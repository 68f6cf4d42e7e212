"""Whether the online half of a feature store says what the offline half says, and making it so.

Both sides are read in pieces. What is held in memory of an online entity is a hash of its id, its
event time and a hash of its vector and kept fields; of an offline one, once there was more than
one run, its id.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from diptych.embed.sink import Shard, open_sink
from diptych.embed.sinks import parquet, redis
from diptych.embed.vectors import Vectors, eight
from diptych.errors import ConfigError

EXAMPLES = 5


@dataclass
class Comparison:
    """Entities by what is the matter with them.

    Attributes:
        equal: the same event time, vector and kept fields.
        missing: offline only.
        older: the online one is older.
        newer: the online one is newer, so that the offline half lags behind.
        different: the same event time, another vector or other kept fields.
        extra: online only.
        repaired: written online from the offline half.
        examples: some ids of each kind but `equal`.
    """

    equal: int = 0
    missing: int = 0
    older: int = 0
    newer: int = 0
    different: int = 0
    extra: int = 0
    repaired: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def consistent(self) -> bool:
        """Whether both halves say the same, after repairs."""
        wrong = self.missing + self.older + self.newer + self.different + self.extra
        return wrong == self.repaired

    def note(self, kind: str, key: str) -> None:
        setattr(self, kind, getattr(self, kind) + 1)
        if kind != "equal" and len(self.examples.setdefault(kind, [])) < EXAMPLES:
            self.examples[kind].append(key)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "consistent": self.consistent}


def compare(
    offline: str, online: str, *, version: str | None = None, repair: bool = False
) -> Comparison:
    """Compare `parquet:FOLDER` with `redis://HOST/GROUP`, entity by entity.

    Args:
        version: which vectors; needed when the folder has several.
        repair: write online what is missing, older or different. What is newer or extra online is
            left alone: nothing says that it is wrong.

    Raises:
        ConfigError: one of the two is of another kind.
        DataError: the folder has no such vectors, or a file of it is damaged.
        SinkAway: the server does not answer.
    """
    if not offline.startswith("parquet:") or not online.startswith(("redis://", "rediss://")):
        raise ConfigError(
            "a comparison is between Parquet files and Redis",
            fix="parquet:FOLDER redis://HOST/GROUP",
        )
    stored = parquet.index(offline, version)
    about = stored.about
    found = Comparison()
    names = ["image", "text", *about.fields]
    marks, times, digests = _online(online, about.version, names)
    seen = np.zeros(len(marks), bool)
    with_sink = open_sink(online, about)
    assert isinstance(with_sink, redis.Redis), "checked above"
    try:
        for ids, when, batch in stored.rows():
            vectors = parquet.numbers(batch)
            kept = [batch[n].to_pylist() if n in batch.schema.names else [] for n in names]
            wrong: list[int] = []
            for row, (key, event_time) in enumerate(zip(ids, when, strict=True)):
                kind = "missing"
                mark = eight(key.encode())
                place = int(np.searchsorted(marks, mark))
                if place < len(marks) and marks[place] == mark:
                    seen[place] = True
                    kind = _kind(event_time, int(times[place]))
                    said = [column[row] if column else None for column in kept]
                    if kind == "equal" and _digest(vectors[row].tobytes(), said) != digests[place]:
                        kind = "different"
                found.note(kind, key)
                if kind in ("missing", "older", "different"):
                    wrong.append(row)
            if repair and wrong:
                data = batch["data"][0].as_py()
                with_sink.about = replace(about, data=data, root=stored.roots[data])
                _repair(with_sink, ids, when, batch, vectors, wrong)
                found.repaired += len(wrong)
    finally:
        with_sink.close()
        stored.close()
    extra = set(marks[~seen].tolist())
    if extra:
        _name_extra(online, about.version, extra, found)
    return found


def _kind(offline: int, online: int) -> str:
    if online == offline:
        return "equal"
    return "older" if online < offline else "newer"


def _digest(vector: bytes, kept: list[str | None]) -> int:
    return eight(vector + json.dumps(kept).encode())


def _online(url: str, version: str, names: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hash of id (sorted), event time, hash of vector and kept fields of every online entity."""
    client, group = redis.connect(url.partition("?")[0])
    rows: list[np.ndarray] = []
    try:
        for keys, values in redis.entities(
            client, group, version, ["event_time", "vector", *names]
        ):
            there = [
                (eight(key.encode()), int(when), _digest(vector, [_text(value) for value in kept]))
                for key, (when, vector, *kept) in zip(keys, values, strict=True)
                if when is not None and vector is not None
            ]
            rows.append(np.array(there, np.int64).reshape(-1, 3))
    finally:
        client.close()
    table = np.concatenate(rows) if rows else np.zeros((0, 3), np.int64)
    table = table[np.argsort(table[:, 0])]
    return table[:, 0], table[:, 1], table[:, 2]


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "surrogateescape")


def _repair(
    sink: redis.Redis,
    ids: list[str],
    when: list[int],
    batch: Any,
    vectors: np.ndarray,
    wrong: list[int],
) -> None:
    """Write these rows online; the server still refuses what is older than what it has."""
    names = [n for n in ("image", "text", *sink.about.fields) if n in batch.schema.names]
    for event_time in sorted({when[row] for row in wrong}):
        rows = [row for row in wrong if when[row] == event_time]
        kept = [{n: batch[n][row].as_py() for n in names} for row in rows]
        sink.write(Shard(0, [ids[row] for row in rows], Vectors(vectors[rows]), kept, event_time))


def _name_extra(url: str, version: str, marks: set[int], found: Comparison) -> None:
    client, group = redis.connect(url.partition("?")[0])
    try:
        for keys, _ in redis.entities(client, group, version, []):
            for key in keys:
                if eight(key.encode()) in marks:
                    found.note("extra", key)
    finally:
        client.close()
