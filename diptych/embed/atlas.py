"""The same rows as two models see them: flat pictures, neighbours that changed, signs of collapse.

Shapes: n rows, D width (the two models may differ in it).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from diptych.embed.vector_index import unit
from diptych.errors import DataError, MissingExtra

NEIGHBOURS = 10
EXAMPLES = 12
MAX_GROUPS = 10
ALIKE = 0.999
"""Cosine from which two rows count as duplicates in a model's eyes."""

Method = Literal["tsne", "umap"]


def draw(
    before: np.ndarray,
    after: np.ndarray,
    groups: Sequence[str | None] | None = None,
    *,
    method: Method = "tsne",
    seed: int = 0,
) -> dict[str, Any]:
    """Everything the page shows of vectors [n, D] and [n, D'] of the same n rows.

    Args:
        groups: of each row the value of a field, to colour by and to score clusters by; the most
            frequent MAX_GROUPS stay, the rest is one group of others.

    Returns:
        `maps` (points 0..1 before and after), `groups`, `figures` before and after (see `figures`),
        `neighbours` (mean share of neighbours that stayed; the rows whose neighbours changed most).

    Raises:
        MissingExtra: scikit-learn (or UMAP) is not installed.
        DataError: fewer than three rows.
    """
    if len(before) < 3:
        raise DataError(f"{len(before)} rows are too few for a map")
    sides = [unit(before), unit(after)]
    shown = _grouped(groups)
    near = [_neighbours(side) for side in sides]
    shares = [
        len(set(a) & set(b)) / max(1, len(a))
        for a, b in zip(*map(np.ndarray.tolist, near), strict=True)
    ]
    changed = sorted(range(len(shares)), key=lambda i: (shares[i], i))[:EXAMPLES]
    return {
        "method": method,
        "maps": [flat(side, method, seed).round(4).tolist() for side in sides],
        "groups": shown,
        "figures": [figures(side, shown, seed) for side in sides],
        "neighbours": {
            "k": int(near[0].shape[1]),
            "share_kept": float(np.mean(shares)),
            "changed": [
                {"row": i, "before": near[0][i, :5].tolist(), "after": near[1][i, :5].tolist()}
                for i in changed
            ],
        },
    }


def flat(vectors: np.ndarray, method: Method = "tsne", seed: int = 0) -> np.ndarray:
    """Unit vectors [n, D] -> points [n, 2] in 0..1, near where the vectors are near.

    Raises:
        MissingExtra: scikit-learn (or UMAP) is not installed.
    """
    count = len(vectors)
    if method == "umap":
        try:
            import umap
        except ImportError:
            raise MissingExtra("UMAP needs umap-learn", fix="pip install umap-learn") from None
        near = min(15, count - 1)
        found = umap.UMAP(metric="cosine", n_neighbors=near, random_state=seed).fit_transform(
            vectors
        )
    else:
        try:
            from sklearn.manifold import TSNE
        except ImportError:
            raise MissingExtra(
                "t-SNE needs scikit-learn", fix="pip install 'diptych[maps]'"
            ) from None
        perplexity = min(30.0, max(1.0, (count - 1) / 3))
        found = TSNE(
            metric="cosine", init="random", perplexity=perplexity, random_state=seed
        ).fit_transform(vectors)
    points = np.asarray(found, np.float64)
    low = points.min(0)
    return (points - low) / max(float((points - low).max()), 1e-12)


def figures(vectors: np.ndarray, groups: Sequence[str] | None, seed: int = 0) -> dict[str, Any]:
    """What tells a collapsed space from a useful one, of unit vectors [n, D].

    Returns:
        `mean_cosine` of different rows (near 1: everything looks the same);
        `effective_dim`, the participation ratio of the covariance's eigenvalues (1: one direction);
        `duplicates`, rows with another row at a cosine of ALIKE or more;
        `silhouette` of the groups by cosine distance, -1..1 (Rousseeuw 1987), when there are any.
    """
    count = len(vectors)
    total = vectors.sum(0, dtype=np.float64)
    values = np.linalg.eigvalsh(np.cov(vectors.T.astype(np.float64)))
    squared = float((values**2).sum())
    found: dict[str, Any] = {
        "mean_cosine": float((total @ total - count) / (count * (count - 1))),
        "effective_dim": float(values.sum() ** 2 / squared) if squared > 0 else 0.0,
        "duplicates": int((_best_cosine(vectors) >= ALIKE).sum()),
        "dim": int(vectors.shape[1]),
        "silhouette": None,
    }
    if groups is not None and 1 < len(set(groups)) < count:
        from sklearn.metrics import silhouette_score

        found["silhouette"] = float(silhouette_score(vectors, list(groups), metric="cosine"))
    return found


def _best_cosine(vectors: np.ndarray) -> np.ndarray:
    """Of each row the cosine with its nearest other row."""
    found = np.empty(len(vectors), np.float32)
    for start, block in _blocks(vectors):
        found[start : start + len(block)] = block.max(1)
    return found


def _neighbours(vectors: np.ndarray) -> np.ndarray:
    """Rows [n, k] nearest to each row, best first."""
    k = min(NEIGHBOURS, len(vectors) - 1)
    found = np.empty((len(vectors), k), np.int64)
    for start, block in _blocks(vectors):
        found[start : start + len(block)] = np.argsort(-block, axis=1, kind="stable")[:, :k]
    return found


def _blocks(vectors: np.ndarray, rows: int = 1024) -> Any:
    """(first row, cosines of some rows with all; with themselves -2)."""
    for start in range(0, len(vectors), rows):
        block = vectors[start : start + rows] @ vectors.T
        inside = np.arange(len(block))
        block[inside, start + inside] = -2
        yield start, block


def _grouped(groups: Sequence[str | None] | None) -> list[str] | None:
    if groups is None:
        return None
    named = [g if g else "(none)" for g in groups]
    frequent = {g for g, _ in Counter(named).most_common(MAX_GROUPS)}
    return [g if g in frequent else "(others)" for g in named]


def sample(a: Sequence[str], b: Sequence[str], count: int, seed: int = 0) -> list[str]:
    """Up to `count` ids that both have, drawn by seed, in the order of the first.

    Raises:
        DataError: they share too few.
    """
    both = set(b)
    shared = [key for key in a if key in both]
    if len(shared) < 3:
        raise DataError(
            f"the two have {len(shared)} rows in common",
            fix="embed the same data with both models",
        )
    if len(shared) <= count:
        return shared
    chosen = set(random.Random(seed).sample(range(len(shared)), count))
    return [key for n, key in enumerate(shared) if n in chosen]
