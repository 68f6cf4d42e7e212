"""What was forgotten: text-only ability before and after training."""

from __future__ import annotations

from typing import Any

from diptych.report import evaluation
from diptych.report.run_folder import RunFolder, mapping, number
from diptych.report.wording import NO_BREAK, percent, plain, points

TITLE = "What was forgotten"
LABEL = "Forgotten"
ORDER = 30
NEEDS = ("evaluation.json",)


def view(run: RunFolder) -> dict[str, Any] | None:
    """Perplexity and multiple choice on text alone, before and after."""
    fields = mapping(evaluation.read(run).fields.get("text"))
    measures = [_perplexity(fields), _choices(fields)]
    shown = [measure for measure in measures if measure]
    return {"measures": shown} if shown else None


def _perplexity(fields: dict[str, Any]) -> dict[str, str] | None:
    before, after = number(fields.get("perplexity_before")), number(fields.get("perplexity_after"))
    if before is None and after is None:
        return None
    verdict = "measured once only"
    if before and after and before > 0:
        change = after / before - 1
        word = "higher" if change > 0 else "lower"
        same = abs(change) < 0.005
        verdict = "unchanged" if same else f"{percent(abs(change), 1)} {word}"
    return {
        "title": "Perplexity on held-out text",
        "better": "lower is better",
        "before": plain(before),
        "after": plain(after),
        "verdict": verdict,
    }


def _choices(fields: dict[str, Any]) -> dict[str, str] | None:
    before = evaluation.Score.read(fields.get("choices_before"))
    after = evaluation.Score.read(fields.get("choices_after"))
    if before is None and after is None:
        return None
    verdict = "measured once only"
    if before and after:
        verdict = f"{points(after.score - before.score)}{NO_BREAK}points"
    return {
        "title": "Multiple choice, text only",
        "better": "higher is better",
        "before": percent(before.score if before else None, 1),
        "after": percent(after.score if after else None, 1),
        "verdict": verdict,
    }
