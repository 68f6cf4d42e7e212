"""Every question-answering metric against the scores of its published implementation."""

from __future__ import annotations

import json
from statistics import fmean

import pytest

from diptych.eval import metric
from diptych.eval.answer_text import evalai
from diptych.eval.metrics import pope_llava, pope_lmms, vqa_lavis

# (key of the reference score, metric of ours, key of the accepted answers)
SCORES = [
    ("vqa_official", "vqa_official", "answers"),
    ("vqa_lavis", "vqa_lavis", "answers"),
    ("vqav2_lmms", "vqav2_lmms", "answers"),
    ("textvqa_lmms", "textvqa", "answers"),
    ("textvqa_llava_m4c", "textvqa", "answers"),
    ("chartqa_relaxed", "relaxed", "chartqa_target"),
    ("anls_lmms", "anls", "anls_references"),
    ("anls_llava_stvqa", "anls_llava_stvqa", "anls_references"),
]


def near(value: float):
    return pytest.approx(value, abs=1e-9, rel=0)


@pytest.fixture(scope="module")
def data(conformance):
    text = (conformance("vqa_metrics") / "cases.json").read_text(encoding="utf-8")
    return json.loads(text)


def score_of(case: dict, name: str, answers_key: str) -> float:
    answers = case[answers_key]
    answers = [answers] if isinstance(answers, str) else answers
    return metric.find(name).score(case["prediction"], answers)


@pytest.mark.parametrize(("reference", "name", "answers_key"), SCORES)
def test_each_case(data, reference, name, answers_key):
    checked = 0
    for case in data["cases"]:
        ours = score_of(case, name, answers_key)
        if isinstance(case[reference], str):  # the reference failed on this case
            assert case[reference].startswith("error: ")
            assert 0.0 <= ours <= 1.0
        else:
            assert ours == near(case[reference]), case
            checked += 1
    assert checked


def test_lavis_percent_and_normalised_predictions(data):
    for case in data["cases"]:
        ours = score_of(case, "vqa_lavis", "answers")
        assert round(100 * ours, 2) == near(case["vqa_lavis_rounded2"])
        text = case["prediction"]
        assert vqa_lavis.normalize_prediction(text) == case["lavis_normalized_prediction"]
        assert evalai(text) == case["evalai_normalized_prediction"]
        assert pope_llava.label(text) == case["pope_llava_label"]
        assert pope_lmms.label(text) == case["pope_lmms_prediction"]


def test_chartqa_extra(data):
    assert data["chartqa_extra"]
    for case in data["chartqa_extra"]:
        assert score_of(case, "relaxed", "target") == near(case["chartqa_relaxed"]), case


def test_corpus_means(data):
    for key, expected in data["corpus"].items():
        reference = key.removesuffix("_overall")
        name, answers_key = next((n, a) for r, n, a in SCORES if r == reference)
        mean = fmean(score_of(case, name, answers_key) for case in data["cases"])
        # The "overall" figures of the VQA scripts are percentages rounded to two digits.
        assert (round(100 * mean, 2) if key != reference else mean) == near(expected), key


def test_pope(data):
    items = data["pope"]["items"]
    texts, golds = [i["text"] for i in items], [i["gold"] for i in items]
    for item in items:
        assert pope_llava.label(item["text"]) == item["llava_label"]
        assert pope_lmms.label(item["text"]) == item["lmms_prediction"]
        assert pope_lmms.score(item["text"], [item["gold"]]) == near(item["lmms_score"])
        right = item["llava_label"] == item["gold"]
        assert pope_llava.score(item["text"], [item["gold"]]) == float(right)

    keys = {
        "TP": "true_positives",
        "FP": "false_positives",
        "TN": "true_negatives",
        "FN": "false_negatives",
        "F1 score": "f1",
    }
    for ours, theirs in (
        (pope_llava.aggregate(texts, [[gold] for gold in golds]), data["pope"]["llava"]),
        (pope_lmms.aggregate(texts, [[gold] for gold in golds]), data["pope"]["lmms"]),
    ):
        for key, value in theirs.items():
            assert ours[keys.get(key, key.lower().replace(" ", "_"))] == near(value), key
