"""Losses of the debug recipes as they were when they were last looked at; see README.md."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
WRITE = "DIPTYCH_WRITE_TRAJECTORIES"
TOLERANCE = 1e-5
"""In float32, with one thread."""


def compare(name: str, lines: Sequence[dict[str, Any]]) -> None:
    """Hold the lines of a run's metrics.jsonl to the committed curve, or write it anew."""
    curve = {
        "recipe": name,
        "losses": [
            {"stage": x["stage"], "step": x["step"], "loss": x["loss"]}
            for x in lines
            if "loss" in x
        ],
    }
    file = FOLDER / f"{name}.json"
    if os.environ.get(WRITE):
        head, rows = json.dumps(curve["recipe"]), [json.dumps(row) for row in curve["losses"]]
        listed = ",\n  ".join(rows)
        file.write_text(f'{{"recipe": {head}, "losses": [\n  {listed}\n]}}\n')
        return
    assert file.is_file(), f"{name} has no curve yet: run this test with {WRITE}=1"
    known = json.loads(file.read_text())["losses"]
    found = curve["losses"]
    assert [(x["stage"], x["step"]) for x in found] == [(x["stage"], x["step"]) for x in known]
    for new, old in zip(found, known, strict=True):
        difference = abs(new["loss"] - old["loss"])
        assert difference <= TOLERANCE, (
            f"{name}, stage {new['stage']}, step {new['step']}: the loss is {new['loss']:.7f} and "
            f"was {old['loss']:.7f}; numerics changed (tests/trajectories/README.md)"
        )
