"""The machine under a process: its memory, cores and devices, counted and used well."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil

from diptych.errors import ConfigError

PILE = 1.5
"""Freed memory is given back to the system once a process holds this many times what a step
needs."""


def keep_freed_memory() -> bool:
    """Let the C library reuse freed blocks instead of handing them back to the system.

    A training step on a CPU frees and takes hundreds of megabytes in the same sizes; asked of the
    system each time, its pages have to be cleared again. Does nothing where the C library is not
    glibc.

    Returns:
        Whether it could be set.

    Source: `mallopt` of glibc. Measured by benchmarks/cpu_steps.py.
    """
    no_mapping, never_trim, grow_by = (-4, 0), (-1, 2**31 - 1), (-2, 64 * 2**20)
    return _set(no_mapping, never_trim, grow_by)


def _set(*settings: tuple[int, int]) -> bool:
    """Set numbers of the C library's `mallopt`; whether all of them could be."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(name, value) == 1 for name, value in settings)


def share_one_heap() -> bool:
    """Let all threads of this process take memory from one heap; to be called before there are any.

    Heaps of single threads are small and go back to the system as soon as they are empty, so a
    thread that runs a model would have fresh pages cleared for every layer.

    Returns:
        Whether it could be set.

    Source: `M_ARENA_MAX` of glibc's `mallopt`.
    """
    return _set((-8, 1))


class KeptMemory:
    """Freed memory that a loop on a CPU keeps for its next step, and gives back when it piles up.

    Steps of different shapes leave holes that nothing fits into; without a limit a process grows to
    several times what a step needs.
    """

    def __init__(self) -> None:
        self.is_kept = keep_freed_memory()
        self._usual: int | None = None

    def after_step(self) -> None:
        """Give free memory back to the system where the process holds half more than it did."""
        if not self.is_kept:
            return
        now = resident_bytes()
        if self._usual is None:
            self._usual = now
        elif now > PILE * self._usual:
            trim()
            self._usual = None  # as it is after the next step


def common_size(size: int) -> int:
    """A size of rows that comes up again: at most a twenty-fourth larger, most often a fiftieth.

    On CPUs a matrix product is compiled for its shape, and kept: over row counts that are all new a
    linear layer takes 2.7 times as long (benchmarks/cpu_steps.py), and memory grows.
    """
    step = 1 << max(0, (size // 24).bit_length() - 1)
    return -(-size // step) * step


def trim() -> None:
    """Give the C library's free blocks back to the system (glibc)."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def resident_bytes() -> int:
    """Memory of this process at this moment."""
    return int(psutil.Process().memory_info().rss)


def memory_bytes() -> int:
    """Peak memory: of the GPU where there is one, else of this process and its workers.

    A forked worker shares most pages with its parent, so only its own are added.
    """
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return _peak_of_this_process() + _of_workers(int(time.monotonic()))


@lru_cache(1)
def _of_workers(_: int) -> int:
    """Asked once a second, not every step: adding up a worker's pages takes some milliseconds."""
    own = 0
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it may have ended just now
            own += child.memory_full_info().uss
    return own


def _peak_of_this_process() -> int:
    status = Path("/proc/self/status")
    if status.is_file():
        # Not ru_maxrss, which a process inherits from whoever started it.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    import resource

    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""What a container may use of its machine's cores (Linux, cgroup v2)."""


def processes_here() -> int:
    """How many processes of one run share this machine, as their launcher says."""
    told = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, int(told) if told.isdecimal() else 1)


def cores() -> int:
    """Cores for this process: those it may run on, within a container's quota, shared with the
    other processes of its run."""
    there = float(os.cpu_count() or 1)
    if hasattr(os, "sched_getaffinity"):
        there = len(os.sched_getaffinity(0))
    if QUOTA.is_file():
        most, _, period = QUOTA.read_text().partition(" ")
        if most.isdecimal() and period.strip().isdecimal():
            there = min(there, int(most) / int(period))
    return max(1, int(there) // processes_here())


TRAINING_DEVICE = "ACCELERATE_TORCH_DEVICE"
"""Accelerate's variable that names the device of a single process."""


def cpu_is_asked_for() -> bool:
    """Whether ACCELERATE_USE_CPU, Accelerate's variable, is set."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on")


_WITHOUT_FLOAT64 = {"mps"}


def widest(device: Any) -> Any:
    """The widest floating type (a torch.dtype) that a torch.device has: float64, but on Apple's."""
    import torch

    return torch.float32 if device.type in _WITHOUT_FLOAT64 else torch.float64


def chosen_device(name: str | None) -> str:
    """The device of that name, or (None, `auto`) the one that training would use.

    That is the accelerator where there is one, unless ACCELERATE_USE_CPU or
    ACCELERATE_TORCH_DEVICE name another.

    Raises:
        ConfigError: there is no such device here.
    """
    import torch

    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name in (None, "auto"):
        if cpu_is_asked_for() or there is None:
            return "cpu"
        return os.environ.get(TRAINING_DEVICE) or there.type
    kind, _, number = str(name).partition(":")
    count = 1 if kind == "cpu" else torch.accelerator.device_count() if there else 0
    known = ["cpu"] if there is None else ["cpu", there.type]
    if kind not in known or (number and not (number.isdecimal() and int(number) < count)):
        several = [f"{there.type}:{n}" for n in range(count)] if there and count > 1 else []
        raise ConfigError(
            f"there is no device '{name}' here",
            where="device",
            fix=f"auto, {', '.join([*known, *several])}",
        )
    return "cpu" if kind == "cpu" else str(name)
