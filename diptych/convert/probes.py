"""What layouts compare by: the same pictures and texts, outputs, pixels and weights, side by side.

Shapes: N pictures.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diptych.convert.comparison import PIXEL_TOLERANCE, RELATIVE_TOLERANCE, ExportReport
from diptych.data.pixels.image import decode
from diptych.data.pixels.preprocessing import Preprocessing
from diptych.errors import CheckpointError
from diptych.model.weights import reading

TEXTS = (
    "a",
    "a red umbrella on the beach",
    "Zwei Katzen, 3 Hunde & 12.5 % mehr!",
    "one two three " * 60,
)
"""Short, ordinary, with marks and digits, longer than any context."""
_SIZES = ((40, 60), (64, 64), (90, 30))


def preprocessing_of(path: Path) -> Preprocessing:
    """How a folder of the ecosystem says that pictures become pixels.

    Raises:
        CheckpointError: it does not.
    """
    found = Preprocessing.of_folder(path)
    if found is None:
        raise CheckpointError(
            "the folder does not say how pictures become pixels (no preprocessor_config.json)",
            where=str(path),
            fix="put the image processor's preprocessor_config.json beside the weights",
        )
    return found


def read_json(file: Path) -> dict[str, Any]:
    """The mapping that a file holds.

    Raises:
        CheckpointError: it is no JSON, or no mapping.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise CheckpointError(f"the file is no JSON: {error}", where=str(file)) from None
    if not isinstance(values, dict):
        raise CheckpointError("the file holds no mapping", where=str(file))
    return values


def read_class(kind: Any, path: Path, name: str) -> Any:
    """The ecosystem's model of a folder, in float32, complete.

    Raises:
        CheckpointError: it cannot be read, or a weight is missing or has another shape.
    """
    read_config(kind, path, name)
    with reading(path, name):
        module, about = kind.from_pretrained(
            path, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    if about["missing_keys"] or about["mismatched_keys"]:
        raise CheckpointError(
            f"weights are missing, for example {sorted(about['missing_keys'])[:1]}",
            where=str(path),
        )
    return module.eval()


def read_config(kind: Any, path: Path, name: str) -> Any:
    """The config of a folder that a class of the ecosystem reads; no weights are needed.

    Raises:
        CheckpointError: it cannot be read, or is another class's.
    """
    with reading(path, name):
        found = json.loads((path / "config.json").read_text(encoding="utf-8"))
    wanted, own = kind.config_class.model_type, found.get("model_type")
    if own != wanted:
        raise CheckpointError(
            f"the folder holds a {own}, not a {wanted}",
            where=str(path),
            fix="name another layout; `diptych list` has them all",
        )
    with reading(path, name):
        return kind.config_class.from_pretrained(path)


def pixels_of(preprocessing: Preprocessing) -> Tensor:
    """The pictures as Diptych preprocesses them: float32 [N, 3, H, W]."""
    return torch.from_numpy(np.stack([preprocessing.apply(decode(b)) for b in pictures()]))


def compare_pixels(report: ExportReport, pixels: Tensor, path: Path) -> bool:
    """Hold pixels against the folder's own processor; False where not even the shapes agree."""
    from transformers import AutoImageProcessor

    with reading(path, report.layout):
        processor = AutoImageProcessor.from_pretrained(path)
    theirs = processor(images=pictures_as_pil(), return_tensors="pt")["pixel_values"]
    if theirs.shape != pixels.shape:
        report.problems.append(
            f"its processor gives pictures of {list(theirs.shape[2:])}, the model reads "
            f"{list(pixels.shape[2:])}"
        )
        return False
    report.max_pixel_difference = float((theirs - pixels).abs().max())
    if not report.max_pixel_difference <= PIXEL_TOLERANCE:
        report.problems.append(f"pixels differ by {report.max_pixel_difference:.3g}")
    return True


def compare_outputs(
    report: ExportReport, own: Sequence[Tensor], theirs: Sequence[Tensor], what: str = "outputs"
) -> None:
    """Hold outputs against each other, one tolerance for each tensor."""
    for mine, its in zip(own, theirs, strict=True):
        report.num_cases += mine.numel()
        tolerance = RELATIVE_TOLERANCE * max(1.0, float(its.abs().max()))
        report.tolerance = max(report.tolerance, tolerance)
        gap = float((mine - its).abs().max())
        report.max_logit_difference = max(report.max_logit_difference, gap)
        if not gap <= tolerance or math.isnan(gap):
            report.problems.append(f"{what} differ by {gap:.3g}, allowed are {tolerance:.3g}")


def compare_weights(report: ExportReport, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Hold every weight against what was read back, bit by bit."""
    if not all(torch.equal(own.cpu(), its) for own, its in pairs):
        report.problems.append("a weight is not what was written")


def matched(own: nn.Module, theirs: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Pairs of weights of one name.

    Raises:
        CheckpointError: the two have not the same weights.
    """
    mine, its = dict(own.named_parameters()), dict(theirs.named_parameters())
    if mine.keys() != its.keys():
        raise CheckpointError(
            f"the encoders do not have the same weights, for example "
            f"{sorted(mine.keys() ^ its.keys())[0]}"
        )
    return [(mine[name], its[name]) for name in mine]


def pictures() -> list[bytes]:
    """Small noisy pictures of several shapes, always the same."""
    from PIL import Image as Pillow

    found = []
    rng = np.random.default_rng(0)
    for height, width in _SIZES:
        buffer = io.BytesIO()
        noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Pillow.fromarray(noise).save(buffer, format="PNG")
        found.append(buffer.getvalue())
    return found


def pictures_as_pil() -> list[Any]:
    """The same, opened."""
    from PIL import Image as Pillow

    return [Pillow.open(io.BytesIO(b)) for b in pictures()]


def plain_config(hf_config: Any) -> dict[str, Any]:
    """A Hugging Face config as the data that makes one: its type and what it changes."""
    values = json.loads(hf_config.to_json_string(use_diff=True))
    dropped = ("transformers_version", "dtype", "torch_dtype", "_name_or_path", "architectures")
    kept = {k: v for k, v in values.items() if k not in dropped}
    return {"model_type": hf_config.model_type, **kept}


def merge_json(path: Path, values: dict[str, Any]) -> None:
    """Set keys of a JSON file that may not be there yet."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**known, **values}, indent=2) + "\n", encoding="utf-8")
