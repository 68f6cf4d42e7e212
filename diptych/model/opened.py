"""Opening a model for use: the one way from a name to a model that answers.

Every command that asks a model something comes through here, so that `--device` and
`--precision` mean the same everywhere (tests/e2e/test_devices.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diptych.machine import chosen_device
from diptych.model.folder import load_model
from diptych.model.precision import settled


def open_model(
    name: Path | str,
    device: str | None = None,
    precision: str | None = None,
    *,
    widen: bool = True,
) -> Any:
    """The model of a folder or hub name, on its device, ready to be asked.

    Args:
        device: auto (or None: the GPU where there is one), cpu, cuda, cuda:1, mps.
        precision: auto (or None: bf16 on a GPU that computes in it, else fp32), fp32, bf16, fp16.
        widen: fp32 also widens weights that are stored in fewer bits. False keeps them, as they are
            in a model that was not loaded but has just learned.

    Raises:
        ConfigError: there is no such device or precision here; said before anything is loaded.
        WeightsNotFound, CheckpointError, UnsafeFile: as `load_model`.
    """
    settled(precision, chosen_device(device))
    model = load_model(name)
    if precision == "fp32" and widen:
        model.float()
    return place(model, device, precision)


def place(model: Any, device: str | None = None, precision: str | None = None) -> Any:
    """Move a model that is loaded or composed already, and note the precision it is asked in.

    Its weights keep their types: it may go on to learn.
    """
    chosen = chosen_device(device)
    model.precision = settled(precision, chosen)
    return model.to(chosen)
