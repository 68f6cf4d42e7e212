"""`diptych convert`: into and out of other layouts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from diptych.convert import layout
from diptych.convert.published import ready
from diptych.errors import ConfigError


def convert_model(model: str, output: Path, to: str | None, from_: str | None) -> dict[str, Any]:
    """Export with `to`, import with `from_`; both are gated by comparison."""
    if (to is None) == (from_ is None):
        raise ConfigError(
            "say either --to LAYOUT (export) or --from LAYOUT (import)",
            fix="for example: diptych convert MODEL OUT --to hf-llava",
        )
    if to is not None:
        report = layout.export(ready(model), to.replace("-", "_"), output)
        return {**asdict(report), "output": str(output)}
    loaded, report = layout.load(Path(model), str(from_).replace("-", "_"))
    loaded.save(output)
    return {**asdict(report), "output": str(output)}
