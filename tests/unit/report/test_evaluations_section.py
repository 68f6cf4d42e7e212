"""All evaluations of a run on its page, whatever their file holds."""

from __future__ import annotations

import json

import pytest

from diptych.report.page import render
from diptych.report.run_folder import RunFolder
from diptych.report.sections import curves, evaluations

SCORE = {"score": 0.5, "low": 0.4, "high": 0.6, "n": 100}


def written(folder, found):
    (folder / "evaluations.json").write_text(json.dumps({"evaluations": found}))
    return RunFolder(folder)


def test_scores_controls_and_times(tmp_path):
    one = {
        "name": "charts <b>", "metric": "relaxed", "before": {**SCORE, "score": 0.25}, "after": SCORE,
        "blind": {**SCORE, "score": 0.1}, "lookup": {**SCORE, "score": 0.3}, "best_control": "lookup",
        "difference": {"score": 0.25}, "schedule": [{"step": 500, **SCORE, "score": 0.3}],
    }  # fmt: skip
    run = written(tmp_path, [one, {"name": "mmlu", "before": SCORE, "after": None, "schedule": []}])
    first, second = evaluations.view(run)["rows"]
    plain = {k: v.replace("\u00a0", " ") for k, v in first["scores"].items()}
    assert plain == {"before": "25.0 %", "after": "50.0 %", "blind": "10.0 %"}
    assert first["control"].replace("\u00a0", " ") == "30.0 % (lookup)" and first["n"] == "100"
    assert [s.replace("\u00a0", " ") for s in first["schedule"]] == ["500: 30.0 %"]
    assert second["scores"]["after"] == "" and second["schedule"] == []
    page = render(run.path)
    assert "charts &lt;b&gt;" in page and "after step 500" in page


@pytest.mark.parametrize("odd", [None, 3, "x", [], {}, {"score": "x"}, [{"step": "x"}], 1e400])
def test_odd_values_leave_a_page(tmp_path, odd):
    keys = ("name", "metric", "before", "after", "blind", "best_control", "difference", "schedule")
    run = written(tmp_path, [odd, *({key: odd} for key in keys), dict.fromkeys(keys, odd)])
    assert "<html" in render(run.path)


def test_a_step_that_was_measured_is_one_step(tmp_path):
    lines = [
        {"stage": "a", "step": 1, "loss": 3.0, "learning_rate": 0.1, "samples": 4},
        {"stage": "a", "step": 1, "evaluations.x": 0.25},
        {"stage": "a", "step": 2, "loss": 2.0, "learning_rate": 0.1, "samples": 4},
        {"stage": "a", "step": 2, "validation_loss": 1.0, "evaluations.x": 0.5},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    view = curves.view(RunFolder(tmp_path))
    assert dict(view["facts"])["Optimizer steps"] == "2" and dict(view["facts"])["Samples"] == "8"
    assert "Score while it learned, x" in [chart.title for chart in view["charts"]]
