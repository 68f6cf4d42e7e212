"""Parquet files in a folder: the offline half of a feature store.

`OUT/fingerprint=ABC/what=image/part-000000.parquet`, partitioned as DuckDB, Spark and pyarrow read
it. Vectors are fixed-size lists, matrices lists of such.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from diptych.data.files import replacing
from diptych.embed.sink import About, Shard
from diptych.errors import ConfigError, MissingExtra


def open(target: str, about: About) -> Parquet:
    """`parquet:OUT`.

    Raises:
        MissingExtra: pyarrow is not installed.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise MissingExtra(
            "writing Parquet needs pyarrow", fix="pip install 'diptych[parquet]'"
        ) from None
    return Parquet(Path(target.partition(":")[2]).expanduser(), about)


class Parquet:
    """One partition of a folder."""

    def __init__(self, folder: Path, about: About):
        self.about = about
        self.folder = folder / f"fingerprint={about.fingerprint}" / f"what={about.what}"
        if folder.exists() and not folder.is_dir():
            raise ConfigError("this is a file, not a folder", where=str(folder))
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, number: int) -> Path:
        """Where a shard lies."""
        return self.folder / f"part-{number:06d}.parquet"

    def write(self, shard: Shard) -> None:
        """See `Sink`."""
        import pyarrow.parquet as pq

        with replacing(self.path(shard.number)) as temporary:
            # No statistics of vectors and no dictionary: they do not compress, and take time.
            pq.write_table(
                table(shard, self.about), temporary, compression="zstd", use_dictionary=False,
                write_statistics=["id"],
            )  # fmt: skip

    def intact(self, number: int) -> bool:
        """Whether its end can be read, which a truncated file has not."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            pq.read_metadata(self.path(number))
        except (OSError, pa.ArrowException):
            return False
        return True

    def close(self) -> None:
        """Nothing is open between shards."""


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
        columns[name] = pa.array([_plain(row.get(name)) for row in shard.rows], pa.string())
    return pa.table(columns)


def _lists(values: np.ndarray, lengths: np.ndarray | None) -> Any:
    import pyarrow as pa

    width = values.shape[-1]
    if lengths is None:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width)
    real = np.concatenate([m[:n] for m, n in zip(values, lengths, strict=True)])
    flat = pa.FixedSizeListArray.from_arrays(pa.array(real.reshape(-1)), width)
    return pa.ListArray.from_arrays(np.concatenate([[0], lengths.cumsum()]).astype(np.int32), flat)


def _plain(value: Any) -> str | None:
    """A kept field as text; what is not text as JSON."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
