"""Where it ran: machine, versions, commit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from diptych.report.run_folder import RunFolder, number, text
from diptych.report.wording import size

TITLE = "The machine"
LABEL = "Machine"
ORDER = 90
NEEDS = ("environment.json",)

MAX_ENTRIES = 200
MAX_DEPTH = 6


def view(run: RunFolder) -> dict[str, Any] | None:
    """Every entry of the environment but the command, which has a section of its own."""
    fields = {k: v for k, v in run.tree("environment.json").items() if k != "command"}
    entries = [entry for _, entry in zip(range(MAX_ENTRIES), _flat(fields), strict=False)]
    return {"entries": entries} if entries else None


def _flat(fields: dict[str, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    for key, value in fields.items():
        name = f"{prefix}{text(key, 80)}"
        if isinstance(value, dict) and value and depth < MAX_DEPTH:
            yield from _flat(value, f"{name}.", depth + 1)
        elif key.endswith("_bytes"):
            yield name.removesuffix("_bytes").replace("_", " "), size(number(value))
        else:
            yield name.replace("_", " "), text(value, 300) or "none"
