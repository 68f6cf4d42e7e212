"""The page that compares how two models see the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diptych import json_text
from diptych.report.page import write
from diptych.report.section import PAGE
from diptych.staging import replacing


def write_embeddings(
    folder: Path,
    drawn: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    *,
    names: tuple[str, str],
    field: str | None,
    extra: dict[str, Any] | None = None,
) -> Path:
    """Write `folder/report.html` and return its path.

    Args:
        drawn: what `diptych.embed.atlas.draw` gave.
        rows: of each row `id`, `text`, `image` and `root`, the folder of the picture.
        names: what the two sides are called.
        field: what the groups are values of.
        extra: other figures of each side to show, by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = {**drawn, "rows": list(rows), "names": list(names), "field": field,
            "extra": extra or {}}  # fmt: skip
    share = drawn["neighbours"]["share_kept"]
    page = {
        "kind": "Vectors",
        "headline": f"Of the {drawn['neighbours']['k']} nearest neighbours of a row, "
        f"{100 * share:.0f}\u00a0% stayed.",
    }
    for name, values in (("embeddings.json", kept), (PAGE, page)):
        with replacing(folder / name) as temporary:
            temporary.write_text(json_text.dumps(values) + "\n", encoding="utf-8")
    return write(folder)
