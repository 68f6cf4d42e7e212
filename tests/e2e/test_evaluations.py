"""Several evaluations of a run: before, on schedule, after; and benchmarks by name."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from diptych.cli.main import app
from diptych.cli.summary import show_summary
from diptych.config import read_file
from diptych.errors import ConfigError
from diptych.eval import benchmark
from diptych.model.architecture import config_from_dict
from diptych.model.folder import build, save_model
from diptych.recipe import Recipe
from diptych.report.run_folder import RunFolder
from diptych.report.section import fill_all
from tests.equivalence import tiny_run
from tests.equivalence.test_ranks import torchrun

OWN = '''"""Colours by heart. Source: made for this test."""
from diptych.data.sample import Sample, Text, Turn
from diptych.eval import metric
from diptych.eval.benchmark import Benchmark


class Colours(Benchmark):
    name = "colours"
    metric = metric.find("exact")
    max_new_tokens = 2

    def samples(self):
        return [
            Sample(str(n), (Turn("user", (Text("What colour?"),)), Turn("assistant", (Text(c),))))
            for n, c in enumerate(("red", "green", "blue"))
        ]
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A benchmark of somebody's own package."""
    (tmp_path / "colour_tests").mkdir()
    (tmp_path / "colour_tests" / "__init__.py").write_text("")
    (tmp_path / "colour_tests" / "colours.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("DIPTYCH_PARTS", "colour_tests")
    return "colour_tests.colours"


@pytest.fixture
def choices(tmp_path):
    rows = [f'"Question {n}?",red,green,blue,yellow,{"ABCD"[n % 4]}' for n in range(5)]
    file = tmp_path / "colours_test.csv"
    file.write_text("\n".join(rows) + "\n")
    return file


def invoke(*words, code=0):
    result = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def values(tiny_config, squares, **more):
    return {
        "name": "tiny", "model": tiny_config(), "trackers": [],
        "stages": [
            tiny_run.stage(squares, num_steps=3),
            {**tiny_run.stage(squares, num_steps=2), "name": "second"},
        ],
        **more,
    }  # fmt: skip


def questions(squares, **more):
    data = {"path": str(squares / "train.json"), "images": str(squares / "images")}
    return {"data": data, "max_new_tokens": 2, **more}


def train(folder, tree, run):
    folder.mkdir(exist_ok=True)
    (folder / "r.yaml").write_text(yaml.safe_dump(tree))
    return invoke("train", folder / "r.yaml", "--run", run)


def test_a_list_of_evaluations_runs_at_its_times(
    tiny_config, squares, choices, own, tmp_path, capsys
):
    tree = values(
        tiny_config, squares,
        evaluations=[
            questions(squares, name="squares", limit=5, every_steps=2),
            {"benchmark": "choices", "data": {"path": str(choices)}, "name": "mmlu"},
            {"benchmark": own, "before": False, "every_steps": 3, "limit": 2},
        ],
    )  # fmt: skip
    run = tmp_path / "run"
    summary = train(tmp_path, tree, run)
    squares_, mmlu, colours = summary["evaluations"]
    assert [e["name"] for e in summary["evaluations"]] == ["squares", "mmlu", "colours"]
    assert [s["step"] for s in squares_["schedule"]] == [2, 4]  # counted over both stages
    assert [s["step"] for s in colours["schedule"]] == [3] and mmlu["schedule"] == []
    show_summary(summary)
    assert "all evaluations" in (said := capsys.readouterr().out) and "mmlu" in said
    assert summary["after"] == squares_["after"] and summary["before"] == squares_["before"]
    assert squares_["n"] == 5 and mmlu["n"] == 5 and colours["n"] == 2
    assert mmlu["how"] == "likelihood" and mmlu["before"] and mmlu["difference"]
    assert colours["before"] is None and "difference" not in colours
    for folder in ("before", "after", "step-000002", "step-000004", "mmlu/before", "mmlu/after",
                   "colours/step-000003", "colours/after"):  # fmt: skip
        assert (run / "eval" / folder / "result.json").is_file(), folder
    assert read_file(run / "evaluations.json")["evaluations"] == summary["evaluations"]
    lines = [json.loads(t) for t in (run / "metrics.jsonl").read_text().splitlines()]
    seen = [(x["stage"], x["step"], {k for k in x if k.startswith("evaluations.")}) for x in lines
            if "loss" not in x]  # fmt: skip
    assert seen == [
        ("instruct", 2, {"evaluations.squares"}), ("instruct", 3, {"evaluations.colours"}),
        ("second", 1, {"evaluations.squares"}),
    ]  # fmt: skip
    sections = {s.name: s.view for s in fill_all(RunFolder(run))}
    assert [row["name"] for row in sections["evaluations"]["rows"]] == [
        "squares",
        "mmlu",
        "colours",
    ]
    assert dict(sections["curves"]["facts"])["Optimizer steps"] == "5"
    page = (run / "report.html").read_text()
    assert "All evaluations" in page and "Score while it learned, squares" in page
    # Nothing is measured twice.
    stamp = (run / "eval" / "mmlu" / "after" / "result.json").stat().st_mtime_ns
    again = train(tmp_path, tree, run)
    assert again["evaluations"] == summary["evaluations"]
    assert (run / "eval" / "mmlu" / "after" / "result.json").stat().st_mtime_ns == stamp


def test_looking_changes_nothing(tiny_config, squares, tmp_path):
    for name, evaluations in (
        ("seen", [questions(squares, limit=3, every_steps=1, before=False, after=False)]),
        ("alone", []),
    ):
        train(tmp_path / name, values(tiny_config, squares, evaluations=evaluations), tmp_path / name / "run")  # fmt: skip
    seen, alone = (
        load_file(tmp_path / name / "run" / "model" / "model.safetensors")
        for name in ("seen", "alone")
    )
    assert seen.keys() == alone.keys() and all(seen[k].equal(alone[k]) for k in seen)


def test_one_evaluation_is_short_for_a_list_of_one(tiny_config, squares):
    one = questions(squares, limit=3)
    short = Recipe.from_dict(values(tiny_config, squares, evaluation=one))
    both = Recipe.from_dict(
        values(tiny_config, squares, evaluation=one, evaluations=[{**one, "name": "b"}])
    )
    assert [e.label for e in short.measured] == ["train"]
    assert [e.label for e in both.measured] == ["train", "b"]
    assert both.override(["evaluations.b.limit=7"]).measured[1].limit == 7


@pytest.mark.parametrize(
    ("wrong", "says", "where"),
    [
        ({"benchmark": "choises"}, "no 'choises'", "benchmark"),
        ({"metric": "exakt"}, "no 'exakt'", "metric"),
        ({"benchmark": "choices", "data": None}, "needs data", "data"),
        ({"before": False, "after": False}, "neither before nor after", ""),
        ({"name": "after"}, "means a time", "name"),
        ({"how": "retrieval", "data": None}, "needs data", "data"),
        ({"name": "other"}, "two evaluations are called 'other'", ""),
    ],
)
def test_what_cannot_be_measured_is_said_at_once(tiny_config, squares, wrong, says, where):
    listed = [questions(squares, name="other"), questions(squares, **{"name": "mine", **wrong})]
    with pytest.raises(ConfigError, match=says) as caught:
        Recipe.from_dict(values(tiny_config, squares, evaluations=listed))
    assert where in str(caught.value.where or "")


def test_the_command_line_reaches_a_benchmark_by_name(
    tiny_config, choices, own, tmp_path, monkeypatch
):
    save_model(build(config_from_dict(tiny_config())), tmp_path / "model")
    found = invoke("eval", tmp_path / "model", "choices", "--data", choices)
    assert (
        found["benchmark"] == "choices"
        and found["how"] == "likelihood"
        and found["after"]["n"] == 5
    )
    assert invoke("eval", tmp_path / "model", own)["benchmark"] == "colours"
    lost = invoke("eval", tmp_path / "model", "choices", code=2)
    assert lost["error"] == "ConfigError" and "--data" in lost["fix"]
    unknown = invoke("eval", tmp_path / "model", "choises", "--data", choices, code=2)
    assert unknown["error"] == "PartNotFound" and "did you mean 'choices'" in unknown["fix"]
    # A file of that name is data, as every path is.
    turns = [{"role": "user", "content": "What colour?"}, {"role": "assistant", "content": "red"}]
    (tmp_path / "choices").write_text(json.dumps({"id": "a", "messages": turns}) + "\n")
    monkeypatch.chdir(tmp_path)
    assert benchmark.is_name("choices")
    assert (
        invoke("eval", "model", "choices", "--format", "messages", "--max-new-tokens", "2")["how"]
        == "generate"
    )


@pytest.mark.slow
@pytest.mark.skipif(torch.accelerator.is_available(), reason="counts processes without one")
def test_one_of_two_processes_measures_on_schedule(tiny_config, squares, tmp_path):
    tree = values(tiny_config, squares, evaluations=[questions(squares, limit=3, every_steps=2)])
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(tree))
    done = torchrun("train", tmp_path / "r.yaml", "--run", tmp_path / "run", "--json")
    assert done.returncode == 0, done.stderr
    [found] = json.loads(done.stdout)["evaluations"]
    assert [s["step"] for s in found["schedule"]] == [2, 4] and found["after"]["n"] == 3
