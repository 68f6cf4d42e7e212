"""The page of a search: the question, and what was found, as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diptych import json_text
from diptych.report.page import write
from diptych.report.section import PAGE
from diptych.staging import replacing


def write_found(
    folder: Path, found: dict[str, Any], roots: dict[str, str], *, asked_image: Path | None = None
) -> Path:
    """Write `folder/report.html` and return its path.

    Args:
        found: what `diptych search --json` prints.
        roots: of each data set the folder of its pictures.
        asked_image: the picture that was looked for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{**row, "root": roots.get(str(row.get("data")), "")} for row in found["found"]]
    kept = {
        "question": found["question"],
        "version": found["version"],
        "asked_image": str(asked_image.resolve()) if asked_image else None,
        "found": rows,
    }
    words = "a picture" if asked_image else f"\u201c{found['question']}\u201d"
    page = {"kind": "Search", "headline": f"What lies nearest to {words}."}
    for name, values in (("found.json", kept), (PAGE, page)):
        with replacing(folder / name) as temporary:
            temporary.write_text(json_text.dumps(values, indent=1) + "\n", encoding="utf-8")
    return write(folder)
