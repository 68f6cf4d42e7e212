"""Compare two runs sample by sample: what was gained, what was lost, and what was forgotten.

Pairing removes the difficulty of the questions from the difference, so a change shows that two
separate intervals would hide. Right-or-wrong scores are tested with McNemar's exact test, graded
ones with the paired bootstrap; the interval of the difference is always bootstrapped by picture.
McNemar's test takes questions as independent: where many share a picture, trust the interval.
P-values of the kinds are not corrected for there being several.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diptych.errors import DataError
from diptych.eval.controls import gain
from diptych.eval.interval import bootstrap_p_value, interval, mcnemar, mean
from diptych.eval.result import Record, Result, TextAbility


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean scores of two runs on the same questions.

    Attributes:
        difference, low, high: after minus before, with its 95 % interval.
        p_value: two-sided, for "nothing changed".
        test: "mcnemar" or "paired bootstrap".
        gained, lost: questions whose score rose, and fell.
    """

    before: float
    after: float
    difference: float
    low: float
    high: float
    p_value: float
    test: str
    n: int
    gained: int
    lost: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs paired.

    Attributes:
        gained_ids, lost_ids: the questions themselves, in the order of the runs.
        failed: questions left out because either run has no score for them.
        controls: for `before` and `after` the control that is hardest to beat (`best_control`), its
            `gain` `{score, low, high, n}` being how far that run is above it; a gain is claimed
            against this control.
        forgotten: change of text-only ability, where both runs measured it: for each text
            `{before, after, ratio}` of the perplexity (ratio above 1: something was forgotten),
            and for the multiple-choice file a Difference.
    """

    overall: Difference
    by_kind: dict[str, Difference]
    gained_ids: list[str]
    lost_ids: list[str]
    failed: int
    controls: dict[str, Any]
    forgotten: dict[str, Any] | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    before: Result | str | Path, after: Result | str | Path, *, seed: int = 0
) -> Comparison:
    """Pair two results, or the folders they were saved in, by sample id.

    Raises:
        DataError: the runs asked different questions, used different metrics or differ in the
            true answers, or have no scored question in common; the message has the numbers.
    """
    first = before if isinstance(before, Result) else Result.load(before)
    second = after if isinstance(after, Result) else Result.load(after)
    pairs = _pair(first, second)
    scored = [(a, b) for a, b in pairs if a.score is not None and b.score is not None]
    if not scored:
        raise DataError("no question was answered in both runs, so there is nothing to compare")
    kinds = sorted({a.kind for a, _ in scored})
    changes = [(a.id, _score(b) - _score(a)) for a, b in scored]
    return Comparison(
        overall=_difference(scored, seed),
        by_kind={
            kind: _difference([p for p in scored if p[0].kind == kind], seed) for kind in kinds
        },
        gained_ids=[id for id, change in changes if change > 0],
        lost_ids=[id for id, change in changes if change < 0],
        failed=len(pairs) - len(scored),
        controls={"before": _control(first, seed), "after": _control(second, seed)},
        forgotten=_forgotten(first.text, second.text, seed),
    )


def _control(result: Result, seed: int) -> dict[str, Any] | None:
    hardest = gain(result.records, seed)
    return {"best_control": hardest[0], "gain": hardest[1].to_dict()} if hardest else None


def _pair(first: Result, second: Result) -> list[tuple[Record, Record]]:
    if first.metric != second.metric:
        raise DataError(
            f"the runs were scored differently: '{first.metric}' and '{second.metric}'",
            fix="evaluate both with the same metric",
        )
    others = {record.id: record for record in second.records}
    own = {record.id for record in first.records}
    shared = len(own & others.keys())
    if shared < len(own) or shared < len(others):
        raise DataError(
            f"the runs asked different questions: {shared} in both, {len(own) - shared} only in "
            f"the first, {len(others) - shared} only in the second",
            fix="evaluate both on the same data, with the same limit and seed",
        )
    pairs = [(record, others[record.id]) for record in first.records]
    changed = sum(a.truth != b.truth for a, b in pairs)
    if changed:
        raise DataError(
            f"the true answers of {changed} of {len(pairs)} questions differ between the runs",
            fix="evaluate both on the same data",
        )
    return pairs


def _difference(pairs: Sequence[tuple[Record, Record]], seed: int) -> Difference:
    before, after = [_score(a) for a, _ in pairs], [_score(b) for _, b in pairs]
    changes = [b - a for a, b in zip(before, after, strict=True)]
    groups = [a.group for a, _ in pairs]
    gained, lost = sum(c > 0 for c in changes), sum(c < 0 for c in changes)
    right_or_wrong = all(score in (0.0, 1.0) for score in [*before, *after])
    low, high = interval(changes, groups, seed=seed)
    return Difference(
        before=mean(before),
        after=mean(after),
        difference=mean(changes),
        low=low,
        high=high,
        p_value=mcnemar(gained, lost)
        if right_or_wrong
        else bootstrap_p_value(changes, groups, seed=seed),
        test="mcnemar" if right_or_wrong else "paired bootstrap",
        n=len(pairs),
        gained=gained,
        lost=lost,
    )


def _score(record: Record) -> float:
    assert record.score is not None  # pairs without a score were set aside
    return record.score


def _forgotten(
    before: TextAbility | None, after: TextAbility | None, seed: int
) -> dict[str, Any] | None:
    if before is None or after is None:
        return None
    perplexity = {}
    for name, figures in before.texts.items():
        if name in after.texts:
            was, now = figures["perplexity"], after.texts[name]["perplexity"]
            ratio = now / was if was else math.nan
            perplexity[name] = {"before": was, "after": now, "ratio": ratio}
    choices = None
    if before.choices and after.choices:
        choices = asdict(compare(before.choices, after.choices, seed=seed).overall)
    return {"perplexity": perplexity, "choices": choices}
