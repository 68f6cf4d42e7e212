"""Contract of an index: vectors that can be asked for their neighbours.

A part in `sinks/` that can be searched has `index(target, version) -> VectorIndex`. Every score
is a cosine.

Shapes: q questions, n vectors, D width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np

from diptych.embed.sink import About, part_of, without_secrets
from diptych.errors import ConfigError, DataError


@dataclass(frozen=True)
class Hit:
    """A row that was found.

    Attributes:
        id: of the row.
        score: cosine with the question.
        row: its text, picture, data set and kept fields.
    """

    id: str
    score: float
    row: dict[str, Any]


class VectorIndex(Protocol):
    """Vectors that can be asked for their neighbours.

    Attributes:
        about: what they are; of several data sets one stands for all.
        roots: of each data set the folder that its pictures are relative to.
        approximate: whether there is a quicker way than comparing with every vector.
    """

    about: About
    roots: dict[str, str]
    approximate: bool

    def __len__(self) -> int: ...

    def search(self, vectors: np.ndarray, k: int, *, exact: bool = False) -> list[list[Hit]]:
        """The k nearest of each of the vectors float32 [q, D], best first.

        Args:
            exact: compare with every vector, also where there is a quicker way.
        """
        ...

    def ids(self) -> list[str]:
        """Every id, each once."""
        ...

    def take(self, ids: Sequence[str]) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Vectors float32 [n, D] and rows of these ids, in their order.

        Raises:
            DataError: one is not there.
        """
        ...

    def some(self, count: int) -> np.ndarray:
        """Up to `count` of its own vectors float32 [count, D], to measure it by."""
        ...

    def close(self) -> None: ...


def open_vectors(target: str, version: str | None = None) -> VectorIndex:
    """The index of a place such as `parquet:vectors`, `lance:vectors` or `redis://HOST/GROUP`.

    Args:
        target: the place; `#VERSION` behind it says which vectors, where it has several.
        version: the same (`image-0123456789ab`).

    Raises:
        ConfigError: the place is of no known kind, cannot be searched, or has several versions.
        DataError: there is nothing there.
    """
    target, _, named = target.partition("#")
    version = version or named or None
    found = getattr(part_of(target), "index", None)
    if found is None:
        raise ConfigError(
            "this kind of place cannot be searched",
            where=without_secrets(target),
            fix="search parquet:, lance: or redis:",
        )
    return cast(VectorIndex, found(target, version))


def chosen(versions: Sequence[str], version: str | None, where: str) -> str:
    """The version asked for, or the only one.

    Raises:
        DataError: there are none, or not that one.
        ConfigError: there are several.
    """
    if not versions:
        raise DataError(
            "there are no vectors", where=where, fix="write some with `diptych embed ... --to`"
        )
    listed = ", ".join(versions)
    if version is None and len(versions) > 1:
        raise ConfigError(
            f"there are several kinds of vectors: {listed}",
            where=where,
            fix=f"name one behind a #, as in ...#{versions[0]}",
        )
    if version is not None and version not in versions:
        raise DataError(f"there is no version '{version}'", where=where, fix=f"it has: {listed}")
    return version or versions[0]


class Nearest:
    """The k best of what passes by, for several questions at once.

    Args:
        questions: float32 [q, D].
    """

    def __init__(self, questions: np.ndarray, k: int):
        self.questions = unit(questions)
        self.k = k
        self.scores = np.zeros((len(questions), 0), np.float32)
        self.rows: list[list[Any]] = [[] for _ in questions]

    def add(self, vectors: np.ndarray, row: Callable[[int], Any]) -> None:
        """Compare with vectors float32 [n, D]; `row(i)` is kept of those among the best.

        A vector of zeros or with numbers that are not finite, as earlier versions wrote, is never
        among them.

        Raises:
            DataError: their width is another.
        """
        if vectors.shape[1] != self.questions.shape[1]:
            raise DataError(
                f"the vectors are {vectors.shape[1]} wide, the question {self.questions.shape[1]}"
            )
        if not len(vectors):
            return
        is_good = np.isfinite(vectors).all(1) & vectors.any(1)
        cosines = self.questions @ unit(np.where(is_good[:, None], vectors, 0)).T
        both = np.concatenate([self.scores, np.where(is_good, cosines, -np.inf)], 1)
        # Stable, so that of equal scores the first one seen stays first.
        order = np.argsort(-both, axis=1, kind="stable")[:, : self.k]
        before = self.scores.shape[1]
        self.scores = np.take_along_axis(both, order, 1)
        self.rows = [
            [rows[i] if i < before else row(i - before) for i in places.tolist()]
            for rows, places in zip(self.rows, order, strict=True)
        ]

    def found(self) -> list[list[tuple[float, Any]]]:
        """(cosine, what `row` gave), best first, for each question."""
        return [
            [(float(s), row) for s, row in zip(scores, rows, strict=True) if np.isfinite(s)]
            for scores, rows in zip(self.scores, self.rows, strict=True)
        ]


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors [n, D] at length one; zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)


def recall(index: VectorIndex, k: int, questions: int = 200) -> dict[str, Any]:
    """How many of the true k neighbours the quicker way finds, asked with its own vectors.

    Returns:
        `recall`: mean share found; `k`, `questions`, and seconds of both ways.
    """
    vectors = index.some(questions)
    start = time.perf_counter()
    quick = index.search(vectors, k)
    between = time.perf_counter()
    true = index.search(vectors, k, exact=True)
    end = time.perf_counter()
    shares = [
        len({h.id for h in a} & {h.id for h in b}) / max(1, len(b))
        for a, b in zip(quick, true, strict=True)
    ]
    return {
        "recall": float(np.mean(shares)),
        "k": k,
        "questions": len(vectors),
        "approximate": index.approximate,
        "seconds": between - start,
        "exact_seconds": end - between,
    }


def in_order(ids: Sequence[str], found: dict[str, tuple[np.ndarray, dict[str, Any]]]) -> Any:
    """What `VectorIndex.take` gives, from what was found in any order.

    Raises:
        DataError: an id is missing.
    """
    if missing := next((key for key in ids if key not in found), None):
        raise DataError("there is no such row", where=missing)
    vectors = np.stack([found[key][0] for key in ids]) if ids else np.zeros((0, 0), np.float32)
    return vectors, [found[key][1] for key in ids]


def merged(abouts: Iterable[About]) -> tuple[About, dict[str, str]]:
    """What several data sets have in common, and their roots."""
    listed = list(abouts)
    return listed[-1], {a.data: a.root for a in listed}
