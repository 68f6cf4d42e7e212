"""How it learned: loss per stage, learning rate and speed over the optimizer steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from diptych.report.plot import Boundary, Chart, Line, line_chart
from diptych.report.run_folder import RunFolder, mapping, number, text
from diptych.report.wording import count, percent, plain, scientific, short_count

TITLE = "How it learned"
LABEL = "Learning"
ORDER = 60
NEEDS = ("metrics.jsonl",)

MAX_LOSSES = 4
_MEASURED = "evaluations."
"""Of metrics.jsonl: scores that were measured on schedule."""


def view(run: RunFolder) -> dict[str, Any] | None:
    """One chart of the loss a stage (their objectives differ), then rate and speed of all."""
    rows = run.rows("metrics.jsonl")
    latest: dict[str, dict[float, dict[str, Any]]] = {}
    for position, row in enumerate(rows):
        stage, step = text(row.get("stage"), 60) or "training", number(row.get("step"))
        # A resumed run repeats the steps since its checkpoint; the repetition is what counts.
        # What was measured after a step is a row of its own, and belongs to that step.
        known = latest.setdefault(stage, {})
        key = -position if step is None else step
        known[key] = {**known.get(key, {}), **row}
    by_stage = {stage: list(steps.values()) for stage, steps in latest.items()}
    charts = [_loss_chart(stage, steps) for stage, steps in by_stage.items()]
    ordered = [row for steps in by_stage.values() for row in steps]
    starts, num_before = [], 0
    for stage, steps in by_stage.items():
        starts.append(Boundary(num_before + 1, stage))
        num_before += len(steps)
    charts.append(
        line_chart(
            "Learning rate",
            [_over_all("learning rate", ordered, "learning_rate")],
            label=scientific,
            from_zero=True,
            boundaries=starts,
        )
    )
    charts.append(
        line_chart(
            "Speed",
            [_over_all("tokens per second", ordered, "tokens_per_second")],
            label=short_count,
            unit="real tokens per second",
            from_zero=True,
            smooth=True,
            boundaries=starts,
        )
    )
    charts += _measured(ordered)
    drawn = [chart for chart in charts if chart is not None]
    if not drawn:
        return None
    facts = _facts(ordered)
    return {"charts": drawn, "facts": facts, "note": run.notes.get("metrics.jsonl", "")}


def _measured(rows: list[dict[str, Any]]) -> list[Chart | None]:
    """One chart for each evaluation that was measured while it learned."""
    names = dict.fromkeys(key for row in rows for key in row if key.startswith(_MEASURED))
    return [
        line_chart(
            f"Score while it learned, {text(name.removeprefix(_MEASURED), 40)}",
            [_over_all("score", rows, name)],
            label=percent,
            from_zero=True,
        )
        for name in names
    ]


def _loss_chart(stage: str, rows: list[dict[str, Any]]) -> Chart | None:
    """The loss and, where the objective has several, up to MAX_LOSSES of its components."""
    names = dict.fromkeys(name for row in rows for name in mapping(row.get("losses")))
    parts = list(names)[:MAX_LOSSES] if len(names) > 1 else []
    lines = [_line("loss", rows, lambda row: row.get("loss"))]
    lines += [_line(text(part, 40), rows, partial(_component, part)) for part in parts]
    # One cursor reads all curves, so a component that is absent from some steps is not drawn.
    lines = [line for line in lines if line.x == lines[0].x]
    return line_chart(f"Loss, {stage}", lines, label=plain, smooth=True)


def _component(name: str, row: dict[str, Any]) -> Any:
    return mapping(row.get("losses")).get(name)


def _line(name: str, rows: list[dict[str, Any]], value: Callable[[dict[str, Any]], Any]) -> Line:
    """Values over the stage's own step numbers; steps without a finite value are left out."""
    pairs = [(number(row.get("step")), number(value(row))) for row in rows]
    whole = [(x if x is not None else k + 1, y) for k, (x, y) in enumerate(pairs) if y is not None]
    return Line(name, [float(x) for x, _ in whole], [y for _, y in whole])


def _over_all(name: str, rows: list[dict[str, Any]], key: str) -> Line:
    """Values over the steps of all stages, counted through."""
    pairs = [(k + 1.0, number(row.get(key))) for k, row in enumerate(rows)]
    return Line(
        name, [x for x, y in pairs if y is not None], [y for _, y in pairs if y is not None]
    )


def _facts(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    def total(key: str) -> float:
        return sum(number(row.get(key)) or 0 for row in rows)

    padding = [(number(r.get("padding_share")), number(r.get("real_tokens"))) for r in rows]
    known = [(share, tokens or 1) for share, tokens in padding if share is not None]
    facts = [("Optimizer steps", count(len(rows)))]
    for label, key in (
        ("Samples", "samples"),
        ("Real tokens", "real_tokens"),
        ("Supervised tokens", "supervised_tokens"),
    ):
        if total(key):
            facts.append((label, short_count(total(key))))
    if known:
        weight = sum(tokens for _, tokens in known)
        mean = sum(share * tokens for share, tokens in known) / weight
        facts.append(("Padding", f"{100 * mean:.1f} %"))
    return facts
