"""What a search found, best first, with its pictures (`diptych search --page`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diptych.report.run_folder import RunFolder, dicts, number, text
from diptych.report.thumbnails import Thumbnail, thumbnail
from diptych.report.wording import count

TITLE = "What was found"
LABEL = "Found"
ORDER = 5
NEEDS = ("found.json",)
OPTIONAL = True

MAX_SHOWN = 60


def view(run: RunFolder) -> dict[str, Any] | None:
    """The question and up to MAX_SHOWN rows."""
    tree = run.tree("found.json")
    rows = dicts(tree.get("found"))
    asked = text(tree.get("asked_image"))
    if not rows:
        return None
    return {
        "question": text(tree.get("question")),
        "asked": _picture("/", asked) if asked else None,
        "version": text(tree.get("version"), 80),
        "total": count(len(rows)),
        "rows": [
            {
                "id": text(row.get("id"), 120),
                "text": text(row.get("text"), 200),
                "score": _score(number(row.get("score"))),
                "picture": _picture(text(row.get("root")), text(row.get("image"))),
            }
            for row in rows[:MAX_SHOWN]
        ],
    }


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _picture(root: str, name: str) -> Thumbnail | None:
    """The picture, where it is a file on this machine."""
    if not name:
        return None
    if not root:
        return Thumbnail(fault="nobody knows where the picture lies")
    return thumbnail(Path(root), name.lstrip("/") if root == "/" else name)
