"""Held-out pictures and texts as points in one plane, before and after training (t-SNE)."""

from __future__ import annotations

from typing import Any

from diptych.report.run_folder import RunFolder, dicts, number, text
from diptych.report.wording import count, percent

TITLE = "The shared space"
LABEL = "Shared space"
ORDER = 36
NEEDS = ("map_after.json",)
OPTIONAL = True

BOX = 1000
"""Units of a side of the drawing."""
MARGIN = 20


def view(run: RunFolder) -> dict[str, Any] | None:
    """One drawing for each time it was measured."""
    maps = []
    for name, title in (("before", "Before training"), ("after", "After training")):
        tree = run.tree(f"map_{name}.json")
        pairs = [pair for pair in map(_pair, dicts(tree.get("pairs"))) if pair is not None]
        if pairs:
            share = number(tree.get("share_nearest"))
            maps.append(
                {
                    "title": title,
                    "pairs": pairs,
                    "total": count(len(pairs)),
                    "share": percent(share) if share is not None else "",
                }
            )
    return {"maps": maps, "box": BOX} if maps else None


def _pair(row: dict[str, Any]) -> dict[str, Any] | None:
    picture, words = _point(row.get("image_at")), _point(row.get("text_at"))
    if picture is None or words is None:
        return None
    return {"picture": picture, "words": words, "name": text(row.get("text"), 120)}


def _point(value: Any) -> tuple[int, int] | None:
    """Shares of the box in 0..1 -> units."""
    if not isinstance(value, list) or len(value) != 2:
        return None
    found = [number(v) for v in value]
    if any(v is None for v in found):
        return None
    x, y = (MARGIN + min(1.0, max(0.0, v or 0.0)) * (BOX - 2 * MARGIN) for v in found)
    return round(x), round(y)
