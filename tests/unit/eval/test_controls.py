"""The look-up and the majority: what is counted, where, and what is claimed against them."""

from __future__ import annotations

import pytest
from eval_fake_model import FakeModel, question

from diptych.data.sample import Sample, Text, Turn
from diptych.eval.benchmarks.questions import Questions
from diptych.eval.compare import compare
from diptych.eval.runner import evaluate


def asked(*rows):
    """(question, answer, kind) -> samples with a picture each."""
    return [
        question(i, answer, image=f"{i}.png", kind=kind, text=text)
        for i, (text, answer, kind) in enumerate(rows)
    ]


def run(samples, train=None, metric="exact", said="?"):
    model = FakeModel({s.id: said for s in samples}, {s.id: said for s in samples})
    benchmark = Questions(samples, metric=metric)
    return evaluate(model, benchmark, train=train, progress=False)


TRAIN = asked(
    ("Is it round?", "yes", "shape"), ("Is it round?", "yes", "shape"),
    ("is it  ROUND?", "no", "shape"), ("Is it green?", "no", "shape"),
    ("Is it blue?", "no", "shape"), ("Which colour?", "red", "colour"),
)  # fmt: skip


def test_the_same_question_text_is_looked_up_in_the_training_answers():
    test = asked(
        ("Is it round?", "yes", "shape"),  # seen: yes twice, no once
        ("IS IT ROUND?", "no", "shape"),  # the same text but for case
        ("Is it big?", "no", "shape"),  # not seen: the majority of the kind is no
        ("What is it?", "no", "thing"),  # neither seen nor a known kind: no over all
    )
    result = run(test, TRAIN)
    assert [r.lookup_score for r in result.records] == [1.0, 0.0, 1.0, 1.0]
    assert [r.majority_score for r in result.records] == [0.0, 1.0, 1.0, 1.0]
    assert (result.lookup.score, result.lookup.n, result.lookup_found) == (0.75, 4, 2)
    assert result.by_kind["thing"].lookup == 1.0


def test_a_gain_is_claimed_against_the_best_of_the_three():
    test = asked(("Is it round?", "yes", "shape"), ("Is it green?", "no", "shape"))
    result = run(test, TRAIN, said="yes")
    assert (result.score, result.majority.score, result.lookup.score) == (0.5, 0.5, 1.0)
    assert result.best_control == "lookup" and result.gain.score == -0.5
    compared = compare(result, result).controls
    assert compared["after"]["best_control"] == "lookup"
    assert compared["after"]["gain"] == result.gain.to_dict()


def test_all_turns_of_the_training_conversations_are_counted():
    turns = ("Is it big?", "yes", "Which colour?", "blue", "And now?", "red")
    roles = ["user", "assistant"] * 3
    talk = Sample("t", tuple(Turn(r, (Text(t),)) for r, t in zip(roles, turns, strict=True)))
    result = run(asked(("Is it big?", "yes", None), ("Which colour?", "blue", None)), [talk])
    assert result.lookup.score == 1.0 and result.lookup_found == 2


def test_without_training_data_the_own_answer_is_left_out():
    once = run(asked(("a?", "yes", "k"), ("b?", "no", "k"), ("c?", "yes", "k")))
    assert once.lookup_found == 0 and once.lookup == once.majority
    twice = run(asked(("a?", "yes", "k"), ("a?", "no", "k"), ("a?", "yes", "k"), ("b?", "no", "k")))
    # yes: {no, yes} tie, no: {yes}, yes: {no, yes} tie; b falls back to the tie of the kind.
    assert [r.lookup_score for r in twice.records] == [0.5, 0.0, 0.5, 0.5]


@pytest.mark.parametrize("order", [1, -1])
def test_equally_frequent_answers_score_their_mean_in_any_order(order):
    train = asked(("a?", "yes", "k"), ("a?", "no", "k"))[::order]
    result = run(asked(("a?", "yes", "k"), ("a?", "yes", "k"), ("a?", "no", "k")), train)
    assert (result.majority.score, result.lookup.score) == (0.5, 0.5)


def test_texts_count_as_the_metric_compares_them():
    train = [question(i, "two", text="How many are there", answers=["Two."] * 6 + ["2"] * 4)
             for i in range(3)]  # fmt: skip
    test = [question(9, "2", image="a.png", text="how many are there?", answers=["2"] * 9 + ["3"])]
    result = run(test, train, metric="vqav2_lmms")
    assert result.lookup_found == 1 and result.lookup.score == 1.0


def test_training_rows_with_one_answer_count_for_metrics_of_several():
    """Or the control would be empty and any model above it."""
    train = [question(i, "red", text="Which colour?") for i in range(3)]
    test = [question(9, "", image="a.png", text="Which colour?", answers=["red"] * 10)]
    assert run(test, train, metric="vqa_official").majority.score == 1.0


def test_captions_that_all_differ_are_cheap():
    rows = [question(i, f"a picture of {i} birds", image=f"{i}.png", text="") for i in range(300)]
    asked_of = []
    benchmark = Questions(rows)
    score = benchmark.score
    benchmark.score = lambda text, sample: asked_of.append(text) or score(text, sample)
    evaluate(FakeModel({s.id: "x" for s in rows}, {s.id: "x" for s in rows}), benchmark,
             progress=False)  # fmt: skip
    assert len(asked_of) <= 300 * 20
