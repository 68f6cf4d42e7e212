"""The files of a run folder, read without trusting them.

A run may have stopped anywhere, so each file may be absent, cut short or hold values of an
unexpected type. Reading never fails on that: it leaves a note, and the section that needed the
file is left out with that note in its place.
"""

from __future__ import annotations

import json
import math
from functools import cached_property
from pathlib import Path
from typing import Any


class RunFolder:
    """One run's folder.

    Attributes:
        path: the folder.
        notes: one line for each file that is missing or damaged, by file name.
    """

    def __init__(self, path: Path):
        self.path = path
        self.notes: dict[str, str] = {}
        self._read: dict[str, Any] = {}

    def tree(self, name: str) -> dict[str, Any]:
        """The object in the JSON file `name`; empty when it is missing or damaged (see notes)."""
        if name not in self._read:
            self._read[name] = self._load(name)
        return self._read[name]

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The objects in the JSON-lines file `name`; lines that cannot be read are noted."""
        if name not in self._read:
            self._read[name] = self._load_lines(name)
        return self._read[name]

    def has(self, name: str) -> bool:
        """Whether `name` holds anything that could be read."""
        return bool(self.rows(name) if name.endswith(".jsonl") else self.tree(name))

    @cached_property
    def stage_names(self) -> list[str]:
        """Names of the stages in the order they ran, from whichever file knows them."""
        recipe = [
            text(stage.get("name")) for stage in dicts(self.tree("recipe.json").get("stages"))
        ]
        known = [name for name in recipe if name]
        known += mapping(self.tree("parameters.json").get("stages"))
        known += [text(row.get("stage")) for row in self.rows("metrics.jsonl") if row.get("stage")]
        return list(dict.fromkeys(known))

    @property
    def images(self) -> Path:
        """Folder of the evaluated pictures."""
        named = self.tree("evaluation.json").get("images")
        # An absolute path stands for itself; joined to the run folder, pathlib keeps it.
        return self.path / named if isinstance(named, str) and named else self.path / "images"

    def _bytes(self, name: str) -> bytes | None:
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            self.notes[name] = f"{name} is not in the run folder"
        except OSError as error:
            self.notes[name] = f"{name} cannot be read ({error.strerror})"
        return None

    def _load(self, name: str) -> dict[str, Any]:
        data = self._bytes(name)
        if data is None:
            return {}
        value = _parse(data)
        if not isinstance(value, dict):
            self.notes[name] = f"{name} is damaged: not a JSON object"
            return {}
        return value

    def _load_lines(self, name: str) -> list[dict[str, Any]]:
        data = self._bytes(name)
        if data is None:
            return []
        lines = [line for line in data.split(b"\n") if line.strip()]
        rows = [row for row in map(_parse, lines) if isinstance(row, dict)]
        if len(rows) < len(lines):
            self.notes[name] = f"{name}: {len(lines) - len(rows)} of {len(lines)} lines are damaged"
        elif not rows:
            self.notes[name] = f"{name} is empty"
        return rows


def _parse(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        # The caller notes the damage; a report of a broken run is still worth having.
        return None


def number(value: Any) -> float | None:
    """A finite number, or None for everything else (absent, text, NaN, true)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def text(value: Any, limit: int = 600) -> str:
    """The value as text of at most `limit` characters; an ellipsis shows that it was cut."""
    if value is None:
        return ""
    if isinstance(value, list) and not any(isinstance(item, list | dict) for item in value):
        written = ", ".join(text(item, limit) for item in value[:limit])
    elif isinstance(value, list | dict):
        written = f"({len(value)} values)"
    elif isinstance(value, bool):
        written = "yes" if value else "no"
    elif isinstance(value, float):
        written = f"{value:.15g}"
    else:
        written = str(value)
    return written if len(written) <= limit else written[: limit - 1] + "\u2026"


def mapping(value: Any) -> dict[str, Any]:
    """The value if it is a dict, else an empty one."""
    return value if isinstance(value, dict) else {}


def dicts(value: Any) -> list[dict[str, Any]]:
    """The dicts of a list; everything else is left out."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
