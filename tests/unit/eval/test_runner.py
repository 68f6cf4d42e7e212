"""The runner: controls, splits, failures, files. The model is a fake that looks answers up."""

from __future__ import annotations

import json

import pytest
from eval_fake_model import FakeModel, question

from diptych.data.sample import Image, Sample, Text, Turn
from diptych.errors import (
    ConfigError,
    DataError,
    DuplicateId,
    EmptyConversation,
    ImageTokenMismatch,
    Interrupted,
    MissingImage,
)
from diptych.eval.benchmarks.questions import Questions
from diptych.eval.result import Result
from diptych.eval.runner import evaluate


def four_questions():
    return [
        question(1, "3", image="a.png", kind="count"),
        question(2, "red", image="a.png", kind="colour"),
        question(3, "3", image="b.png", kind="count"),
        question(4, "blue", image="b.png", kind="colour"),
    ]


SEEING = {"1": "3", "2": "Red.", "3": "4", "4": "blue"}
BLIND = {"1": "3", "2": "blue", "3": "3", "4": "green"}


def run(samples, seeing=SEEING, blind=BLIND, metric="exact", **options) -> Result:
    benchmark = Questions(samples, metric=metric)
    return evaluate(FakeModel(seeing, blind), benchmark, progress=False, **options)


def test_score_controls_and_kinds():
    result = run(four_questions())
    assert (result.score, result.n) == (0.75, 4)
    assert 0.0 <= result.low <= 0.75 <= result.high <= 1.0
    assert (result.blind.score, result.blind.n) == (0.5, 4)
    # Evaluated answers: "3" for count is right twice; "red" and "blue" tie, the first is taken.
    assert result.majority.score == 0.75
    assert result.majority_from == "evaluated answers"
    count, colour = result.by_kind["count"], result.by_kind["colour"]
    assert (count.score, count.n, count.blind, count.majority) == (0.5, 2, 1.0, 1.0)
    assert (colour.score, colour.n, colour.blind, colour.majority) == (1.0, 2, 0.0, 0.5)


def test_majority_from_training_answers_falls_back_for_new_kinds():
    train = [question(i, "Green", kind="colour") for i in range(3)] + [
        question(9, "blue", kind="colour"),
        question(10, "red", kind="shape"),
    ]
    result = run(four_questions(), train=train)
    assert result.majority_from == "training answers"
    assert result.majority.score == 0.0  # "green" everywhere; no kind "count" was trained
    result = run(four_questions(), train=[question(1, "3", kind="other")])
    assert result.by_kind["count"].majority == 1.0


def test_shape_of_the_result():
    data = run(four_questions()).to_dict()
    for name in ("after", "blind", "majority"):
        assert list(data[name]) == ["score", "low", "high", "n"]
    assert set(data["by_kind"]["count"]) == {"score", "low", "high", "n", "blind", "majority"}
    json.dumps(data, allow_nan=False)
    assert run(four_questions(), blind=False).to_dict()["blind"] is None


def test_a_failure_is_excluded_and_counted_and_leaves_its_batch_alone():
    broken = {**SEEING, "2": ImageTokenMismatch("1 image, 2 placeholders")}
    model = FakeModel(broken, BLIND)
    result = evaluate(model, Questions(four_questions()), batch_size=4, progress=False)
    assert (result.failures, result.n, result.blind.n) == (1, 3, 3)
    assert result.score == pytest.approx(2 / 3)
    failed = result.records[1]
    assert (failed.output, failed.score, failed.majority_score) == (None, None, None)
    assert failed.error.startswith("ImageTokenMismatch: 1 image, 2 placeholders")
    assert model.batches == [4, 1, 1, 1, 1, 4]


def test_a_blind_failure_is_counted_apart():
    result = run(four_questions(), blind={**BLIND, "3": RuntimeError("boom")})
    assert (result.n, result.blind.n, result.failures, result.blind_failures) == (4, 3, 0, 1)
    assert result.records[2].blind_error == "RuntimeError: boom"


def test_nothing_to_ask_without_the_picture_is_no_failure():
    """A caption without a prompt has no blind control, and that is nobody's fault."""
    result = run(four_questions(), blind={**BLIND, "3": EmptyConversation("nothing is asked")})
    assert (result.blind.n, result.blind_failures) == (3, 0)
    assert result.records[2].blind_error is None and result.records[2].blind_score is None


def test_failing_everywhere_is_the_models_own_error():
    with pytest.raises(ImageTokenMismatch, match="all broken"):
        run(four_questions(), seeing={str(i): ImageTokenMismatch("all broken") for i in range(5)})


def test_interrupted_is_no_failure_of_a_sample():
    with pytest.raises(Interrupted):
        run(four_questions(), seeing={**SEEING, "2": Interrupted("stop")})


def test_a_reference_without_a_source_is_named():
    sample = Sample(
        "1",
        (Turn("user", (Image("a.png"), Text("?"))), Turn("assistant", (Text("3"),))),
    )
    with pytest.raises(MissingImage, match="a.png"):
        run([sample])


def test_samples_without_images_have_no_blind_control():
    result = run([question(1, "3"), question(2, "red")], seeing={}, blind={"1": "3", "2": "x"})
    assert result.score == 0.5
    assert result.blind is None
    assert len({record.group for record in result.records}) == 2


def test_limit_draws_with_the_seed_and_keeps_the_order():
    samples = [question(i, "3", image=f"{i}.png") for i in range(50)]
    answers = {str(i): "3" for i in range(50)}

    def ids(seed):
        return [r.id for r in run(samples, answers, answers, limit=10, seed=seed).records]

    assert ids(1) == ids(1) == sorted(ids(1), key=int)
    assert len(ids(1)) == 10 and ids(1) != ids(2)
    with pytest.raises(DataError, match="limit"):
        run(samples, limit=0)


def test_duplicate_ids_and_no_samples_are_refused():
    with pytest.raises(DuplicateId, match="'1'"):
        run([question(1, "3", image="a.png"), question(1, "3", image="b.png")])
    with pytest.raises(DataError, match="no samples"):
        run([])


def test_a_metric_that_needs_ten_answers_says_so():
    with pytest.raises(DataError, match="at least 4"):
        run(four_questions(), metric="vqa_official")
    samples = [question(1, "3", image="a.png", answers=["3"] * 4 + ["4"] * 6)]
    assert run(samples, metric="vqa_official").score == 1.0


def test_a_row_without_an_answer_is_a_failure_not_a_zero():
    result = run([*four_questions()[:1], question(2, "", image="a.png")])
    assert (result.n, result.failures, result.score) == (1, 1, 1.0)
    assert "DataError" in result.records[1].error


def test_likelihood_chooses_among_choices():
    samples = [
        question(1, "bar", image="a.png", choices=["bar", "line"]),
        question(2, "line", image="b.png", choices=["bar", "line"]),
    ]
    model = FakeModel(likelihoods={"1": {"bar": -1, "line": -2}, "2": {"bar": -3, "line": -4}})
    result = evaluate(model, Questions(samples, how="likelihood"), progress=False)
    assert [r.output for r in result.records] == ["bar", "bar"]
    assert result.score == 0.5
    with pytest.raises(DataError, match="no choices"):
        evaluate(model, Questions(four_questions(), how="likelihood"), progress=False)


def test_aggregates_of_the_metric():
    samples = [question(i, a, image=f"{i}.png") for i, a in enumerate(["yes", "no", "yes"])]
    answers = {"0": "Yes", "1": "Yes", "2": "No"}
    result = run(samples, answers, answers, metric="pope_llava")
    assert result.aggregates["true_positives"] == 1
    assert result.aggregates["yes_ratio"] == pytest.approx(2 / 3)


def test_saved_and_loaded_is_equal(tmp_path):
    result = run(four_questions(), seeing={**SEEING, "2": RuntimeError("boom\n中文")})
    result.save(tmp_path / "eval")
    assert sorted(p.name for p in (tmp_path / "eval").iterdir()) == ["records.jsonl", "result.json"]
    assert Result.load(tmp_path / "eval") == result
    lines = (tmp_path / "eval/records.jsonl").read_text(encoding="utf-8").splitlines()
    first = json.loads(lines[0])
    assert (first["question"], first["truth"], first["image"]) == ("How many?", "3", "a.png")


def test_a_broken_file_is_named_with_its_line(tmp_path):
    with pytest.raises(DataError, match="result.json"):
        Result.load(tmp_path)
    run(four_questions()).save(tmp_path)
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write("{oops\n")
    with pytest.raises(DataError, match=r"records.jsonl:5"):
        Result.load(tmp_path)


def test_configuration_errors_are_not_blamed_on_samples():
    with pytest.raises(ConfigError):
        run(four_questions()[:1], seeing={"1": ConfigError("no such dtype")})
