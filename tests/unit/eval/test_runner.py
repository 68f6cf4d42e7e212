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
    ModelError,
    SampleTooLong,
    TooManyFailures,
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
    for name in ("after", "blind", "majority", "lookup", "gain"):
        assert list(data[name]) == ["score", "low", "high", "n"]
    assert set(data["by_kind"]["count"]) == {
        *("score", "low", "high", "n", "blind", "majority", "lookup")
    }
    json.dumps(data, allow_nan=False)
    seen = FakeModel(SEEING)
    unasked = evaluate(seen, Questions(four_questions()), blind=False, progress=False)
    assert unasked.to_dict()["blind"] is None


def test_a_failure_is_excluded_and_counted_and_leaves_its_batch_alone():
    broken = {**SEEING, "2": ImageTokenMismatch("1 image, 2 placeholders")}
    model = FakeModel(broken, BLIND)
    benchmark = Questions(four_questions())
    result = evaluate(model, benchmark, batch_size=4, max_failure_share=0.25, progress=False)
    assert (result.failures, result.n, result.blind.n) == (1, 3, 3)
    assert result.score == pytest.approx(2 / 3)
    failed = result.records[1]
    assert (failed.output, failed.score, failed.majority_score) == (None, None, None)
    assert failed.error.startswith("ImageTokenMismatch: 1 image, 2 placeholders")
    assert model.batches == [4, 1, 1, 1, 1, 4]


def test_a_blind_failure_is_counted_apart():
    broken = {**BLIND, "3": ModelError("boom")}
    result = run(four_questions(), blind=broken, max_failure_share=0.25)
    assert (result.n, result.blind.n, result.failures, result.blind_failures) == (4, 3, 0, 1)
    assert result.records[2].blind_error == "ModelError: boom"
    with pytest.raises(TooManyFailures, match="1 of 4 questions failed with their pictures with"):
        run(four_questions(), blind=broken)


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
    rows = [*four_questions()[:1], question(2, "", image="a.png")]
    result = run(rows, max_failure_share=0.5)
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
    broken = {**SEEING, "2": ModelError("boom\n中文"), "3": SampleTooLong("900 tokens")}
    result = run(four_questions(), seeing=broken, max_failure_share=0.25)
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


def many(count):
    return [question(i, "3", image=f"{i}.png") for i in range(count)]


def answers(count, **others):
    return {**{str(i): "3" for i in range(count)}, **{k[1:]: v for k, v in others.items()}}


def test_more_than_one_percent_of_failures_is_an_error_and_no_score():
    right = answers(200)
    one = run(many(200), answers(200, _7=ModelError("odd")), right)
    assert (one.failures, one.n, one.score) == (1, 199, 1.0)
    three = answers(200, _7=ModelError("odd"), _9=ModelError("even"), _11=MissingImage("gone"))
    with pytest.raises(TooManyFailures) as caught:
        run(many(200), three, right)
    said = str(caught.value)
    assert "3 of 200 questions failed" in said and "ModelError 2, MissingImage 1" in said
    assert "'7': ModelError: odd" in said and "max_failure_share" in said and "1.00%" in said
    assert caught.value.exit_code == 1
    assert run(many(200), three, right, max_failure_share=0.02).failures == 3


def test_an_evaluation_without_hope_ends_early():
    broken = answers(5000, **{f"_{i}": ModelError("no") for i in range(100, 300)})
    model = FakeModel(broken, broken)
    with pytest.raises(TooManyFailures, match="ModelError"):
        evaluate(model, Questions(many(5000)), blind=False, progress=False)
    assert sum(model.batches) < 600


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: device-side assert"), KeyError("x")])
@pytest.mark.parametrize("blind", [False, True])
def test_an_error_of_the_model_itself_ends_the_evaluation(error, blind):
    broken = {**(BLIND if blind else SEEING), "2": error}
    model = FakeModel(SEEING if blind else broken, broken if blind else BLIND)
    with pytest.raises(type(error)):
        evaluate(model, Questions(four_questions()), max_failure_share=1, progress=False)
    assert 1 not in model.batches  # nothing was asked again


class Small(FakeModel):
    """Has memory for two questions at once."""

    def generate(self, samples, **settings):
        if len(samples) > 2 or any(sample.id == "2" for sample in samples):
            self.batches.append(len(samples))
            raise RuntimeError("CUDA out of memory. Tried to allocate 3.00 GiB")
        return super().generate(samples, **settings)


def test_questions_that_need_too_much_memory_together_are_asked_one_by_one():
    model = Small(SEEING, BLIND)
    benchmark = Questions(four_questions())
    result = evaluate(model, benchmark, blind=False, max_failure_share=0.25, progress=False)
    assert (result.n, result.failures) == (3, 1) and model.batches == [4, 1, 1, 1, 1]
    assert "out of memory" in result.records[1].error


def test_a_prompt_that_is_too_long_is_wrong_and_listed():
    long = {**SEEING, "2": SampleTooLong("the prompt has 900 tokens")}
    result = run(four_questions(), long)
    assert (result.n, result.failures, result.score) == (4, 0, 0.5)
    assert result.too_long == ["2"] and result.to_dict()["too_long"] == ["2"]
    record = result.records[1]
    assert (record.score, record.output, record.too_long) == (0.0, None, True)
    # Without the picture the prompt is shorter: the control keeps what it can do.
    assert record.blind_score == 0.0 and record.majority_score == 0.5
    longer = run(four_questions(), long, {**BLIND, "2": SampleTooLong("the prompt has 800 tokens")})
    assert (longer.blind.n, longer.blind_failures) == (4, 0)


def likelihoods(*values, right="red", choices=("red", "green", "blue")):
    sample = question(1, right, image="a.png", choices=list(choices))
    model = FakeModel(likelihoods={"1": dict(zip(choices, values, strict=True))})
    return evaluate(model, Questions([sample], how="likelihood"), progress=False)


@pytest.mark.parametrize("tied", [0.0, -3.5, float("inf"), float("-inf")])
@pytest.mark.parametrize("right", ["red", "green", "blue"])
def test_a_tie_for_the_best_counts_against_the_model_wherever_the_right_one_stands(tied, right):
    result = likelihoods(tied, tied, tied, right=right)
    assert (result.score, result.ties, result.failures) == (0.0, 1, 0)
    assert result.records[0].output != right
    assert result.blind.score == pytest.approx(1 / 3)  # the control guesses among them


def test_a_tie_of_wrong_candidates_or_behind_the_best_changes_nothing():
    assert likelihoods(-1.0, -2.0, -2.0).score == 1.0
    assert likelihoods(-2.0, -1.0, -1.0).score == 0.0
    # Rounding of float32 is a tie; what it can tell apart is not.
    assert likelihoods(-20.000001, -20.0, -30.0, right="green").score == 0.0
    assert likelihoods(-20.01, -20.0, -30.0, right="green").score == 1.0
    # The same text twice is one answer.
    twice = likelihoods(-1.0, -1.0, -2.0, choices=("red", "red", "green"))
    assert (twice.score, twice.ties) == (1.0, 0)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_likelihood_that_is_no_number_is_a_failure(place):
    values = [-1.0, -2.0, -3.0]
    values[place] = float("nan")
    with pytest.raises(ModelError, match="not a number"):
        likelihoods(*values)


def test_a_metric_that_gives_no_number_is_a_failure(tmp_path, monkeypatch):
    from dataclasses import replace

    benchmark = Questions(four_questions())
    benchmark.metric = replace(benchmark.metric, score=lambda text, answers: float("nan"))
    with pytest.raises(DataError, match="gave nan"):
        evaluate(FakeModel(SEEING, BLIND), benchmark, progress=False)


def test_old_results_without_the_later_fields_load(tmp_path):
    run(four_questions()).save(tmp_path)
    data = json.loads((tmp_path / "result.json").read_text())
    for name in ("lookup", "lookup_found", "best_control", "gain", "too_long", "ties"):
        del data[name]
    for kind in data["by_kind"].values():
        del kind["lookup"]
    (tmp_path / "result.json").write_text(json.dumps(data))
    rows = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    for row in rows:
        del row["lookup_score"], row["too_long"], row["tied"]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    old = Result.load(tmp_path)
    assert (old.lookup, old.gain, old.too_long, old.score) == (None, None, [], 0.75)
