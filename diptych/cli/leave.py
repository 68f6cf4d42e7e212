"""`diptych convert`: into and out of other layouts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from diptych.convert import layout
from diptych.convert.published import ready
from diptych.errors import ConfigError
from diptych.model.architecture import Model
from diptych.model.folder import model_folder, save_model
from diptych.model.weights import origins_of

SAME = "same"


def convert_model(model: str, output: Path, to: str | None, from_: str | None) -> dict[str, Any]:
    """Export with `to`, import with `from_`; both are gated by comparison.

    `to` may be `same`: the layout in which the model came, when training went on from a published
    one by its name or from an imported folder.
    """
    if (to is None) == (from_ is None):
        raise ConfigError(
            "say either --to LAYOUT (export) or --from LAYOUT (import)",
            fix="for example: diptych convert MODEL OUT --to hf-llava",
        )
    if to is not None:
        source = ready(model)
        name = _layout_of_origin(source) if to == SAME else to
        report = layout.export(source, name.replace("-", "_"), output)
        return {**asdict(report), "output": str(output)}
    loaded: Model
    name = str(from_)
    loaded, report = layout.load(Path(model), name.replace("-", "_"))
    kept = Path(model).resolve().name
    loaded.origins = {"model": {"weights": kept, "source": "folder", "layout": name}}
    save_model(loaded, output)
    return {**asdict(report), "output": str(output)}


def _layout_of_origin(model: str) -> str:
    """The layout in which a model came, through all models that it goes on from."""
    about = origins_of(model_folder(model)).get("model") or {}
    while about and "layout" not in about:
        about = (about.get("began_with") or {}).get("model") or {}
    if not about:
        raise ConfigError(
            "the model did not come in a layout of another library",
            where=model,
            fix="name one: --to hf-llava; `diptych list` has them all",
        )
    return str(about["layout"])
