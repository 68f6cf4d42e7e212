"""Contract: a public checkpoint layout, both ways, behind a gate.

A file in `convert/layouts` knows one layout that other software reads. What leaves is
loaded with the ecosystem's own class and compared with the Diptych model: logits, greedy
tokens, pixels and chat template. What differs is not written. What comes in is compared the
same way.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from diptych import parts
from diptych.convert.comparison import ExportReport
from diptych.errors import ConfigError, ExportMismatch
from diptych.model import weights
from diptych.model.architecture import Model
from diptych.model.folder import load_model
from diptych.staging import HASHES, staged_folder

ONE_TILE = ("single",)


class Layout(Protocol):
    """What every file in `convert/layouts` offers.

    Where they apply, three literal constants besides: `CLASSES`, the classes named in a config.json
    that it reads; `MODEL_TYPES`, the model types, where no class is named; `TILINGS`, the tilings
    that it holds, where that is not `single` alone; `PICKLED`, true where its weights are pickles,
    which only `model.pickles.read_tensors` opens.
    """

    ARCHITECTURE: str
    """The one of model/architectures that it holds."""

    def outputs(self, model: Any) -> list[Tensor]:
        """What the model computes for the probes of this layout: the numbers that count."""
        ...

    def export(self, model: Any, out: Path) -> ExportReport:
        """Write `model` into the empty folder `out` and compare what the ecosystem reads there.

        The model has its weights in float32, no adapters, and only values that the precision
        of its language model's config can hold.

        Raises:
            ConfigError: the layout cannot hold this model; says which part and the way out.
        """
        ...

    def described(self, path: Path) -> Any:
        """What the model of a folder is composed of, from its configs alone.

        Raises:
            CheckpointError: a config that Diptych cannot follow.
        """
        ...

    def load(self, path: Path) -> Any:
        """The model of a folder in this layout.

        Raises:
            CheckpointError: incomplete, or something that Diptych cannot compute.
            UnsafeFile: the weights are a pickle.
        """
        ...

    def compare(self, model: Any, path: Path) -> ExportReport:
        """Hold a float32 model against what the ecosystem's class computes from `path`."""
        ...


def find(name: str) -> Layout:
    """The layout of that name, such as `hf-llava`.

    Raises:
        PartNotFound: there is none; the message lists those that exist.
    """
    return cast(Layout, parts.find("convert.layouts", name.replace("-", "_")))


def export(model_or_path: Model | Path | str, name: str, out: Path | str) -> ExportReport:
    """Write a model in a public layout; the gate.

    Staged beside `out` and moved there only when the ecosystem's class computes what the
    model computes. Adapters are merged into a copy in float32 before anything is rounded to
    the precision that is stored.

    Raises:
        ExportMismatch: it computes something else; nothing is left, an older `out` stays.
        ConfigError: the layout cannot hold this model, or `out` holds something that is not
            an earlier export.
        CheckpointError, WeightsNotFound: `model_or_path` is no model folder.
    """
    layout, out = find(name), Path(out)
    _refuse_to_replace(out)
    model: Any
    if isinstance(model_or_path, Model):
        model = copy.deepcopy(model_or_path)
    else:
        model = load_model(model_or_path)
    if model.config.name != layout.ARCHITECTURE:
        raise ConfigError(
            f"{name.replace('_', '-')} holds a {layout.ARCHITECTURE}, this model is a "
            f"{model.config.name}",
            fix="choose another layout, or keep the Diptych folder",
        )
    _refuse_tiles(model, layout, name)
    model = model.float().eval().merge_adapters()
    rounding = _round(model, layout, getattr(torch, model.config.text_config.dtype))
    with staged_folder(out) as folder:
        report = layout.export(model, folder)
        if report.problems:
            raise ExportMismatch(
                f"the export computes something else: {'; '.join(report.problems)}",
                where=f"{report.class_name}, {report.where}",
                fix="nothing was written; please report the model's config.json, for this layout "
                "should hold it",
            )
    report.rounding_difference = rounding
    return report


def _refuse_tiles(model: Any, layout: Layout, name: str) -> None:
    arrangement = getattr(model, "arrangement", None)
    if arrangement is None:
        return
    own, wanted = arrangement.tiling.name, getattr(layout, "TILINGS", ONE_TILE)
    if own not in wanted:
        known = parts.declared("convert.layouts", "TILINGS").items()
        holding = [n.replace("_", "-") for n, tilings in known if own in tilings]
        raise ConfigError(
            f"{name.replace('_', '-')} reads pictures cut by {' or '.join(wanted)}, this model "
            f"cuts them by {own}",
            where="model.vision_encoder.image.tiling",
            fix=f"{' or '.join(holding)} cuts so" if holding else "keep the Diptych folder",
        )


def load(path: Path | str, name: str) -> tuple[Any, ExportReport]:
    """Read a model from a public layout and compare it with what the ecosystem computes.

    Raises:
        ExportMismatch: Diptych computes something else from these weights.
        CheckpointError, UnsafeFile, WeightsNotFound: no such folder, or one that cannot be used.
    """
    layout = find(name)
    file = Path(path).expanduser()
    pickled = getattr(layout, "PICKLED", False)
    folder = file if file.is_file() else weights.locate(str(path), as_pickles=pickled)
    model = layout.load(folder).eval()
    is_float32 = all(p.dtype == torch.float32 for p in model.parameters())
    report = layout.compare(model if is_float32 else copy.deepcopy(model).float(), folder)
    if report.problems:
        raise ExportMismatch(
            f"the model read does not compute what {report.class_name} computes: "
            f"{'; '.join(report.problems)}",
            where=str(path),
            fix="nothing was written; the folder uses something that Diptych does not follow",
        )
    return model, report


@torch.no_grad()
def _round(model: Model, layout: Layout, dtype: torch.dtype) -> float:
    """Round every weight to `dtype`, kept as float32; the largest change of a logit."""
    if dtype == torch.float32:
        return 0.0
    before = layout.outputs(model)
    for parameter in model.parameters():
        parameter.copy_(parameter.to(dtype))
    after = layout.outputs(model)
    return max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True))


def _refuse_to_replace(out: Path) -> None:
    """Replacing deletes: only an earlier export or an empty folder may stand at `out`."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    config = out / "config.json"
    if (out / HASHES).is_file() and config.is_file():
        if '"vision_encoder"' not in config.read_text(encoding="utf-8"):  # no Diptych model
            return
    raise ConfigError(
        "there is something that is not an earlier export, and exporting would replace it",
        where=str(out),
        fix="name a folder that does not exist yet",
    )
