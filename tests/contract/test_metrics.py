"""Every metric keeps the contract of eval/metric.py."""

from __future__ import annotations

import pytest

from diptych import parts
from diptych.errors import PartNotFound
from diptych.eval import metric

NAMES = parts.names(metric.FOLDER)
TEXTS = [
    "",
    " ",
    "yes",
    "no",
    "0",
    "12",
    "12.5%",
    "red, white",
    "蓝色。",
    "nan",
    "a\nb",
    "İ",
    "1e999",
]


def test_the_promised_metrics_exist():
    promised = {"exact", "relaxed", "anls", "anls_llava_stvqa", "pope_llava", "pope_lmms"}
    assert promised | {"vqa_official", "vqa_lavis", "vqav2_lmms", "textvqa"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_scores_lie_between_0_and_1_for_any_text(name):
    found = metric.find(name)
    for prediction in TEXTS:
        for answer in TEXTS:
            for answers in ([answer], [answer] * 10, [answer, *TEXTS]):
                score = found.score(prediction, answers)
                assert isinstance(score, float)
                assert 0.0 <= score <= 1.0


@pytest.mark.parametrize("name", NAMES)
def test_a_right_answer_scores_1_and_a_wrong_one_0(name):
    found = metric.find(name)
    assert found.score("yes", ["yes"] * max(found.min_answers, 10)) == 1.0
    assert found.score("no", ["yes"] * max(found.min_answers, 10)) == 0.0


@pytest.mark.parametrize("name", NAMES)
def test_min_answers_is_what_a_score_of_1_takes(name):
    found = metric.find(name)
    assert found.score("yes", ["yes"] * found.min_answers) == 1.0
    if found.min_answers > 1:
        assert found.score("yes", ["yes"] * (found.min_answers - 1)) < 1.0


@pytest.mark.parametrize("name", NAMES)
def test_docstring_names_the_source(name):
    module = parts.find(metric.FOLDER, name)
    assert "Source:" in module.__doc__ or "Diptych's own definition" in module.__doc__
    assert metric.find(name).description == parts.describe(metric.FOLDER)[name]


@pytest.mark.parametrize("name", [n for n in NAMES if metric.find(n).aggregate])
def test_aggregates_of_nothing_are_zero(name):
    aggregate = metric.find(name).aggregate
    assert set(aggregate([], []).values()) == {0.0}


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in NAMES if metric.find(n).aggregate])
def test_aggregates_of_right_answers_are_1(name):
    figures = metric.find(name).aggregate(["yes", "no"], [["yes"], ["no", "nope"]])
    assert figures.get("f1", figures.get("Bleu_1")) == pytest.approx(1.0)


def test_an_unknown_metric_names_the_known_ones(monkeypatch):
    monkeypatch.setenv("DIPTYCH_PARTS", "diptych")
    with pytest.raises(PartNotFound, match="vqa_official"):
        metric.find("vqa")
    with pytest.raises(PartNotFound, match="has no `score"):
        metric.find("diptych.errors")
