"""Whole models as other libraries publish them: which layout one has, and where its conversion is.

What converts them lies above this room (`diptych.convert.published`); a model is opened from what
that left in Diptych's cache. A layout says which classes (`CLASSES`) and model types
(`MODEL_TYPES`) it is for; that is read from its file, and nothing is imported.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from diptych import parts
from diptych.model import hub
from diptych.model.weights import cache_folder, locate, of_a_model

_VERSION = 1
"""Counts up when conversions change what they write."""


def layout_of(folder: Path) -> str | None:
    """The layout of a folder of another library, by its config.json; None where it has none."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(values, dict):
        return None
    for constant, names in (
        ("CLASSES", values.get("architectures") or ()),
        ("MODEL_TYPES", (values.get("model_type"),)),
    ):
        for layout, known in parts.declared("convert.layouts", constant).items():
            if not {str(name) for name in names}.isdisjoint(known):
                return layout.replace("_", "-")
    return None


def conversion(name: str, revision: str | None = None) -> tuple[str, Path] | None:
    """Layout of a published model and the folder of its conversion, which may not be there yet.

    Fetches configs at most. None for a model of Diptych's own.

    Raises:
        WeightsNotFound: there is nothing of that name.
    """
    folder = locate(name, revision=revision, described=True)
    if of_a_model(folder) is not None:
        return None
    layout = layout_of(folder)
    if layout is None:
        return None
    words = "".join(c if c.isalnum() or c in "-._" else "-" for c in name.strip("/"))[-60:]
    return layout, cache_folder() / "published" / f"{words}-{_identity(layout, folder)}"


def _identity(layout: str, folder: Path) -> str:
    """Changes with the hub's commit, or with the files of a folder."""
    about: list[Any] = [_VERSION, layout]
    if (commit := hub.commit_of(folder)) is not None:
        about.append(commit)
    else:
        about.append(str(folder.resolve()))
        for file in sorted(p for p in folder.iterdir() if p.is_file()):
            known = file.stat()
            about.append([file.name, known.st_size, known.st_mtime_ns])
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
