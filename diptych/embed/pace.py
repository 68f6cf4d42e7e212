"""How a job computes on this machine: batches side by side, threads of each, and precision.

Few threads each are right on some processors and wrong on others, and bfloat16 is twice as fast or
half as fast. So a few rows are computed in every way, once for a model on a machine, in seconds.
What was found is kept in the cache: the next job of that model begins at once and writes the same
vectors.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import platform
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from diptych.data.batching.batch import Batch
from diptych.data.batching.picture_loader import Item
from diptych.data.sample import Sample
from diptych.data.source import is_pictures_alone, locate, read_bytes
from diptych.embed.embedder import Embedder
from diptych.model.weights import cache_folder
from diptych.staging import write_json

log = logging.getLogger(__name__)
MOST_LANES = 4
"""Batches that are computed side by side on a CPU; each holds what the model needs for one."""
LEAST_COSINE = 0.9995
"""To the vectors in float32; below it, `auto` leaves the other precision alone."""
WORTH = 1.1
"""How many times as fast it must be."""
TRIAL_SECONDS = 0.4
"""About how long one way is tried, after as long to warm up."""
COSINE_SECONDS = 4.0
"""About how long vectors in float32 are computed, to hold the others to them."""
PART_SECONDS = 0.2
"""Least time of a part of a batch, where lanes share one."""
NUM_ROWS, LEAST_ROWS = 16, 4
"""Rows that are looked at; with fewer than these nothing is measured."""

Precision = Literal["float32", "bf16"]


@dataclass(frozen=True)
class Pace:
    """How batches are computed.

    Attributes:
        lanes: batches side by side; on a GPU one.
        threads: of each lane.
        precision: that of the vectors.
        rates: rows a second of every way that was tried, such as "2 x 1 float32".
        cosine: least cosine of the other precision's vectors to those in float32.
        processor: what this was measured on.
        measured: False where it was not, but taken for granted.
    """

    lanes: int
    threads: int
    precision: Precision = "float32"
    rates: dict[str, float] = field(default_factory=dict)
    cosine: float | None = None
    processor: str = ""
    measured: bool = False

    def part(self, batch_size: int) -> int:
        """How many rows of a batch a lane takes at once.

        Several lanes share a batch in small parts: three whole ones on two lanes would leave one of
        them idle for a third of the time. But no part so small that it is over in a moment, as
        every call costs the same.
        """
        if self.lanes == 1:
            return batch_size
        rate = self.rates.get(f"{self.lanes} x {self.threads} {self.precision}", 0.0)
        least = math.ceil(PART_SECONDS * rate / self.lanes)
        return min(batch_size, max(least, -(-batch_size // (2 * self.lanes))))

    def __str__(self) -> str:
        said = f"{self.lanes} batches at once, {self.threads} threads each, {self.precision}"
        if not self.measured:
            return said
        rates = ", ".join(f"{way}: {rate:.1f} rows/s" for way, rate in self.rates.items())
        near = "" if self.cosine is None else f"; bf16's least cosine to float32 {self.cosine:.6f}"
        return f"{said} (measured on {self.processor}: {rates}{near})"


def first_rows(
    data: str, what: str, *, format: str | None = None, images: str | None = None
) -> list[Item]:
    """The first rows of a data set, to look at how a model computes them."""
    if not format and what == "image" and is_pictures_alone(data):
        format = "pictures"
    source = locate(data, format, images)
    samples = (row for row in source.rows() if isinstance(row, Sample))
    read = partial(read_bytes, root=source.root)
    return [Item(sample, read) for sample in itertools.islice(samples, NUM_ROWS)]


def usual(precision: Precision = "float32") -> Pace:
    """What is taken where nothing was measured: as many lanes as there may be."""
    cores = torch.get_num_threads()
    lanes = min(MOST_LANES, cores)
    return Pace(lanes, cores // lanes, precision)


def fits(pace: Pace) -> bool:
    """Whether this machine has the cores that it takes."""
    return pace.lanes * pace.threads <= torch.get_num_threads()


def ways(cores: int) -> list[tuple[int, int]]:
    """(lanes, threads of each) worth trying: together they fill the cores."""
    return [(lanes, cores // lanes) for lanes in (1, 2, MOST_LANES) if lanes <= cores]


def settled(
    embedder: Embedder, items: Sequence[Item], *, auto: bool = False, folder: Path | None = None
) -> Pace:
    """The pace of this model on this machine: measured on a few rows, or as it was found before.

    Args:
        embedder: in float32 where `auto`.
        items: rows of the job, the first of them.
        auto: whether the precision may be chosen, too.
        folder: where findings are kept; None is in Diptych's cache.
    """
    asked = embedder.config.precision
    place = folder or cache_folder() / "pace"
    file = place / f"{_key(embedder, auto)}.json"
    if (known := _known(file)) is not None:
        return known
    good = _readable(embedder, items[:NUM_ROWS])
    if len(good) < LEAST_ROWS:
        return usual(asked)
    found = _measured(embedder, good, auto)
    write_json(file, asdict(found))
    return found


def _readable(embedder: Embedder, items: Sequence[Item]) -> list[Item]:
    """The rows that become vectors."""
    used = set(embedder.prepare(items).used)
    return [item for item in items if item.sample.id in used]


def _measured(embedder: Embedder, items: list[Item], auto: bool) -> Pace:
    config, device = embedder.config, embedder.model.device
    precisions: list[Precision] = ["float32", "bf16"] if auto else [config.precision]
    cores = torch.get_num_threads()
    tried = ways(cores) if device.type == "cpu" else [(1, cores)]
    rates: dict[tuple[int, int, Precision], float] = {}
    cosine = None
    for precision in precisions:
        own = embedder.in_precision(precision)
        if precision == "bf16" and auto:
            # Of a model that takes a second a row, a few rows must do.
            few = max(LEAST_ROWS, round(COSINE_SECONDS * max(rates.values())))
            cosine = _least_cosine(embedder, own, items[:few])
            if cosine < LEAST_COSINE:
                continue
        for lanes, threads in tried:
            rates[lanes, threads, precision] = _rate(own, items, lanes, threads)
    best = {p: max((w for w in rates if w[2] == p), key=rates.__getitem__, default=None)
            for p in precisions}  # fmt: skip
    first, other = best[precisions[0]], best.get("bf16") if auto else None
    assert first is not None, "float32, or what was asked for, is always tried"
    chosen = other if other and rates[other] > WORTH * rates[first] else first
    return Pace(
        *chosen,
        rates={f"{n} x {t} {p}": rate for (n, t, p), rate in rates.items()},
        cosine=cosine,
        processor=processor(device),
        measured=True,
    )


def _least_cosine(embedder: Embedder, other: Embedder, items: list[Item]) -> float:
    least = 1.0
    for batch in embedder.prepare(items).batches:
        one, two = (
            torch.from_numpy(e.embed(batch).values).double().flatten(1) for e in (embedder, other)
        )
        cosines = torch.nn.functional.cosine_similarity(one, two)
        least = min(least, float(cosines.min()) if bool(torch.isfinite(cosines).all()) else -1.0)
    return least


def _rate(embedder: Embedder, items: list[Item], lanes: int, threads: int) -> float:
    """Rows a second with so many batches side by side."""
    with using(threads), ThreadPoolExecutor(lanes, "try") as pool:

        def seconds(batches: list[Batch]) -> float:
            start = time.perf_counter()
            for done in [pool.submit(_embed, embedder, batches) for _ in range(lanes)]:
                done.result()
            _wait(embedder.model.device)
            return time.perf_counter() - start

        one = embedder.prepare(items[:1]).batches
        seconds(one)  # takes memory, compiles
        each = seconds(one)
        if each >= TRIAL_SECONDS:
            return lanes / each
        size = max(1, min(len(items), math.ceil(TRIAL_SECONDS / max(each, 1e-6))))
        part = embedder.prepare(items[:size]).batches
        seconds(part)
        times = [seconds(part)]
        while sum(times) < TRIAL_SECONDS and len(times) < 20:
            times.append(seconds(part))
        return lanes * size / min(times)


def _embed(embedder: Embedder, batches: list[Batch]) -> None:
    for batch in batches:
        embedder.embed(batch)


@contextmanager
def using(threads: int) -> Iterator[None]:
    """New threads compute with so many threads until the block ends."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def processor(device: torch.device) -> str:
    """Name of what computes: the GPU's, or the CPU's with its number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text().splitlines()
        found = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        name = found.get("model name", name)
        model = found.get("model")
        flags = [f for f in ("avx512_bf16", "amx_bf16") if f in found.get("flags", "").split()]
        name += f" (model {model}{', ' if flags else ''}{', '.join(flags)})" if model else ""
    return f"{name}, {torch.get_num_threads()} threads"


def _key(embedder: Embedder, auto: bool) -> str:
    about: list[Any] = [
        # How near bf16 comes depends on the weights; how fast it is does not.
        embedder.fingerprint if auto else embedder.shape(), auto,
        processor(embedder.model.device), torch.__version__,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _known(file: Path) -> Pace | None:
    try:
        return Pace(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return None
