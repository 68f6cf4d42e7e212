"""What it cost: time by phase and peak memory."""

from __future__ import annotations

from typing import Any

from diptych.report import evaluation
from diptych.report.run_folder import RunFolder, number
from diptych.report.wording import duration, percent, size

TITLE = "What it cost"
LABEL = "Cost"
ORDER = 80
NEEDS = ("timings.json",)


def view(run: RunFolder) -> dict[str, Any] | None:
    """Phases in the order they ran, each with its share of the whole."""
    fields = run.tree("timings.json")
    phases = evaluation.phases(run)
    listed = sum(seconds for _, seconds in phases)
    total = number(fields.get("seconds"))
    peak = number(fields.get("peak_memory_bytes"))
    if not phases and total is None and peak is None:
        return None
    whole = max(total or 0.0, listed)
    rows, start = [], 0.0
    for name, seconds in phases:
        share = seconds / whole if whole > 0 else 0.0
        rows.append(
            {
                "name": name,
                "seconds": duration(seconds),
                "share": percent(share),
                "start": start,
                "width": share,
            }
        )
        start += share
    return {
        "rows": rows,
        "total": duration(total if total is not None else listed),
        "peak_memory": size(peak),
    }
