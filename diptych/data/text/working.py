"""Working: what a model writes before its answer."""

from __future__ import annotations


def split_working(text: str, mark: str | None) -> tuple[str, str]:
    """What a model wrote before its answer, and the answer: what follows the last mark."""
    if mark is None or mark not in text:
        return "", text
    working, _, answer = text.rpartition(mark)
    return working.strip(), answer.strip()
