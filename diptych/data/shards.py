"""Shards: files whose rows carry their pictures with them, tar or Parquet."""

from __future__ import annotations

from collections import Counter
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


def read_shard(
    path: str, format: str | None, passed_over: Counter[str] | None = None
) -> Iterator[Sample | Reject]:
    """The rows of one shard. What cannot be read of it at all is one Reject.

    Args:
        passed_over: counts, by kind, what is neither read nor rejected: members of a tar and
            columns of Parquet that are neither picture nor text.
    """
    passed_over = Counter() if passed_over is None else passed_over
    if files.suffix(path) in _PARQUET:
        return read_parquet(path, format, passed_over)
    listed = path.removesuffix(".tar") + ".parquet"
    if not files.is_url(path) and files.exists(listed):
        passed_over["Parquet files beside tar shards (what img2dataset writes about them)"] += 1
    return read_tar(path, format, passed_over)


def copy_good(paths: Sequence[str], bad: set[int], target: str) -> int:
    """Write one shard with the good rows of `paths`; their number.

    Args:
        bad: positions, over all shards, of the items of `read_shard` that are not good.
    """
    copy = copy_parquet if files.suffix(paths[0]) in _PARQUET else copy_tar
    return copy(paths, bad, target)
