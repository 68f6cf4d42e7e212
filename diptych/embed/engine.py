"""Contract of an engine: what turns shards of samples into shards of vectors.

A part in `engines/` has `compute(work) -> Iterator[Pending]`: it takes shards with their samples
and gives each back once, with vectors and rejects, in any order. Which rows make a shard is settled
before and writing comes after, so every engine ends in the same files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from diptych.data.batching.collate import Prepared
from diptych.data.batching.picture_loader import Item
from diptych.data.sample import Image, Sample
from diptych.embed.embedder import Embedder
from diptych.embed.pace import Pace
from diptych.embed.vectors import Vectors, no_direction

FOLDER = "embed.engines"


@dataclass
class Pending:
    """A shard on its way, with what has become of its rows.

    Attributes:
        number: of the shard.
        identities: (hash of the id, of all that makes the row) of its samples, rejected ones too.
        event_time_ns: when its vectors are true.
        rows: what is kept of each row, by key.
        keys: ids of the rows that have a vector.
        vectors: batches of vectors, in the order of the keys.
        rejects: rows without a vector, with reasons.
        truncated: (id, number of tokens cut off) of the texts that were longer than is read.
    """

    number: int
    identities: list[tuple[int, int]] = field(default_factory=list)
    event_time_ns: int = 0
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    vectors: list[Vectors] = field(default_factory=list)
    rejects: list[dict[str, Any]] = field(default_factory=list)
    truncated: list[tuple[str, int]] = field(default_factory=list)

    def add(
        self,
        samples: Sequence[Sample],
        prepared: Prepared,
        vectors: Sequence[Vectors],
        fields: Sequence[str],
    ) -> None:
        """Take in what became of these samples; one `Vectors` for each prepared batch.

        A vector without a direction makes its row a reject: some places would never find it, others
        would find it first.
        """
        by_id = {s.id: s for s in samples}
        for key, error in prepared.rejected:
            where = error.get("where") or by_id[key].source
            self.rejects.append({"id": key, **error, "where": where})
        lost: set[str] = set()
        for batch, found in zip(prepared.batches, vectors, strict=True):
            is_good = found.directed()
            self.vectors.append(found.take(is_good))
            for key, good in zip(batch.sample_ids, is_good.tolist(), strict=True):
                if good:
                    self.keys.append(key)
                    self.rows[key] = kept(by_id[key], fields)
                    continue
                lost.add(key)
                none = no_direction("the row", by_id[key].source)
                self.rejects.append({"id": key, **none.to_dict()})
        self.truncated += [(key, cut) for key, cut in prepared.truncated if key not in lost]


def kept(sample: Sample, fields: Sequence[str]) -> dict[str, Any]:
    """What stands beside a vector: picture, text and the named fields of the row."""
    image = next(sample.images(), None)
    rest = {name: sample.meta.get(name) for name in fields}
    return {"image": image.path if image else None, "text": sample.answer or None, **rest}


@dataclass(frozen=True)
class Work:
    """What an engine gets.

    Attributes:
        shards: shards without vectors, and their samples; read as far as needed.
        read: encoded bytes of a picture; picklable.
        fields: fields of the rows that are kept.
        workers: how many threads read rows, or, on a cluster, processes hold a model; None is for
            the engine to say.
        step: to be called after so many rows; raises when the job is to stop.
        pace: batches side by side and threads of each.
    """

    embedder: Embedder
    shards: Iterator[tuple[Pending, list[Sample]]]
    read: Callable[[Image], bytes]
    fields: tuple[str, ...]
    workers: int | None
    step: Callable[[int], None]
    pace: Pace


def vectors_of(embedder: Embedder, items: Sequence[Item]) -> tuple[Prepared, list[Vectors]]:
    """Decode rows and run the model on them."""
    prepared = embedder.prepare(items)
    return prepared, [embedder.embed(batch) for batch in prepared.batches]


def batches(samples: list[Sample], size: int) -> Iterator[list[Sample]]:
    """A shard's samples as they are computed together; one empty batch when there are none."""
    for start in range(0, max(1, len(samples)), size):
        yield samples[start : start + size]
