"""How sure a score is: bootstrap intervals over images, and McNemar's test for pairs.

Several questions often share one picture and are then right or wrong together, so resampling is by
group (a picture with all its questions), never by question: treating them as independent would
give intervals that are too narrow.

Source: Efron & Tibshirani, "An Introduction to the Bootstrap" (percentile interval);
Field & Welsh 2007, "Bootstrapping clustered data"; McNemar 1947.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 2000
CONFIDENCE = 0.95
_CHUNK_ELEMENTS = 4_000_000  # bounds the index matrix to 32 MB


def resampled_means(
    scores: Sequence[float],
    groups: Sequence[Hashable],
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> NDArray[np.float64]:
    """Means of bootstrap resamples, drawn by group: shape (num_resamples,), float64.

    Args:
        scores: one per question.
        groups: what each question shares with others, such as its picture.
    """
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(group, len(numbers)) for group in groups])
    sums = np.bincount(index, weights=np.asarray(scores, dtype=np.float64))
    counts = np.bincount(index).astype(np.float64)
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK_ELEMENTS // len(sums))
    means = []
    for start in range(0, num_resamples, rows):
        size = (min(rows, num_resamples - start), len(sums))
        drawn = rng.integers(0, len(sums), size=size)
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return np.concatenate(means)


def interval(
    scores: Sequence[float], groups: Sequence[Hashable], *, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of the mean of any values, resampled by group."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled_means(scores, groups, seed=seed), [tail, 1 - tail])
    return float(low), float(high)


def interval_over_seeds(
    by_seed: Sequence[Sequence[float]], *, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> tuple[float, float]:
    """95 % percentile interval of the mean over training runs that were asked the same things.

    Runs and questions are drawn anew independently, and every drawn run is asked the same drawn
    questions, as all were: what is hard for one run is hard for the next.

    Args:
        by_seed: scores, or paired differences, [runs][questions].

    Source: Owen 2007, "The pigeonhole bootstrap".
    """
    values = np.asarray(by_seed, dtype=np.float64)
    rng = np.random.default_rng(seed)
    # How often each run, each question was drawn.
    runs, questions = (
        rng.multinomial(size, np.full(size, 1 / size), size=num_resamples) for size in values.shape
    )
    means = ((runs @ values) * questions).sum(axis=1) / values.size
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def score_interval(
    scores: Sequence[float], groups: Sequence[Hashable], *, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of the mean of scores that lie in [0, 1], resampled by group.

    When every score is 0, or every score is 1, all resamples agree and the bootstrap would claim
    certainty. The exact binomial (Clopper-Pearson) bound on the number of groups is given instead.
    """
    if scores[0] in (0.0, 1.0) and all(score == scores[0] for score in scores):
        slack = 1 - ((1 - CONFIDENCE) / 2) ** (1 / len(set(groups)))
        return (0.0, slack) if scores[0] == 0.0 else (1.0 - slack, 1.0)
    return interval(scores, groups, seed=seed)


def difference_interval(
    changes: Sequence[float], groups: Sequence[Hashable], *, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of the mean of differences that lie in [-1, 1], resampled by group.

    Where all are the same, the bootstrap would claim certainty; the slack that `score_interval`
    gives to such scores stands on both sides then.
    """
    if all(change == changes[0] for change in changes):
        slack = 1 - ((1 - CONFIDENCE) / 2) ** (1 / len(set(groups)))
        return max(-1.0, changes[0] - slack), min(1.0, changes[0] + slack)
    return interval(changes, groups, seed=seed)


def bootstrap_p_value(
    differences: Sequence[float],
    groups: Sequence[Hashable],
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> float:
    """Two-sided p-value for "the mean difference is 0", from the paired bootstrap by group.

    Twice the smaller share of resamples on either side of 0, at least 1 / (num_resamples + 1),
    because a share that was not seen among N resamples is not known to be 0.
    """
    if not any(differences):
        return 1.0
    means = resampled_means(differences, groups, seed=seed, num_resamples=num_resamples)
    smaller = min(int((means <= 0).sum()), int((means >= 0).sum()))
    return min(1.0, 2 * (smaller + 1) / (num_resamples + 1))


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p-value of McNemar's test.

    Args:
        gained: pairs that were wrong in the first run and right in the second.
        lost: the other way round. Pairs without change carry no information.

    With gained + lost = n, it is P(|X - n/2| >= |gained - n/2|) for X ~ Binomial(n, 1/2).
    """
    n = gained + lost
    term, total = 1, 0
    for k in range(min(gained, lost) + 1):
        total += term
        term = term * (n - k) // (k + 1)
    # Division of the integers themselves: as floats they would overflow from n = 1024 on.
    return min(1.0, 2 * total / 2**n)


def mean(scores: Sequence[float]) -> float:
    """The mean without rounding error, so that 10 times 0.1 is 0.1."""
    return math.fsum(scores) / len(scores)
