"""All evaluations of a run, where it has several or some on schedule: scores, controls, times."""

from __future__ import annotations

from typing import Any

from diptych.report import evaluation
from diptych.report.run_folder import RunFolder, dicts, number, text
from diptych.report.wording import NO_BREAK, count, interval, percent, points

TITLE = "All evaluations"
LABEL = "Evaluations"
ORDER = 15
NEEDS = ("evaluations.json",)
OPTIONAL = True

TIMES = ("before", "after", "blind")


def view(run: RunFolder) -> dict[str, Any] | None:
    """One row an evaluation; what was measured on schedule is a list of steps and scores."""
    rows = [_row(fields) for fields in dicts(run.tree(NEEDS[0]).get("evaluations"))]
    return {"rows": rows} if rows else None


def _row(fields: dict[str, Any]) -> dict[str, Any]:
    scores = {time: evaluation.Score.read(fields.get(time)) for time in TIMES}
    after, change = scores["after"], evaluation.Score.read(fields.get("difference"))
    best = text(fields.get("best_control"), 40)
    control = evaluation.Score.read(fields.get(best)) if best in evaluation.CONTROLS else None
    schedule = [
        f"{count(int(step))}: {percent(score.score, 1)}"
        for entry in dicts(fields.get("schedule"))
        if (step := number(entry.get("step"))) is not None
        and (score := evaluation.Score.read(entry)) is not None
    ]
    return {
        "name": text(fields.get("name"), 80),
        "metric": text(fields.get("metric"), 80),
        "scores": {t: percent(s.score, 1) if s else "" for t, s in scores.items()},
        "interval": interval(after.low, after.high) if after else "",
        "control": f"{percent(control.score, 1)} ({best})" if control else "",
        "difference": f"{points(change.score)}{NO_BREAK}points" if change else "",
        "n": count(after.n if after else None),
        "schedule": schedule,
    }
