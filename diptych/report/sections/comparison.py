"""Before and after training, beside the controls, with intervals and the paired test."""

from __future__ import annotations

from typing import Any

from diptych.report import evaluation
from diptych.report.run_folder import RunFolder, number, text
from diptych.report.wording import NO_BREAK, count, interval, percent, points, probability

TITLE = "Before and after"
LABEL = "Before and after"
ORDER = 10
NEEDS = ("evaluation.json",)


def view(run: RunFolder) -> dict[str, Any] | None:
    """Rows of scores and one sentence on the paired difference."""
    found = evaluation.read(run)
    if not found.scores:
        return None
    change = found.difference
    rows = [
        {
            "name": name,
            "label": found.names[name],
            "score": percent(score.score, 1),
            "interval": interval(score.low, score.high),
            "n": count(score.n),
        }
        for name, score in found.scores.items()
    ]
    return {
        "rows": rows,
        "paired": f"{points(change.score)}{NO_BREAK}points" if change else "",
        "paired_detail": _paired_detail(found),
        "gained": number(found.fields.get("gained")),
        "lost": number(found.fields.get("lost")),
        "metric": text(found.fields.get("metric"), 80),
        "questions": evaluation.questions(found),
        "methods": [
            (control, _method(text(found.fields.get(key))))
            for control in evaluation.CONTROLS
            if found.fields.get(key := f"{control}_method")
        ],
        "notes": evaluation.notes(found),
        "verdict": evaluation.verdict(found),
    }


def _method(counted: str) -> str:
    """How a control answers; of one that counts answers the evaluation says which."""
    counts = counted.startswith(("training answers", "evaluated answers"))
    return f"the most frequent of the {counted}" if counts else counted


def _paired_detail(found: evaluation.Evaluation) -> str:
    """Interval and p-value of the paired difference, as far as they were measured."""
    change, p_value = found.difference, number(found.fields.get("p_value"))
    details = []
    if change is not None and change.low is not None and change.high is not None:
        low, high = points(change.low), points(change.high)
        details.append(f"95{NO_BREAK}% interval {low} to {high}")
    if p_value is not None:
        details.append(probability(p_value))
    return ", ".join(details)
