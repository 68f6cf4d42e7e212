"""What the LAVIS layouts share: where the files are, and weights taken over by their names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.convert.comparison import ExportReport
from diptych.errors import CheckpointError, WeightsNotFound
from diptych.model.weights import locate

TOKENIZERS = ("google-bert/bert-base-uncased", "sentence-transformers/all-MiniLM-L6-v2")
"""Both have the vocabulary of bert-base-uncased; the second comes as a package."""


def places(path: Path) -> tuple[Path, str]:
    """(file with the weights, where the tokenizer is)."""
    if path.is_file():
        return path, tokenizer(path.parent)
    files = sorted(p for p in path.iterdir() if p.suffix in (".pth", ".pt", ".bin"))
    if len(files) != 1:
        raise CheckpointError(
            f"the folder has {len(files)} checkpoints", where=str(path), fix="name one file"
        )
    return files[0], tokenizer(path)


def tokenizer(folder: Path) -> str:
    """Folder of bert-base-uncased's tokenizer: this one, or what is to be had."""
    if any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        return str(folder)
    for name in TOKENIZERS:
        try:
            return str(locate(name))
        except WeightsNotFound:
            continue
    raise CheckpointError(
        "the tokenizer of bert-base-uncased is not to be had",
        where=str(folder),
        fix="put its tokenizer.json or vocab.txt beside the checkpoint",
    )


@torch.no_grad()
def fill(model: Any, tensors: Mapping[str, Tensor], file: Path) -> None:
    """Copy weights, by their names in `model`.

    Raises:
        CheckpointError: there is no such weight in the model, or it has another shape.
    """
    own = model.state_dict()
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape:
            found = "no place" if name not in own else f"the shape {tuple(own[name].shape)}"
            raise CheckpointError(
                f"{name} has the shape {tuple(tensor.shape)} there and {found} in a "
                f"{model.config.name}",
                where=str(file),
            )
    for name, tensor in tensors.items():
        own[name].copy_(tensor)


def compare_weights(layout: str, model: Any, tensors: Mapping[str, Tensor]) -> ExportReport:
    """Every weight that the file has is the model's; there is no class to compare with.

    LAVIS pins libraries that cannot be installed beside today's; its numbers are held in
    tests/conformance instead.
    """
    report = ExportReport(layout, "LAVIS (weights only)")
    own = model.state_dict()
    for name, tensor in tensors.items():
        report.num_cases += 1
        if not torch.equal(own[name].cpu(), tensor):
            report.problems.append(f"the weight {name} is not what was read")
    report.notes.append("weights are compared, not outputs: LAVIS itself is not run")
    return report


def known(tensors: Mapping[str, Tensor], name: str, file: Path) -> Tensor:
    """A weight whose shape tells a size.

    Raises:
        CheckpointError: it is missing.
    """
    if name not in tensors:
        raise CheckpointError(f"the weight {name} is missing", where=str(file))
    return tensors[name]


def count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many layers there are below a prefix."""
    numbers = {n[len(prefix) :].split(".")[0] for n in tensors if n.startswith(prefix)}
    return len(numbers)
