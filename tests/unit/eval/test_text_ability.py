"""Perplexity and the multiple-choice file. The model is a fake with known likelihoods."""

from __future__ import annotations

import math

import pytest
from eval_fake_model import FakeModel

from diptych.errors import DataError, FormatError
from diptych.eval.benchmarks.choices import Choices, read_items, subject_of
from diptych.eval.text import held_out_texts, perplexity, text_ability

CSV = """Which is red?,rose,sky,grass,snow,A
"Two, or three?",1,2,3,4,B
"""


def test_perplexity_of_a_uniform_model_is_its_vocabulary():
    text = "é" * 8  # 16 bytes
    model = FakeModel(texts={text: (-10 * math.log(32), 10)})
    figures = perplexity(model, {"uniform": text})["uniform"]
    assert figures["perplexity"] == pytest.approx(32.0)
    assert figures["bits_per_byte"] == pytest.approx(50 / 16)
    with pytest.raises(DataError, match="no token"):
        perplexity(FakeModel(texts={"": (0.0, 0)}), {"empty": ""})


def test_the_shipped_texts_are_english_and_chinese():
    texts = held_out_texts()
    assert list(texts) == ["english", "chinese"]
    assert 300 < len(texts["english"].split()) < 500
    assert len(texts["chinese"]) > 300


def test_text_ability_with_a_choices_file(tmp_path):
    path = tmp_path / "colours_test.csv"
    path.write_text(CSV, encoding="utf-8")
    right, wrong = {"A": -1, "B": -2, "C": -3, "D": -4}, {"A": -1, "B": -2, "C": -3, "D": -4}
    model = FakeModel(
        texts={text: (-100.0, 50) for text in held_out_texts().values()},
        likelihoods={"colours:0": right, "colours:1": wrong},
    )
    ability = text_ability(model, choices=path, progress=False)
    assert ability.perplexity == pytest.approx(math.e**2)
    assert ability.choices.score == 0.5
    assert ability.choices.by_kind["colours"].n == 2
    assert ability.to_dict()["choices"]["after"]["n"] == 2


def test_choices_from_a_folder_with_shots(tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "dev").mkdir()
    (tmp_path / "test/high_colours_test.csv").write_text("question,A,B,C,D,answer\n" + CSV)
    (tmp_path / "dev/high_colours_dev.csv").write_text("First?,a,b,c,d,D\n")
    samples = list(Choices(tmp_path / "test", dev=tmp_path / "dev", num_shots=1).samples())
    assert [s.id for s in samples] == ["high_colours:0", "high_colours:1"]
    assert samples[1].turns[0].text == (
        "The following are multiple choice questions (with answers) about high colours.\n\n"
        "First?\nA. a\nB. b\nC. c\nD. d\nAnswer: D\n\n"
        "Two, or three?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"
    )
    with pytest.raises(DataError, match="2 worked examples wanted, the dev file has 1"):
        Choices(tmp_path / "test", dev=tmp_path / "dev", num_shots=2)
    with pytest.raises(DataError, match="no dev file"):
        Choices(tmp_path / "test", num_shots=1)
    with pytest.raises(DataError, match="no .csv"):
        Choices(tmp_path)


@pytest.mark.parametrize(
    "content, line",
    [
        (b"q,a,b,c,d,A\nq,a,b,c,A\n", 2),
        (b"q,a,b,c,d,E\n", 1),
        (b"q,a,b,c,d,AB\n", 1),
        (b"q,a,b,c,d,A\nq\x00,a,b,c,d,A\n", 2),
        (b"q,a,b,c,d,A\nq,\xff,b,c,d,A\n", 2),
        (b'"q,a,b,c,d,A\n', 1),
    ],
)
def test_faulty_rows_are_named_with_their_line(tmp_path, content, line):
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=rf"x\.csv:{line}"):
        list(read_items(path))


def test_subject_of(tmp_path):
    assert subject_of(tmp_path / "high_school_geography_test.csv") == "high_school_geography"
    assert subject_of(tmp_path / "astronomy.csv") == "astronomy"
