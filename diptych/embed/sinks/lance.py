"""LanceDB: vectors in a folder that can be searched without reading all of them.

One table a version, one row an entity: a row that is written again replaces its older self. From
MIN_ROWS on, finishing a run builds an approximate index (IVF-PQ keeps too little of short vectors,
so it is IVF with HNSW and one byte a number); below, every vector is compared anyway.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diptych.embed.sink import About, Shard, as_text, settled
from diptych.embed.vector_index import Hit, chosen, in_order, merged
from diptych.errors import ConfigError, DataError, MissingExtra
from diptych.staging import replacing

MIN_ROWS = 5_000
"""Below so many rows a table has no approximate index."""


def open(target: str, about: About) -> Lance:
    """`lance:OUT`.

    Raises:
        MissingExtra: LanceDB is not installed.
    """
    return Lance(_folder(target), about)


def index(target: str, version: str | None = None) -> Stored:
    """`lance:OUT` for searching.

    Raises:
        MissingExtra: LanceDB is not installed.
        DataError: there are no vectors, or not of that version.
        ConfigError: there are several versions and none is named.
    """
    folder = _folder(target)
    found: dict[str, list[About]] = {}
    for file in sorted(folder.glob("*.about.json")):
        about = About.from_dict(json.loads(file.read_text(encoding="utf-8")))
        found.setdefault(about.version, []).append(about)
    about, roots = merged(found[chosen(sorted(found), version, str(folder))])
    return Stored(folder, about, roots)


def _folder(target: str) -> Path:
    try:
        import lancedb  # noqa: F401
    except ImportError:
        raise MissingExtra("this place needs LanceDB", fix="pip install 'diptych[lance]'") from None
    return Path(settled(target).partition(":")[2])


class Lance:
    """One table of a folder."""

    def __init__(self, folder: Path, about: About):
        import lancedb

        self.about = about
        if folder.exists() and not folder.is_dir():
            raise ConfigError("this is a file, not a folder", where=str(folder))
        folder.mkdir(parents=True, exist_ok=True)
        database: Any = lancedb.connect(folder)
        self.database = database
        self.table: Any = None
        if about.version in database:
            self.table = database.open_table(about.version)
            missing = set(about.fields) - set(self.table.schema.names)
            if missing:
                raise ConfigError(
                    f"the table there keeps no field '{min(missing)}'",
                    where=str(folder),
                    fix="keep the same fields, or write to another folder",
                )
        with replacing(folder / f"{about.version}-{about.data}.about.json") as temporary:
            temporary.write_text(json.dumps(about.to_dict(), indent=2) + "\n", encoding="utf-8")

    def write(self, shard: Shard) -> list[dict[str, Any]]:
        """See `Sink`; of two rows with one id the newer stays."""
        rows = self._rows(shard)
        if self.table is None:
            self.table = self.database.create_table(
                self.about.version, schema=rows.schema, exist_ok=True
            )
        (
            self.table.merge_insert("id")
            .when_matched_update_all(where="source.event_time >= target.event_time")
            .when_not_matched_insert_all()
            .execute(rows)
        )
        return []

    def _rows(self, shard: Shard) -> Any:
        import pyarrow as pa

        vectors = shard.numbers()
        if vectors.ndim != 2:
            raise ConfigError(
                "a matrix a row cannot be searched", where="pool", fix="pool to one vector"
            )
        flat = pa.array(np.ascontiguousarray(vectors).reshape(-1), pa.float32())
        names = ("image", "text", *self.about.fields)
        return pa.table(
            {
                "id": pa.array(shard.keys, pa.string()),
                "event_time": pa.array([shard.event_time_ns] * len(shard.keys), pa.int64()),
                "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
                "data": pa.array([self.about.data] * len(shard.keys), pa.string()),
                **{
                    n: pa.array([as_text(r.get(n)) for r in shard.rows], pa.string()) for n in names
                },
            }
        )

    def intact(self, number: int) -> bool:
        """Whether the table is there; whole versions are committed, so nothing is half-written."""
        return self.table is not None

    def finish(self) -> None:
        """Join small pieces and build the approximate index."""
        if self.table is None:
            return
        self.table.optimize()
        if self.table.count_rows() >= MIN_ROWS:
            from lancedb.index import HnswSq

            self.table.create_index("vector", config=HnswSq(distance_type="cosine"))

    def close(self) -> None:
        """Nothing is open between shards."""


class Stored:
    """A table for searching; see `diptych.embed.vector_index.VectorIndex`."""

    def __init__(self, folder: Path, about: About, roots: dict[str, str]):
        import lancedb

        self.about, self.roots = about, roots
        database: Any = lancedb.connect(folder)
        if about.version not in database:
            raise DataError(
                "there are no vectors", where=str(folder), fix="every row was rejected, it seems"
            )
        self.table = database.open_table(about.version)
        self.approximate = bool(self.table.list_indices())

    def __len__(self) -> int:
        return int(self.table.count_rows())

    def search(self, vectors: np.ndarray, k: int, *, exact: bool = False) -> list[list[Hit]]:
        """See `VectorIndex`."""
        return [self._search(v, k, exact) for v in np.asarray(vectors, np.float32)]

    def _search(self, vector: np.ndarray, k: int, exact: bool) -> list[Hit]:
        query: Any = self.table.search(vector, vector_column_name="vector")
        query = query.distance_type("cosine")
        if exact:
            query = query.bypass_vector_index()
        else:
            # Candidates are compared again in full precision, and enough cells are looked at.
            # Without the first, distances are twice as large as with `exact` (LanceDB 0.40).
            query = query.nprobes(20).refine_factor(4)
        names = [n for n in self.table.schema.names if n not in ("vector", "event_time")]
        found = query.limit(k).select([*names, "_distance"]).to_list()
        return [
            Hit(row["id"], 1 - row["_distance"], {n: row[n] for n in names if n != "id"})
            for row in found
        ]

    def ids(self) -> list[str]:
        """See `VectorIndex`."""
        return self.table.search().select(["id"]).limit(len(self)).to_arrow()["id"].to_pylist()

    def take(self, ids: Sequence[str]) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """See `VectorIndex`: reads the table once."""
        wanted, found = set(ids), {}
        names = [n for n in self.table.schema.names if n not in ("vector", "event_time", "id")]
        for batch in self.table.search().limit(len(self)).to_batches():
            keys, vectors = batch["id"].to_pylist(), None
            for n, key in enumerate(keys):
                if key in wanted:
                    if vectors is None:
                        width = batch["vector"].type.list_size
                        vectors = batch["vector"].flatten().to_numpy().reshape(-1, width)
                    found[key] = vectors[n].copy(), {m: batch[m][n].as_py() for m in names}
        return in_order(ids, found)

    def some(self, count: int) -> np.ndarray:
        """See `VectorIndex`."""
        found = self.table.search().select(["vector"]).limit(count).to_arrow()["vector"]
        width = found.type.list_size
        return found.combine_chunks().flatten().to_numpy().reshape(-1, width)

    def close(self) -> None:
        """Nothing stays open."""
