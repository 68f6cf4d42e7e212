"""A model that works something out before it answers: chats show the answer, and keep the rest."""

from __future__ import annotations

import json

import pytest

from diptych.cli.evaluation import _write_records
from diptych.data.text.working import split_working
from diptych.eval.result import Record, Result, Score


@pytest.fixture
def chat(tiny_model, monkeypatch):
    """A session of a model that says given pieces."""

    def make(pieces, mark=" ="):
        model = tiny_model()
        text = model.config.language_model.model_copy(update={"answer_after": mark})
        model.config = model.config.model_copy(update={"language_model": text})
        session = model.chat()
        monkeypatch.setattr(session, "_stream", lambda asked: iter(pieces))
        return session

    return make


@pytest.mark.parametrize(
    ("pieces", "shown", "working"),
    [
        ([" Wed at", "C = W", "ed"], ["Wed"], "Wed atC"),
        ([" a ", "=", " b", " = c"], ["c"], "a = b"),
        ([" no", " mark"], ["no mark"], ""),
        ([" a =", " "], [], "a"),
    ],
)
def test_only_the_answer_is_shown(chat, pieces, shown, working):
    session = chat(pieces)
    assert list(session.stream("?")) == shown and session.working == working


def test_without_a_mark_all_of_it_is_the_answer(chat):
    session = chat([" ", "It is", " red = blue"], mark=None)
    assert session.ask("?") == "It is red = blue" and session.working == ""


def test_split():
    assert split_working("a = b = c", " =") == ("a = b", "c")
    assert split_working("a", " =") == ("", "a") and split_working("a = b", None) == ("", "a = b")


def test_records_of_a_run_have_the_answer_and_the_working_apart(tmp_path):
    said = {"1": " x = 3", "2": "4"}
    records = [Record(n, "?", "3", "", None, n, o) for n, o in said.items()]
    one = Score(1.0, 1.0, 1.0, 2)
    result = Result(
        "b", "exact", "generate", one, None, one, "training answers", {}, {}, 0, 0, 0.0, 0, None,
        records, answer_after=" =",
    )  # fmt: skip
    _write_records(tmp_path, None, result)
    rows = [json.loads(t) for t in (tmp_path / "records_after.jsonl").read_text().splitlines()]
    assert [(r["output"], r.get("working")) for r in rows] == [("3", "x"), ("4", None)]
