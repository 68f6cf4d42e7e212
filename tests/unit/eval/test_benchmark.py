"""Benchmarks are found by file name and keep the contract's defaults."""

from __future__ import annotations

import pytest
from eval_fake_model import question

from diptych import parts
from diptych.data.sample import Image, Sample, Text, Turn
from diptych.errors import DataError, PartNotFound
from diptych.eval import benchmark
from diptych.eval.benchmarks.questions import Questions


@pytest.mark.parametrize("name", parts.names(benchmark.FOLDER))
def test_every_file_is_one_benchmark(name):
    found = benchmark.find(name)
    assert issubclass(found, benchmark.Benchmark)
    assert "Source" in (parts.find(benchmark.FOLDER, name).__doc__ or "")


def test_a_module_without_a_benchmark_is_refused(monkeypatch):
    monkeypatch.setenv("DIPTYCH_PARTS", "diptych")
    with pytest.raises(PartNotFound, match="no subclass"):
        benchmark.find("diptych.errors")


def test_prompt_answers_and_kind():
    sample = question(1, "3", image="a.png")
    questions = Questions([sample])
    assert questions.prompt(sample).answer == ""
    assert next(questions.prompt(sample).images()).path == "a.png"
    assert questions.answers(sample) == ["3"]
    assert questions.answers(question(1, "3", answers=["three", "3"])) == ["three", "3"]
    assert questions.kind(sample) == "all"
    assert questions.kind(question(1, "3", kind="count")) == "count"
    with pytest.raises(DataError, match="data.jsonl:7"):
        questions.answers(question(7, ""))


def test_working_before_the_answer_is_not_scored():
    asked = Questions([question(1, "3")], answer_after=" = ")
    assert asked.score("Mon atA ; Tue atB = 3", question(1, "3")) == 1.0
    assert asked.score("a = b = 3", question(1, "3")) == 1.0
    assert asked.score("3", question(1, "3")) == 1.0
    # With or without a blank behind the mark, as Chinese is written.
    tight = Questions([question(1, "yes")], answer_after=" =")
    assert tight.score("Mon = yes", question(1, "yes")) == 1.0
    assert tight.score("Mon =yes", question(1, "yes")) == 1.0
    assert asked.score("3 = 4", question(1, "3")) == 0.0
    # The data may show working too.
    assert asked.answers(question(1, "Mon atA = 3")) == ["3"]
    plain = Questions([question(1, "3")])
    assert plain.score("Mon = 3", question(1, "3")) == 0.0


def test_captions_of_one_picture_are_the_references_of_one_question():
    def said(number, picture, caption):
        turns = (Turn("user", (Image(picture),)), Turn("assistant", (Text(caption),)))
        return Sample(str(number), turns)

    rows = [said(0, "a", "one"), said(1, "b", "three"), said(2, "a", "two"), said(3, "a", "one")]
    grouped = Questions(rows, metric="coco_captions")
    assert [s.id for s in grouped.samples()] == ["0", "1"]
    assert [grouped.answers(s) for s in grouped.samples()] == [["one", "two", "one"], ["three"]]
    # Other metrics ask every row.
    assert len(list(Questions(rows, metric="exact").samples())) == 4
