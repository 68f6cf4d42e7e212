"""The same rows as two models see them: two maps, neighbours that changed, signs of collapse."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from diptych.report.run_folder import RunFolder, dicts, number, text
from diptych.report.thumbnails import Thumbnail, sprite, thumbnail
from diptych.report.wording import count, percent

TITLE = "Before and after"
LABEL = "Before and after"
ORDER = 6
NEEDS = ("embeddings.json",)
OPTIONAL = True

BOX, MARGIN = 1000, 20
MAX_POINTS = 5000
COLUMNS = 50
"""Pictures in a line of the sheet that hovering shows."""


def view(run: RunFolder) -> dict[str, Any] | None:
    """Two drawings of the same rows, the figures of both, and rows whose neighbours changed."""
    tree = run.tree("embeddings.json")
    rows = dicts(tree.get("rows"))[:MAX_POINTS]
    maps = [_points(points, len(rows)) for points in _listed(tree.get("maps"))]
    if len(maps) != 2 or not rows or any(m is None for m in maps):
        return None
    names = [text(n, 60) for n in _listed(tree.get("names"))] or ["before", "after"]
    groups = [text(g, 40) for g in _listed(tree.get("groups"))][:MAX_POINTS]
    order = [g for g, _ in Counter(groups).most_common()]
    places = [order.index(g) for g in groups] if len(groups) == len(rows) else [0] * len(rows)
    pictures = [(text(r.get("root")), text(r.get("image"))) for r in rows]
    shows = any(name for _, name in pictures)
    near = tree.get("neighbours") if isinstance(tree.get("neighbours"), dict) else {}
    return {
        "method": {"umap": "UMAP"}.get(text(tree.get("method")), "t-SNE"),
        "maps": [
            {
                "title": name.capitalize(),
                "points": [(x, y, g) for (x, y), g in zip(points or [], places, strict=False)],
            }
            for name, points in zip(names, maps, strict=False)
        ],
        "box": BOX,
        "field": text(tree.get("field"), 60),
        "groups": [(n, g) for n, g in enumerate(order)] if groups else [],
        "total": count(len(rows)),
        "sprite": sprite(pictures, COLUMNS) if shows else "",
        "columns": COLUMNS,
        "labels": [text(r.get("text") or r.get("id"), 80) for r in rows],
        "figures": _figures(tree, names),
        "changed": [
            _changed(row, rows, names) for row in dicts(near.get("changed") if near else None)
        ],
    }


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _points(values: Any, total: int) -> list[tuple[int, int]] | None:
    found = []
    for value in _listed(values)[:total]:
        pair = [number(v) for v in _listed(value)]
        if len(pair) != 2 or any(v is None for v in pair):
            return None
        x, y = (MARGIN + min(1.0, max(0.0, v or 0.0)) * (BOX - 2 * MARGIN) for v in pair)
        found.append((round(x), round(y)))
    return found if len(found) == total else None


MEANINGS = (
    ("mean_cosine", "Mean cosine of two rows", "near 1: everything looks the same"),
    ("effective_dim", "Effective dimensions", "near 1: all lies on one line"),
    ("duplicates", "Rows that look like another", "cosine of 0.999 or more"),
    ("silhouette", "Silhouette of the groups", "-1 to 1; higher: groups lie apart"),
)


def _figures(tree: dict[str, Any], names: list[str]) -> list[dict[str, Any]]:
    """Rows of the table of figures."""
    sides = dicts(tree.get("figures"))
    found = []
    for key, title, meaning in MEANINGS:
        values = [number(side.get(key)) for side in sides]
        if len(values) == 2 and any(v is not None for v in values):
            shown = [_shown(key, v) for v in values]
            found.append({"title": title, "meaning": meaning, "values": shown})
    extra = tree.get("extra")
    for key, pair in (extra if isinstance(extra, dict) else {}).items():
        values = [number(v) for v in _listed(pair)]
        if len(values) == 2:
            shown = [percent(v, 1) if v is not None else "" for v in values]
            found.append({"title": text(key, 60), "meaning": "", "values": shown})
    return found


def _shown(key: str, value: float | None) -> str:
    if value is None:
        return ""
    if key == "duplicates":
        return count(value)
    return f"{value:.1f}" if key == "effective_dim" else f"{value:.3f}"


def _changed(row: dict[str, Any], rows: list[dict[str, Any]], names: list[str]) -> dict[str, Any]:
    def tile(place: Any) -> dict[str, Any]:
        known = isinstance(place, int) and 0 <= place < len(rows)
        one = rows[place] if known else {}
        name, root = text(one.get("image")), text(one.get("root"))
        picture: Thumbnail | None = thumbnail(Path(root), name) if name and root else None
        return {"picture": picture, "text": text(one.get("text") or one.get("id"), 60)}

    return {
        "row": tile(row.get("row")),
        "sides": [
            (name, [tile(p) for p in _listed(row.get(key))[:5]])
            for name, key in zip(names, ("before", "after"), strict=False)
        ],
    }
