"""Shards: files whose rows carry their pictures with them, tar or Parquet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from diptych.data import files
from diptych.data.parquet import copy_parquet, read_parquet
from diptych.data.rows import Reject
from diptych.data.sample import Sample
from diptych.data.tar import copy_tar, read_tar

_TAR = frozenset({".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"})
_PARQUET = frozenset({".parquet"})


def is_shard(path: str) -> bool:
    """Whether the name is that of a tar or Parquet file."""
    return files.suffix(path) in _TAR | _PARQUET


def read_shard(path: str, format: str | None) -> Iterator[Sample | Reject]:
    """The rows of one shard. What cannot be read of it at all is one Reject."""
    return (read_parquet if files.suffix(path) in _PARQUET else read_tar)(path, format)


def copy_good(paths: Sequence[str], bad: set[int], target: str) -> int:
    """Write one shard with the good rows of `paths`; their number.

    Args:
        bad: positions, over all shards, of the items of `read_shard` that are not good.
    """
    copy = copy_parquet if files.suffix(paths[0]) in _PARQUET else copy_tar
    return copy(paths, bad, target)
