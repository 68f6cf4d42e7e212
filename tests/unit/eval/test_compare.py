"""Paired comparison with values computed by hand. The model is a fake that looks answers up."""

from __future__ import annotations

import dataclasses

import pytest
from eval_fake_model import FakeModel, question

from diptych.errors import DataError, ModelError
from diptych.eval.benchmarks.questions import Questions
from diptych.eval.compare import compare
from diptych.eval.result import TextAbility
from diptych.eval.runner import evaluate

NUM = 20


def run(right: set[int], *, metric="exact", broken=(), answer="yes", ids=range(NUM)):
    """One question a picture; those in `right` are answered so."""
    samples = [
        question(i, answer, image=f"{i}.png", kind="even" if i % 2 == 0 else "odd") for i in ids
    ]
    outputs = {str(i): answer if i in right else "zzz" for i in ids}
    outputs |= {str(i): ModelError("boom") for i in broken}
    benchmark = Questions(samples, metric=metric)
    settings = {"max_failure_share": 0.2} if broken else {}
    return evaluate(FakeModel(outputs), benchmark, blind=False, progress=False, **settings)


def test_mcnemar_by_hand():
    # 4..11 gained (8), 0..1 lost (2): p = 2 (1 + 10 + 45) / 1024.
    found = compare(run({0, 1, 2, 3}), run({2, 3, 4, 5, 6, 7, 8, 9, 10, 11}))
    overall = found.overall
    assert (overall.before, overall.after, overall.n) == (0.2, 0.5, NUM)
    assert overall.difference == pytest.approx(0.3)
    assert (overall.gained, overall.lost, overall.test) == (8, 2, "mcnemar")
    assert overall.p_value == pytest.approx(112 / 1024)
    assert overall.low < 0.3 < overall.high
    assert found.gained_ids == [str(i) for i in range(4, 12)]
    assert found.lost_ids == ["0", "1"]
    even = found.by_kind["even"]
    assert (even.gained, even.lost, even.n) == (4, 1, 10)
    assert even.p_value == pytest.approx(2 * (1 + 5) / 32)


def test_a_run_against_itself():
    result = run({1, 2, 3})
    overall = compare(result, result).overall
    assert (overall.difference, overall.low, overall.high, overall.p_value) == (0, 0, 0, 1)


def test_graded_scores_use_the_paired_bootstrap():
    before, after = (
        run(set(), metric="anls", answer="abcd"),
        run(set(), metric="anls", answer="abcd"),
    )
    for index, record in enumerate(after.records):
        record.score = 0.5 + 0.01 * index
    overall = compare(before, after).overall
    assert overall.test == "paired bootstrap"
    assert overall.difference == pytest.approx(0.5 + 0.01 * 9.5)
    assert overall.p_value == pytest.approx(2 / 2001)


def test_failed_questions_are_left_out_and_counted():
    found = compare(run({0, 1}, broken={5}), run({0, 1, 2}, broken={6, 7}))
    assert (found.failed, found.overall.n, found.overall.gained) == (3, NUM - 3, 1)


def test_runs_that_do_not_pair_are_refused_with_the_numbers():
    with pytest.raises(DataError, match="10 in both, 10 only in the first, 5 only in the second"):
        compare(run({1}), run({1}, ids=[*range(10), *range(30, 35)]))
    with pytest.raises(DataError, match="'exact' and 'relaxed'"):
        compare(run({1}), run({1}, metric="relaxed"))
    with pytest.raises(DataError, match="true answers of 20 of 20"):
        compare(run({1}), run({1}, answer="no"))


def test_from_folders_with_text_ability(tmp_path):
    texts = {"english": {"perplexity": 20.0, "bits_per_byte": 1.0, "tokens": 100}}
    worse = {"english": {"perplexity": 25.0, "bits_per_byte": 1.1, "tokens": 100}}
    before = dataclasses.replace(run({1}), text=TextAbility(texts, choices=run({0, 1, 2})))
    after = dataclasses.replace(run({1, 2}), text=TextAbility(worse, choices=run({0})))
    before.save(tmp_path / "before")
    after.save(tmp_path / "after")
    found = compare(tmp_path / "before", str(tmp_path / "after"))
    assert found == compare(before, after)
    assert found.forgotten["perplexity"]["english"] == {
        "before": 20.0,
        "after": 25.0,
        "ratio": 1.25,
    }
    assert (found.forgotten["choices"]["lost"], found.forgotten["choices"]["gained"]) == (2, 0)
    assert compare(run({1}), run({1})).forgotten is None
