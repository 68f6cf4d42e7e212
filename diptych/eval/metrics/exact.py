"""Exact match after light normalisation: case, blanks and a final full stop do not count.

Diptych's own definition, for short answers in any script: both sides lose blanks at the ends, are
case-folded, have runs of blanks collapsed, and lose one trailing "." or "。" (a number such as
"3." too). Numbers are compared as text: "1,000" and "1000" differ. Any accepted answer will do.
"""

from __future__ import annotations

from collections.abc import Sequence


def normalize(text: str) -> str:
    """The form in which answers are compared."""
    folded = " ".join(text.casefold().split())
    return folded[:-1].rstrip() if folded.endswith((".", "。")) else folded


def score(prediction: str, answers: Sequence[str]) -> float:
    """1.0 if the prediction equals an accepted answer after normalisation, else 0.0."""
    wanted = normalize(prediction)
    return float(any(normalize(answer) == wanted for answer in answers))
