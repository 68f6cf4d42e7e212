"""The command line: help, streams, exit codes, and no traceback for a user's mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import typer
import yaml
from typer.testing import CliRunner

from diptych.cli.main import app
from diptych.recipe import load
from tests.equivalence import tiny_run

ROOT = typer.main.get_command(app)
COMMANDS = [[n] for n, c in ROOT.commands.items() if not hasattr(c, "commands")] + [
    ["data", n] for n in ROOT.commands["data"].commands
]


def run(*words, **environment):
    return subprocess.run(
        [sys.executable, "-m", "diptych", *map(str, words)], capture_output=True, text=True,
        timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_has_an_example(words):
    result = CliRunner().invoke(app, [*words, "--help"])
    assert result.exit_code == 0
    assert "Example" in result.output and "diptych " + " ".join(words) in result.output


@pytest.fixture
def recipe_file(tiny_config, squares, tmp_path):
    values = {
        "name": "tiny",
        "model": tiny_config(),
        "stages": [tiny_run.stage(squares)],
        "trackers": [],
    }
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def mistakes(file, folder):
    (folder / "bad.yaml").write_text("name: x\nstages: [\n")
    (folder / "bad.png").write_bytes(b"<html>")
    return {
        "unknown recipe": (["train", "quickstrat"], "PartNotFound", "did you mean"),
        "bad yaml": (["train", folder / "bad.yaml"], "ConfigError", "bad.yaml:3"),
        "bad set": (["show", file, "--set", "stages.instruct.learning_rat=1"], "ConfigError", "did you mean"),
        "no equals": (["show", file, "--set", "seed"], "ConfigError", "assigns nothing"),
        "missing data": (["data", "check", folder / "none.json"], "DataError", "none.json"),
        "missing model": (["eval", folder / "none", folder / "none.json"], "WeightsNotFound", "none"),
        "missing picture": (["chat", "m", folder / "none.png"], "MissingImage", "none.png"),
        "two layouts": (["convert", "m", "o", "--to", "a", "--from", "b"], "ConfigError", "either"),
        "half a writer": (["data", "charts", folder / "c", "--writer", "http://x"], "ConfigError", "belong together"),
        "nothing to compare": (["compare", folder, folder], "DataError", "no evaluation"),
    }  # fmt: skip


def test_mistakes_are_named_without_a_traceback(recipe_file, tmp_path):
    runner = CliRunner()
    for name, (words, error, says) in mistakes(recipe_file, tmp_path).items():
        result = runner.invoke(app, [*map(str, words), "--json"])
        assert result.exit_code == 2, (name, result.output)
        values = json.loads(result.stdout)
        assert values["error"] == error, (name, values)
        assert says in json.dumps(values), (name, values)
        assert error in result.stderr and "Traceback" not in result.output, name


@pytest.mark.slow
def test_streams_of_a_real_process(recipe_file):
    done = run("show", recipe_file, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["name"] == "tiny"
    done = run("train", "quickstrat")
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    done = run("show", recipe_file, "--bogus", "--json")
    assert done.returncode == 2 and json.loads(done.stdout)["error"] == "UsageError"
    assert "--bogus" in json.loads(done.stdout)["message"]


@pytest.mark.slow
def test_a_plan_needs_no_network_and_no_weights(tmp_path):
    done = run(
        "show", "quickstart", "--plan", "--json", DIPTYCH_CACHE=str(tmp_path), DIPTYCH_OFFLINE="1"
    )
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["parameters"]["total"] == sum(
        v for k, v in plan["parameters"].items() if k != "total"
    )
    assert plan["tokens_per_image"] == 1 + 48  # the whole picture, and places
    stages = [stage["stage"] for stage in plan["stages"]]
    assert stages == ["read", "align", "practise", "instruct"]
    assert list(tmp_path.iterdir()) == []


def test_rejected_rows_exit_1_and_still_print_json(squares, tmp_path):
    rows = json.loads((squares / "train.json").read_text())[:3]
    rows[1]["image"] = "none.png"
    (tmp_path / "d.json").write_text(json.dumps(rows))
    words = [
        "data",
        "check",
        str(tmp_path / "d.json"),
        "--images",
        str(squares / "images"),
        "--json",
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    assert [r["error"] for r in json.loads(result.stdout)["rejects"]] == ["MissingImage"]


@pytest.mark.slow
def test_sigterm_saves_and_says_resume_me(recipe_file, tmp_path):
    folder = tmp_path / "run"
    words = [
        "train",
        str(recipe_file),
        "--run",
        str(folder),
        "--json",
        "--set",
        "stages.instruct.num_steps=100000",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "diptych", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 100
    while not (folder / "metrics.jsonl").is_file() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert json.loads(out)["error"] == "Interrupted"
    checkpoints = list((folder / "checkpoints").iterdir())
    assert len(checkpoints) == 1
    assert load(str(folder)).name == "tiny"


@pytest.mark.parametrize("kind", ["dual", "captioner", "query"])
def test_every_model_with_vectors_compares_pictures_and_texts(kind, request, squares, tmp_path):
    from diptych.model.architecture import config_from_dict
    from diptych.model.folder import build, save_model

    values = request.getfixturevalue("tiny_" + kind)()
    config = config_from_dict({"name": "dual_encoder", **values})
    model = build(config, seed=1)
    save_model(model, tmp_path / "model")
    picture = sorted((squares / "images").iterdir())[0]
    words = ["eval", str(tmp_path / "model"), "--image", str(picture)]
    words += ["--text", "a red square", "--text", "a blue one", "--json"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    wanted = model.similarity([picture], ["a red square", "a blue one"])
    assert found["similarity"][0] == pytest.approx(wanted[0].tolist(), abs=1e-6)
    shares = (wanted * model.scale()).softmax(1)
    assert found["share"][0] == pytest.approx(shares[0].tolist(), abs=1e-5)
    assert model.command is not None and model.command.startswith("diptych eval {} --image")
