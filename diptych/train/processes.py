"""The processes of one run: how many there are, and what the first one decides for all.

Accelerate and PyTorch each count for themselves. Under torchrun without an accelerator Accelerate
1.15 counts one process unless it is told to use the CPU, while PyTorch counts all of them; each
process would then train alone in the same folder. So the CPU is named where there is nothing
else, and counts that still differ are an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from diptych.errors import ConfigError, ProcessesDisagree
from diptych.machine import TRAINING_DEVICE, chosen_device, cpu_is_asked_for, widest
from diptych.train import together

T = TypeVar("T")

LONGEST_WAIT = timedelta(days=1)
"""How long a process waits in a collective. Steps take long where one process's disk is slow; that
a process has failed is known without a limit (`train/together.py`)."""


def on_cpu() -> bool:
    """Whether training runs on the CPU: it was asked for, or there is nothing else."""
    return cpu_is_asked_for() or not torch.accelerator.is_available()


@contextmanager
def on(device: str | None) -> Iterator[None]:
    """Train, and open models, on the device of that name meanwhile; None and `auto` choose.

    Raises:
        ConfigError: there is no such device, or several processes are to share one.
    """
    if device in (None, "auto"):
        yield
        return
    chosen = chosen_device(device)
    if ":" in chosen and _several():
        raise ConfigError(
            f"several processes cannot share '{chosen}'",
            where="device",
            fix="let each take its own (--device auto), and choose by CUDA_VISIBLE_DEVICES",
        )
    values = {"ACCELERATE_USE_CPU": "true"} if chosen == "cpu" else {TRAINING_DEVICE: chosen}
    if chosen != "cpu" and _several():
        values = {}  # a name without a number would be the first device for all of them
    names = ("ACCELERATE_USE_CPU", TRAINING_DEVICE)
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ.update(values)
    _, _, number = chosen.partition(":")
    there = torch.accelerator.is_available() and chosen != "cpu" and number
    # Memory and random states are asked of the current device.
    current = torch.accelerator.device_index(int(number)) if there else nullcontext()
    try:
        with current:
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def start() -> Any:
    """Join the processes of this run; Accelerate's state, with rank and number of processes.

    Raises:
        ProcessesDisagree: the launcher, PyTorch and Accelerate count differently.
    """
    from accelerate.state import PartialState

    state = PartialState(cpu=on_cpu(), timeout=LONGEST_WAIT)
    counts = {"Accelerate": int(state.num_processes)}
    if (told := os.environ.get("WORLD_SIZE", "")).isdecimal():
        counts["WORLD_SIZE"] = int(told)
    if dist.is_available() and dist.is_initialized():
        counts["torch.distributed"] = dist.get_world_size()
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{name} says {count}" for name, count in counts.items())
        raise ProcessesDisagree(
            f"the processes of this run are counted differently: {found}",
            fix="start them with torchrun or accelerate launch, or unset WORLD_SIZE",
        )
    return state


def is_first() -> bool:
    """Whether this process is the one that writes, measures and prints."""
    return not _several() or start().is_main_process


@contextmanager
def one_fate() -> Iterator[None]:
    """While the block runs, an error of one process is the error of all of them.

    Raises:
        ProcessLost: another process ended without a word.
    """
    if not _several():
        yield
        return
    state = start()
    with together.joined(state.process_index, state.num_processes):
        yield


def agreed(value: T) -> T:
    """The first process's value (plain data), for all; they wait for it, it does not for them.

    Raises:
        ProcessLost: the first process gives no sign of life any more.
    """
    if not _several():
        return value
    state = start()
    with together.joined(state.process_index, state.num_processes) as ours:
        said: T = ours.said(value)
        return said


def gathered(value: T) -> list[T]:
    """The value of every process, in the order of their ranks."""
    if not _several():
        return [value]
    start()
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def wait() -> None:
    """Wait until the first process has come here."""
    agreed(None)


@contextmanager
def first_before_others() -> Iterator[None]:
    """The first process runs the block, then the others do."""
    if not is_first():
        wait()
    yield
    if is_first():
        wait()


def _several() -> bool:
    """Whether there may be other processes; one alone need not load Accelerate to know."""
    told = os.environ.get("WORLD_SIZE", "")
    return told.isdecimal() and int(told) > 1


def summed(accelerator: Any, *values: float) -> list[float]:
    """The sum of each value over all processes; a GPU is asked only where there are several."""
    if accelerator.num_processes == 1:
        return [float(value) for value in values]
    own = torch.tensor(values, dtype=widest(accelerator.device), device=accelerator.device)
    found: list[float] = accelerator.reduce(own, "sum").tolist()
    return found
