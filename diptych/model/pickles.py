"""Checkpoints that are pickles: only tensors are read, and only once.

The main branches of many published models hold `pytorch_model.bin` alone. Such a checkpoint is
read with PyTorch's `weights_only` reader, which executes nothing, and converted into safetensors
in Diptych's cache: whole or not at all, under a lock, with the hashes of what it was made of. One
that asks for more than tensors is refused by name.
"""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from diptych.errors import CheckpointError, UnsafeFile, first_line
from diptych.model import hub
from diptych.staging import file_hash, staged_folder

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

RECORD = "converted.json"
"""In a converted folder: what it was made of."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch checkpoint (.pth, .bin), nothing executed.

    What lies under `model` or `state_dict` is taken, as training scripts write it. They are mapped
    from the file where its form allows it, so memory is used when they are.

    Raises:
        UnsafeFile: it asks for anything but tensors; names what.
        CheckpointError: it cannot be read, or holds no tensors by name.
    """
    import torch

    with path.open("rb") as file:
        start = file.read(2)
    is_zip = start == b"PK"
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip or None)
    except pickle.UnpicklingError as error:
        # A zip archive, or a pickle by its first byte; other files ask for nothing.
        if not is_zip and start[:1] != b"\x80":
            raise CheckpointError("the file is no PyTorch checkpoint", where=str(path)) from None
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({wanted[1]})" if wanted else ""
        raise UnsafeFile(
            f"{path.name} asks for more than tensors{what} and could execute code; it was not read",
            where=str(path),
            fix="get the checkpoint from its authors, or save its tensors as safetensors",
        ) from None
    except Exception as error:
        # Damaged and crafted pickles make torch's reader fail in every way that Python has.
        raise CheckpointError(
            f"cannot be read as a PyTorch checkpoint: {type(error).__name__}: {first_line(error)}",
            where=str(path),
        ) from None
    for key in ("model", "state_dict"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found:
        raise CheckpointError("the file holds no weights by name", where=str(path))
    tensors = {str(k): v for k, v in found.items() if isinstance(v, torch.Tensor)}
    if len(tensors) < len(found):
        raise CheckpointError("the file holds other things than weights", where=str(path))
    return tensors


def as_safetensors(folder: Path, name: str, cache: Path) -> Path:
    """The folder itself, or one of `cache` with the same weights as safetensors.

    Args:
        folder: whole (`hub.missing` finds nothing).
        name: what the weights are called, for messages and for the record.

    Raises:
        UnsafeFile: a pickle asks for more than tensors.
        CheckpointError: a pickle cannot be read.
    """
    files = hub.weight_files(folder)
    if not hub.are_pickles(files):
        return folder
    target = cache / f"{name.strip('/').rpartition('/')[2]}-{_key(folder, files)}"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f".{target.name}.lock"):  # another process may be at it
        if (target / RECORD).is_file():
            return target
        log.info("%s has its weights as pickles; they become safetensors once, in %s", name, target)
        with staged_folder(target) as stage:
            record = {"pickles": _convert(folder, files, stage)}
            (stage / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    return target


def _convert(folder: Path, files: list[str], stage: Path) -> dict[str, str]:
    """Write safetensors beside copies of what describes them; SHA-256 of every pickle."""
    from diptych.model.tensors import save_tensors  # with PyTorch, which a plan does not need

    hashes = {}
    places: dict[str, str] = {}
    total = 0
    for number, file in enumerate(files, 1):
        hashes[file] = file_hash(folder / file)
        tensors = read_tensors(folder / file)
        own = "model.safetensors"
        if len(files) > 1:
            own = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        save_tensors(_each_alone(tensors), stage / own)
        places |= dict.fromkeys(tensors, own)
        total += sum(t.numel() * t.element_size() for t in tensors.values())
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (stage / "model.safetensors.index.json").write_text(text)
    for place in sorted(folder.iterdir()):
        if place.is_file() and hub.describes(place.name):
            if not place.name.endswith((".bin.index.json", RECORD, "hashes.json")):
                shutil.copyfile(place, stage / place.name)
    return hashes


def _each_alone(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share memory (tied weights) as copies, as safetensors needs them."""
    seen: set[int] = set()
    alone = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        alone[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return alone


def _key(folder: Path, files: list[str]) -> str:
    """Which pickles these are: of a hub's snapshot by its commit, else by place, size and time."""
    told: list[Any] = [str(folder.resolve())]
    if (commit := hub.commit_of(folder)) is not None:
        told = [hub.repository_of(folder), commit]
    else:
        for file in files:
            about = (folder / file).stat()
            told.append([file, about.st_size, about.st_mtime_ns])
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
