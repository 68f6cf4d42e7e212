"""What is written is JSON for every reader, and says which numbers it could not hold."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from diptych import json_text
from diptych.cli.evaluation import write_json
from diptych.cli.shell import command
from diptych.eval.result import Result, Score, TextAbility
from diptych.progress import Progress
from diptych.train.journal import Journal


def strictly(text):
    """The value of JSON text; the bare words that only Python reads are refused."""

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("value", "plain", "lost"),
    [
        ({"a": NAN}, {"a": None}, {"a": "NaN"}),
        ({"a": {"b": [1, INF, {"c": -INF}]}}, {"a": {"b": [1, None, {"c": None}]}},
         {"a.b[1]": "Infinity", "a.b[2].c": "-Infinity"}),
        ({"a": np.float32("nan"), "b": np.int64(3)}, {"a": None, "b": 3}, {"a": "NaN"}),
        ({"a": (NAN, 0.5)}, {"a": [None, 0.5]}, {"a[0]": "NaN"}),
    ],
)  # fmt: skip
def test_null_stands_for_what_is_not_finite_and_a_note_names_it(value, plain, lost):
    assert strictly(json_text.dumps(value)) == {**plain, "not_finite": lost}


def test_finite_values_are_written_as_they_are():
    value = {"score": 0.5, "n": 3, "ok": True, "none": None, "text": "NaN 中文", "list": [1, 2.5]}
    assert strictly(json_text.dumps(value)) == value and "中文" in json_text.dumps(value)
    assert strictly(json_text.dumps([1.0, NAN])) == [1.0, None]
    assert strictly(json_text.dumps(np.float32(0.5))) == 0.5
    with pytest.raises(TypeError):
        json_text.dumps({"a": object()})


def test_every_command_answers_with_json(capsys):
    @command
    def measured(json=False):
        return {"text": {"perplexity": NAN}, "share": [torch.tensor(INF).item()]}

    measured(json=True)
    assert strictly(capsys.readouterr().out) == {
        "text": {"perplexity": None},
        "share": [None],
        "not_finite": {"text.perplexity": "NaN", "share[0]": "Infinity"},
    }


def test_files_of_a_run_are_json(tmp_path):
    write_json(tmp_path / "evaluation.json", {"difference": {"score": NAN}})
    assert strictly((tmp_path / "evaluation.json").read_text())["difference"] == {"score": None}
    journal = Journal(tmp_path, Progress(tmp_path / "log"), writes=True)
    journal.add({"stage": "s", "step": 1, "loss": NAN, "gradient_norm": INF})
    journal.add({"stage": "s", "step": 2, "loss": 0.5})
    journal.cut("s", 1)
    [line] = journal.metrics.read_text().splitlines()
    assert strictly(line)["not_finite"] == {"loss": "NaN", "gradient_norm": "Infinity"}


def test_a_result_with_numbers_that_are_none_is_saved_and_loaded(tmp_path):
    half = Score(0.5, 0.4, 0.6, 10)
    text = TextAbility({"english": {"perplexity": NAN, "bits_per_byte": INF, "tokens": 3}})
    result = Result(
        benchmark="b", metric="exact", how="generate", overall=half, blind=None, majority=half,
        majority_from="evaluated answers", by_kind={}, aggregates={"f1": NAN}, failures=0,
        blind_failures=0, seconds=1.0, seed=0, limit=None, records=[], text=text,
    )  # fmt: skip
    result.save(tmp_path)
    written = strictly((tmp_path / "result.json").read_text())
    assert written["not_finite"]["aggregates.f1"] == "NaN"
    again = Result.load(tmp_path)
    assert math.isnan(again.aggregates["f1"]) and math.isnan(again.text.perplexity)
    from diptych.cli.measure import result_table

    assert result_table(again)  # can be shown
