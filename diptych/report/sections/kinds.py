"""The result split by question kind: where the model learned, and where it did not."""

from __future__ import annotations

from typing import Any

from diptych.report import evaluation
from diptych.report.run_folder import RunFolder
from diptych.report.wording import count, interval, percent, points

TITLE = "By kind of question"
LABEL = "Kinds"
ORDER = 20
NEEDS = ("evaluation.json",)


def view(run: RunFolder) -> dict[str, Any] | None:
    """One row a kind, with every contender's score and the distance to the best control."""
    kinds = evaluation.read(run).kinds
    if not kinds:
        return None
    rows = []
    for kind, scores in kinds.items():
        after = scores.get("after")
        controls = [scores[name].score for name in evaluation.CONTROLS if name in scores]
        beyond = after.score - max(controls) if after and controls else None
        rows.append(
            {
                "kind": kind,
                "n": count(evaluation.num_questions(scores) or None),
                "scores": scores,
                "after": percent(after.score if after else None),
                "interval": interval(after.low, after.high) if after else "",
                "before": percent(scores["before"].score if "before" in scores else None),
                "blind": percent(scores["blind"].score if "blind" in scores else None),
                "majority": percent(scores["majority"].score if "majority" in scores else None),
                "lookup": percent(scores["lookup"].score if "lookup" in scores else None),
                "beyond": points(beyond),
                "below": beyond is not None and beyond <= 0,
            }
        )
    return {"rows": rows, "summary": _summary(rows)}


def _summary(rows: list[dict[str, Any]]) -> str:
    behind = [row["kind"] for row in rows if row["below"]]
    if behind:
        return "No better than a control: " + ", ".join(behind) + "."
    if all(row["beyond"] != points(None) for row in rows):
        return "Better than every control on every kind."
    return ""
