"""Parquet files in a folder: the offline half of a feature store.

`OUT/fingerprint=ABC/what=image/data=NAME/part-000000.parquet`, partitioned as DuckDB, Spark and
pyarrow read it; `_about.json` beside the parts says what they are. Vectors are fixed-size lists,
matrices lists of such. A row that was embedded again stands there twice with two event times;
readers take the newest (`diptych query` does).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diptych.embed.sink import About, Shard, as_text, settled
from diptych.embed.state import remove_leftovers
from diptych.embed.vector_index import Hit, Nearest, chosen, in_order, merged
from diptych.errors import ConfigError, DataError, MissingExtra
from diptych.staging import replacing

ABOUT = "_about.json"
ROWS = 8192
"""Rows read at once."""
_NUMBERS = {2: "vector.list.element", 3: "vector.list.element.list.element"}
"""The column of a vector's, or of a matrix's, numbers."""


def open(target: str, about: About) -> Parquet:
    """`parquet:OUT`.

    Raises:
        MissingExtra: pyarrow is not installed.
    """
    return Parquet(_folder(target), about)


def index(target: str, version: str | None = None) -> Stored:
    """`parquet:OUT` (or its folder) for reading and searching.

    Raises:
        MissingExtra: pyarrow is not installed.
        DataError: there are no vectors, or not of that version.
        ConfigError: there are several versions and none is named.
    """
    folder = _folder(target)
    found: dict[str, list[tuple[Path, About]]] = {}
    for file in sorted(folder.glob(f"fingerprint=*/what=*/data=*/{ABOUT}")):
        about = About.from_dict(json.loads(file.read_text(encoding="utf-8")))
        found.setdefault(about.version, []).append((file.parent, about))
    return Stored(found[chosen(sorted(found), version, str(folder))])


def _folder(target: str) -> Path:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise MissingExtra("Parquet needs pyarrow", fix="pip install 'diptych[parquet]'") from None
    return Path(settled(target).partition(":")[2])


class Parquet:
    """One partition of a folder.

    Raises:
        ConfigError: its files belong to another state folder, which numbers them.
    """

    def __init__(self, folder: Path, about: About):
        self.about = about
        kinds = (f"fingerprint={about.fingerprint}", f"what={about.what}", f"data={about.data}")
        self.folder = folder.joinpath(*kinds)
        if folder.exists() and not folder.is_dir():
            raise ConfigError("this is a file, not a folder", where=str(folder))
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / ABOUT).is_file():
            before = About.from_dict(json.loads((self.folder / ABOUT).read_text(encoding="utf-8")))
            if before.owner != about.owner:
                raise ConfigError(
                    "these vectors belong to a job with another state folder",
                    where=str(self.folder),
                    fix="go on with that state folder, or remove this folder to write it anew",
                )
        remove_leftovers(self.folder)
        with replacing(self.folder / ABOUT) as temporary:
            temporary.write_text(json.dumps(about.to_dict(), indent=2) + "\n", encoding="utf-8")

    def path(self, number: int) -> Path:
        """Where a shard lies."""
        return self.folder / f"part-{number:06d}.parquet"

    def write(self, shard: Shard) -> list[dict[str, Any]]:
        """See `Sink`."""
        import pyarrow.parquet as pq

        with replacing(self.path(shard.number)) as temporary:
            # No statistics of vectors and no dictionary: they do not compress, and take time.
            # Of eight bits there are but 256, which Parquet would keep in four bytes each.
            is_small = shard.vectors.values.dtype == np.int8
            pq.write_table(
                table(shard, self.about), temporary, compression="zstd",
                use_dictionary=[_NUMBERS[shard.vectors.values.ndim]] if is_small else False,
                write_statistics=["id"],
            )  # fmt: skip
        return []

    def intact(self, number: int) -> bool:
        """Whether all of it can be read, as readers will."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self.path(number)) as opened:
                for _ in opened.iter_batches(ROWS):
                    pass
        except (OSError, pa.ArrowException):
            return False
        return True

    def finish(self) -> None:
        """Nothing is left to do."""

    def close(self) -> None:
        """Nothing is open between shards."""


class Stored:
    """The parts of one version, of all its data sets; see `VectorIndex`."""

    approximate = False

    def __init__(self, folders: list[tuple[Path, About]]):
        self.about, self.roots = merged(about for _, about in folders)
        self.files = [file for folder, _ in folders for file in sorted(folder.glob("*.parquet"))]
        self.old = self._superseded()

    def __len__(self) -> int:
        return sum(len(ids) for ids, _, _ in self.rows(vectors=False))

    def _superseded(self) -> dict[str, int]:
        """Event time that counts, of the ids that stand there more than once."""
        seen: dict[str, int] = {}
        if len({about_time(file) for file in self.files}) < 2:
            return seen  # one run wrote everything, so every id is there once
        twice: dict[str, int] = {}
        for ids, times, _ in self._batches(["id", "event_time"]):
            for key, when in zip(ids, times, strict=True):
                if key in seen:
                    seen[key] = twice[key] = max(when, seen[key])
                else:
                    seen[key] = when
        return twice

    def _batches(self, columns: list[str]) -> Iterator[tuple[list[str], list[int], Any]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        for file in self.files:
            try:
                with pq.ParquetFile(file) as opened:
                    names = [c for c in columns if c in opened.schema_arrow.names] or None
                    for batch in opened.iter_batches(ROWS, columns=names):
                        data = pa.repeat(file.parent.name.partition("=")[2], len(batch))
                        batch = batch.append_column("data", data)
                        times = batch["event_time"].cast(pa.int64()).to_pylist()
                        yield batch["id"].to_pylist(), times, batch
            except (OSError, pa.ArrowException) as error:
                raise DataError(
                    f"the file cannot be read: {error}",
                    where=str(file),
                    fix="write it again: the same `diptych embed` command with --verify",
                ) from error

    def rows(self, *, vectors: bool = True) -> Iterator[tuple[list[str], list[int], Any]]:
        """(ids, event times, Arrow batch) of what counts, a few thousand rows at once.

        Raises:
            DataError: a file is damaged.
        """
        import pyarrow as pa

        every = [] if vectors else ["id", "event_time"]
        for ids, times, batch in self._batches(every):
            if self.old:
                kept = [n for n, key in enumerate(ids) if self.old.get(key, times[n]) == times[n]]
                if len(kept) < len(ids):
                    batch = batch.take(pa.array(kept, pa.int64()))
                    ids, times = [ids[n] for n in kept], [times[n] for n in kept]
            yield ids, times, batch

    def search(self, vectors: np.ndarray, k: int, *, exact: bool = False) -> list[list[Hit]]:
        """See `VectorIndex`: every vector is compared; memory does not grow with their number."""
        del exact
        nearest = Nearest(vectors, k)
        for ids, _, batch in self.rows():

            def row(i: int, ids: list[str] = ids, batch: Any = batch) -> Any:
                return ids[i], row_of(batch, i)

            nearest.add(numbers(batch), row)
        return [[Hit(key, score, row) for score, (key, row) in found] for found in nearest.found()]

    def ids(self) -> list[str]:
        """See `VectorIndex`."""
        return [key for ids, _, _ in self.rows(vectors=False) for key in ids]

    def take(self, ids: Sequence[str]) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """See `VectorIndex`: reads all files once."""
        wanted, found = set(ids), {}
        for keys, _, batch in self.rows():
            values = None
            for n, key in enumerate(keys):
                if key in wanted:
                    values = numbers(batch) if values is None else values
                    found[key] = values[n].copy(), row_of(batch, n)
        return in_order(ids, found)

    def some(self, count: int) -> np.ndarray:
        """See `VectorIndex`: the first ones."""
        found, rows = [], 0
        for ids, _, batch in self.rows():
            found.append(numbers(batch))
            rows += len(ids)
            if rows >= count:
                break
        return np.concatenate(found)[:count]

    def close(self) -> None:
        """Nothing stays open."""


def row_of(batch: Any, number: int) -> dict[str, Any]:
    """What stands beside a vector of an Arrow batch."""
    left_out = ("id", "vector", "scale", "event_time")
    names = (name for name in batch.schema.names if name not in left_out)
    return {name: batch[name][number].as_py() for name in names}


def about_time(file: Path) -> Any:
    """The event time of a part's first row, which all its rows share."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as opened:
        first = next(opened.iter_batches(1, columns=["event_time"]), None)
        return None if first is None else first["event_time"][0].value


def numbers(batch: Any) -> np.ndarray:
    """The vectors of an Arrow batch as float32 [n, D].

    Raises:
        ConfigError: they are matrices.
        DataError: a row has no vector; Diptych never writes such a file.
    """
    column = batch["vector"]
    if column.null_count:
        raise DataError(
            f"{column.null_count} rows have no vector",
            where=str(batch["id"].filter(column.is_null())[0]),
            fix="write the file again: the same `diptych embed` command with --verify",
        )
    width = getattr(column.type, "list_size", None)
    if width is None:
        raise ConfigError(
            "these are matrices, not vectors", where="pool", fix="embed with --pool mean"
        )
    values = column.flatten().to_numpy().reshape(-1, width).astype(np.float32)
    if "scale" in batch.schema.names:
        values *= batch["scale"].to_numpy()[:, None]
    return values


def table(shard: Shard, about: About) -> Any:
    """A shard as an Arrow table."""
    import pyarrow as pa

    vectors = shard.vectors
    columns: dict[str, Any] = {
        "id": pa.array(shard.keys, pa.string()),
        "event_time": pa.array(
            np.full(len(shard.keys), shard.event_time_ns, np.int64), pa.timestamp("ns", tz="UTC")
        ),
        "vector": _lists(vectors.values, vectors.lengths),
    }
    if vectors.scales is not None:
        columns["scale"] = pa.array(vectors.scales, pa.float32())
    for name in ("image", "text"):
        columns[name] = pa.array([row.get(name) for row in shard.rows], pa.string())
    for name in about.fields:
        columns[name] = pa.array([as_text(row.get(name)) for row in shard.rows], pa.string())
    return pa.table(columns)


def _lists(values: np.ndarray, lengths: np.ndarray | None) -> Any:
    import pyarrow as pa

    width = values.shape[-1]
    if lengths is None:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width)
    real = np.concatenate([m[:n] for m, n in zip(values, lengths, strict=True)])
    flat = pa.FixedSizeListArray.from_arrays(pa.array(real.reshape(-1)), width)
    return pa.ListArray.from_arrays(np.concatenate([[0], lengths.cumsum()]).astype(np.int32), flat)
