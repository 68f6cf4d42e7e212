"""Statistics against values known by hand, and coverage under a seed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from diptych.eval.interval import (
    bootstrap_p_value,
    interval,
    interval_over_seeds,
    mcnemar,
    resampled_means,
    score_interval,
)


@pytest.mark.parametrize(
    "gained, lost, p",
    [
        (0, 0, 1.0),
        (5, 0, 2 / 32),
        (0, 5, 2 / 32),
        (1, 9, 2 * (1 + 10) / 1024),
        (8, 2, 2 * (1 + 10 + 45) / 1024),
        (5, 5, 1.0),
    ],
)
def test_mcnemar_by_hand(gained, lost, p):
    assert mcnemar(gained, lost) == pytest.approx(p, rel=1e-12)


def test_mcnemar_of_thousands_of_pairs_is_a_number():
    # Normal approximation with continuity correction: z = (|2600 - 2400| - 1) / sqrt(5000).
    z = 199 / math.sqrt(5000)
    assert mcnemar(2600, 2400) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.01)
    assert mcnemar(5000, 0) == 0.0  # 2 / 2**5000 is below the smallest float


def test_interval_is_seeded_and_near_the_normal_one():
    scores = [1.0] * 60 + [0.0] * 40
    groups = range(100)
    assert interval(scores, groups, seed=1) == interval(scores, groups, seed=1)
    assert interval(scores, groups, seed=1) != interval(scores, groups, seed=2)
    half = 1.96 * math.sqrt(0.6 * 0.4 / 100)
    low, high = interval(scores, groups, seed=1)
    assert low == pytest.approx(0.6 - half, abs=0.02)
    assert high == pytest.approx(0.6 + half, abs=0.02)


def test_runs_that_agree_add_no_certainty():
    scores = [1.0] * 60 + [0.0] * 40
    three = interval_over_seeds([scores] * 3, seed=1)
    assert three == pytest.approx(interval(scores, range(100), seed=1), abs=0.015)
    assert three == interval_over_seeds([scores] * 3, seed=1)


def test_runs_that_differ_widen_the_interval():
    # Of two runs that are all right and all wrong, both draws are the same one half of the time.
    assert interval_over_seeds([[1.0] * 50, [0.0] * 50]) == (0.0, 1.0)
    # Differences of runs and of questions add up: Owen 2007, the variance of a crossed mean.
    rng = np.random.default_rng(0)
    runs, questions = rng.normal(size=(40, 1)), rng.normal(size=(1, 60))
    low, high = interval_over_seeds((runs + questions).tolist())
    spread = math.sqrt(runs.var() / 40 + questions.var() / 60)
    assert (high - low) / (2 * 1.96) == pytest.approx(spread, rel=0.07)


def test_questions_on_one_picture_widen_the_interval():
    scores = [float(i // 4 % 2) for i in range(400)]  # four questions agree on every picture
    alone = interval(scores, range(400), seed=0)
    shared = interval(scores, [i // 4 for i in range(400)], seed=0)
    assert (shared[1] - shared[0]) / (alone[1] - alone[0]) == pytest.approx(2.0, rel=0.1)


def test_unequal_groups_weigh_by_their_questions():
    means = resampled_means([1.0, 0.0, 0.0, 0.0], ["a", "b", "b", "b"], seed=0)
    assert set(np.unique(means)) == {0.0, 0.25, 1.0}


def test_chunked_resampling_equals_one_piece(monkeypatch):
    scores, groups = list(np.linspace(0, 1, 50)), range(50)
    whole = resampled_means(scores, groups, seed=3)
    monkeypatch.setattr("diptych.eval.interval._CHUNK_ELEMENTS", 64)
    assert (resampled_means(scores, groups, seed=3) == whole).all()


def test_all_right_is_not_certainty():
    low, high = score_interval([1.0] * 20, [i // 2 for i in range(20)])
    assert high == 1.0
    assert low == pytest.approx(0.025 ** (1 / 10))  # ten pictures, not twenty questions
    assert score_interval([0.0], ["a"]) == (0.0, pytest.approx(0.975))


def test_coverage_over_many_samples():
    """The interval holds the true mean in about 95 % of repeated experiments."""
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        scores = (rng.random(120) < 0.6).astype(float)
        low, high = interval(scores, range(120), seed=trial)
        hits += low <= 0.6 <= high
    assert 0.90 <= hits / 200 <= 0.99


def test_bootstrap_p_value():
    assert bootstrap_p_value([0.0] * 10, range(10)) == 1.0
    assert bootstrap_p_value([0.5] * 30, range(30)) == pytest.approx(2 / 2001)
    balanced = [0.3, -0.3] * 50
    assert bootstrap_p_value(balanced, range(100)) > 0.5
