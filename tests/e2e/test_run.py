"""A whole run in miniature, through the command line."""

from __future__ import annotations

import json

import pytest
import yaml
from typer.testing import CliRunner

from diptych.cli.main import app


@pytest.fixture
def recipe_file(tiny_config, squares, tmp_path):
    """A short recipe on the squares."""
    values = {
        "name": "squares",
        "model": tiny_config(),
        "stages": [
            {
                "name": "instruct",
                "data": [{"path": str(squares / "train.json"), "images": str(squares / "images")}],
                "learn": {"vision_encoder": {}, "connector": {}, "language_model": {}},
                "num_epochs": 16,
                "global_batch_size": 12,
                "learning_rate": 5e-3,
                "num_workers": 0,
            }
        ],
        "evaluation": {
            "data": {"path": str(squares / "train.json"), "images": str(squares / "images")},
            "max_new_tokens": 4,
        },
    }
    file = tmp_path / "squares.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def test_train_eval_and_repeat(recipe_file, tmp_path):
    runner = CliRunner()
    result = runner.invoke(app, ["train", str(recipe_file), "--runs", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    run = tmp_path / summary["run"].rsplit("/", 1)[-1]
    for name in [
        "recipe.json",
        "environment.json",
        "metrics.jsonl",
        "ledger.json",
        "parameters.json",
        "evaluation.json",
        "timings.json",
        "report.html",
        "model/model.safetensors",
        "model/config.json",
    ]:
        assert (run / name).is_file(), name
    assert summary["after"]["score"] > summary["before"]["score"]
    lines = [json.loads(t) for t in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"] / 2
    assert len(lines) == 64
    ledger = json.loads((run / "ledger.json").read_text())["stages"]["instruct"]
    assert ledger["read"] == ledger["used"] == 48 * 16 and ledger["data"]["read"] == 48
    again = runner.invoke(
        app, ["train", str(run / "recipe.json"), "--runs", str(tmp_path), "--json"]
    )
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["after"] == summary["after"]
