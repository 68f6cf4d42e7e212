"""Normalisation by worked examples; the published scores are in tests/conformance."""

from __future__ import annotations

import pytest

from diptych.eval.answer_text import (
    CONTRACTIONS,
    edit_distance,
    evalai,
    leave_one_out_accuracy,
    process_digits_and_articles,
    process_punctuation,
)
from diptych.eval.metrics import exact, relaxed


@pytest.mark.parametrize(
    "matches, accuracy", [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)]
)
def test_leave_one_out_accuracy_for_ten_answers(matches, accuracy):
    answers = ["dog"] * matches + ["cat"] * (10 - matches)
    assert leave_one_out_accuracy("dog", answers) == pytest.approx(accuracy, abs=1e-12)


@pytest.mark.parametrize(
    "left, right, distance",
    [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("东京", "东", 1)],
)
def test_edit_distance(left, right, distance):
    assert edit_distance(left, right) == edit_distance(right, left) == distance


def test_contractions_hold_the_published_oddities():
    assert CONTRACTIONS["dont"] == "don't"
    assert CONTRACTIONS["'ow'sat"] == "'ow's'at"
    assert CONTRACTIONS["somebody'd"] == "somebodyd"
    assert process_digits_and_articles("Im the two") == "im 2"  # "Im" is lower-cased first


def test_punctuation_is_deleted_beside_blanks_and_blanked_inside_words():
    assert process_punctuation("t-shirt") == "t shirt"
    assert process_punctuation("red - blue") == "red  blue"
    assert process_punctuation("1,000.5") == "1000.5"
    assert process_punctuation("1,,000") == "1  000"
    assert process_punctuation("1,,000", comma_runs=True) == "1000"
    assert process_punctuation("." * 40) == "." * 8  # only the first 32 dots


def test_evalai_splits_words_first():
    assert evalai("It's red,white?") == "it 's redwhite"


@pytest.mark.parametrize(
    "prediction, answer, right",
    [
        (" Blue. ", "blue", True),
        ("蓝色。", "蓝色", True),
        ("bar  chart", "Bar chart", True),
        ("STRASSE", "straße", True),
        ("1,000", "1000", False),
        ("", "blue", False),
        ("...", ".", False),
    ],
)
def test_exact(prediction, answer, right):
    assert exact.score(prediction, ["something else", answer]) == float(right)


@pytest.mark.parametrize(
    "prediction, answer, right",
    [
        ("105", "100", True),
        ("105.01", "100", False),
        ("50%", "0.5", True),
        ("50%", "50", False),
        ("0.0", "0", False),
        ("2009", "1995", True),
        ("1,000", "1000", False),
        ("Blue", "blue", True),
    ],
)
def test_relaxed(prediction, answer, right):
    assert relaxed.score(prediction, [answer]) == float(right)
    assert relaxed.score(prediction, ["no such answer", answer]) == float(right)
