"""Weights as files: safetensors written and read, and a model that is filled once from them.

Composing with real numbers first and copying the file's over them takes twice the memory and the
time to draw numbers that nobody keeps. Here parameters begin on the meta device and each takes the
file's numbers as its own, in memory of its own: the file may change or vanish afterwards.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from diptych.errors import CheckpointError

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@contextmanager
def without_weights() -> Iterator[None]:
    """Modules made in the block have their parameters on the meta device.

    Buffers are real: those that are computed, such as frequencies of rotary positions, are in no
    file.
    """
    kind: Any = nn.Module
    register = kind.register_parameter

    def registered(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        # One that is on the meta device already is registered as it is, so that tied ones stay one.
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
        register(module, name, param)

    kind.register_parameter = registered
    try:
        yield
    finally:
        kind.register_parameter = register


@torch.no_grad()
def fill(module: nn.Module, path: Path, *, prefix: str = "") -> None:
    """Give a module composed `without_weights` the tensors of a file, names and shapes held to it.

    Args:
        prefix: take the tensors whose names begin so, without it; others are left alone.

    Raises:
        CheckpointError: unreadable, a missing or unknown weight, or another shape.
    """
    entries = {n.removeprefix(prefix): e for n, e in _entries(path).items() if n.startswith(prefix)}
    own = module.state_dict(keep_vars=True)
    names = _names_of_each(module, own)
    unknown = [n for n in entries if n not in own]
    missing = [same[0] for same in names if not any(n in entries for n in same)]
    if unknown or missing:
        raise CheckpointError(
            f"{len(missing)} weights are missing and {len(unknown)} are unknown, for example "
            f"{(missing + unknown)[0]}",
            where=str(path),
        )
    with path.open("rb") as file:
        for same in names:
            name = next(n for n in same if n in entries)
            target = own[name] if name in own else own[same[0]]
            shape = tuple(entries[name]["shape"])
            if tuple(target.shape) != shape:
                raise CheckpointError(
                    f"{name} has the shape {shape}, the model needs {tuple(target.shape)}",
                    where=str(path),
                )
            _take(module, same, target, _read(file, entries[name], path))


def read(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a file whose names begin with `prefix`, by the rest of their names.

    Raises:
        CheckpointError: unreadable.
    """
    entries = {n: e for n, e in _entries(path).items() if n.startswith(prefix)}
    with path.open("rb") as file:
        return {n.removeprefix(prefix): _read(file, e, path) for n, e in entries.items()}


@torch.no_grad()
def adopt(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Give a module composed `without_weights` tensors by name, as they are where their types fit.

    Each is taken out of `tensors`, so that what is cast is not held twice.
    """
    own = module.state_dict(keep_vars=True)
    for same in _names_of_each(module, own):
        name = next(n for n in same if n in tensors)
        _take(module, same, own[name] if name in own else own[same[0]], tensors.pop(name))


def _take(module: nn.Module, names: list[str], target: Tensor, value: Tensor) -> None:
    value = value.detach().to(target.dtype)
    if not target.is_meta:
        target.copy_(value)
        return
    if value.stride() != target.stride():  # of a convolutional encoder, channels last
        strides, shape = target.stride(), tuple(target.shape)
        value = torch.empty_strided(shape, strides, dtype=value.dtype).copy_(value)
    parameter = nn.Parameter(value, requires_grad=target.requires_grad)
    for one in names:
        parent, _, leaf = one.rpartition(".")
        setattr(module.get_submodule(parent), leaf, parameter)


def _names_of_each(module: nn.Module, own: dict[str, Any]) -> list[list[str]]:
    """For every weight and kept buffer the names that it has; tied ones have several."""
    found: dict[Any, list[str]] = {}
    every = dict(module.named_parameters(remove_duplicate=False))
    for name, tensor in {**own, **every}.items():
        key: Any = id(tensor)
        if not tensor.is_meta and tensor.numel():
            key = (tensor.data_ptr(), tensor.shape, tensor.storage_offset())
        found.setdefault(key, []).append(name)
    return list(found.values())


def _entries(path: Path) -> dict[str, dict[str, Any]]:
    """Type, shape and place in the file of every tensor, by name."""
    try:
        with safe_open(path, "pt"):  # checks header and length
            pass
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"cannot be read as safetensors: {error}", where=str(path)) from None
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            raise CheckpointError(
                f"{name} is stored as {entry['dtype']}, which no model here has", where=str(path)
            )
        entry["offset"] = 8 + size + entry["data_offsets"][0]
    return header


def _read(file: BinaryIO, entry: dict[str, Any], path: Path) -> Tensor:
    """One tensor, in memory of its own."""
    size = entry["data_offsets"][1] - entry["data_offsets"][0]
    data = torch.empty(size, dtype=torch.uint8)
    file.seek(entry["offset"])
    view = memoryview(data.numpy())  # type: ignore[arg-type]
    got = 0
    while got < size:
        count = file.readinto(view[got:])  # type: ignore[attr-defined]
        if not count:
            raise CheckpointError("the file ends too early", where=str(path))
        got += count
    return data.view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])


def unique_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Every weight and buffer once; names that share storage keep the first."""
    seen: dict[tuple[int, torch.Size, int], str] = {}
    tensors: dict[str, Tensor] = {}
    for name, tensor in module.state_dict().items():
        key = (tensor.data_ptr(), tensor.shape, tensor.storage_offset())
        if tensor.numel() and key in seen:
            continue
        seen[key] = name
        tensors[name] = tensor.detach().contiguous().cpu()
    return tensors


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Safetensors; copies views so that each tensor owns its storage."""
    owned = {
        n: t.clone(memory_format=torch.contiguous_format)
        if not t.is_contiguous() or t.untyped_storage().nbytes() != t.numel() * t.element_size()
        else t
        for n, t in tensors.items()
    }
    try:
        save_file(owned, path, metadata={"format": "pt"})
    except SafetensorError as error:
        refused = re.search(r"os error (\d+)", str(error))
        if refused is None:
            raise
        number = int(refused[1])
        raise OSError(number, os.strerror(number), str(path)) from None
