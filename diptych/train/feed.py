"""Steps of a stage as micro-batches, prepared in worker processes.

A step is a pure function of the seed and its number, so resuming is asking for the steps
that are left, and any number of workers gives the same batches.

How much is prepared ahead is a budget in bytes, not a number of steps: one of CLIP's holds
thousands of pictures, one of LLaVA's a few dozen. Where few steps fit, few workers prepare them,
each with several threads that decode.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from diptych.data.batching.collate import Collator, Prepared
from diptych.data.batching.mixture import Mixture
from diptych.data.batching.picture_loader import Item, PictureLoader
from diptych.data.checking.index import Index
from diptych.data.checking.token_counter import TokenCounter
from diptych.data.pixels.tiling import TilingConfig
from diptych.data.sample import Image, Sample
from diptych.errors import ModelError
from diptych.machine import cores, cpu_is_asked_for, processes_here
from diptych.train.stage import DataConfig, Stage

log = logging.getLogger(__name__)


@dataclass
class StepData(Dataset):
    """Step number -> this rank's `Prepared` micro-batches.

    Attributes:
        indexes: the data sets.
        mixture: which samples make up a step.
        collator: how they become micro-batches.
        batch_size: samples of a step over all ranks.
        rank, num_ranks: which share of a step is this process's.
        num_samples: total number of samples to visit; the last step may be short.
        step_bytes: memory that this process's share of a step takes, about.
        ahead_bytes: memory for steps that are being prepared or wait.
    """

    indexes: Sequence[Index]
    mixture: Mixture
    collator: Collator
    batch_size: int
    rank: int = 0
    num_ranks: int = 1
    num_samples: int | None = None
    step_bytes: int = 0
    ahead_bytes: int = 2**30

    def __getitem__(self, step: int) -> Prepared:
        start = step * self.batch_size
        end = start + self.batch_size
        if self.num_samples is not None:
            end = min(end, self.num_samples)
        places = [(p, *self.mixture.at(p)) for p in range(start, end)]
        # Contiguous shares keep samples of one picture on one rank.
        low = len(places) * self.rank // self.num_ranks
        high = len(places) * (self.rank + 1) // self.num_ranks
        items = [
            Item(self.indexes[source][row], self.indexes[source].image_bytes, position)
            for position, source, row in places[low:high]
        ]
        return self.collator(items)


@dataclass(frozen=True)
class Ahead:
    """How steps are prepared: by so many workers, each with steps of its own and threads."""

    num_workers: int
    steps_each: int
    num_threads: int = 1


MOST_WORKERS, MOST_STEPS_EACH = 16, 4


def ahead(step_bytes: int, ahead_bytes: int, num_workers: int | None, num_cores: int) -> Ahead:
    """Workers, steps in flight of each, and decoding threads within a budget of memory.

    Args:
        num_workers: most workers; None takes a core each, but one for training.
        num_cores: cores for this process.
    """
    if num_workers is None:
        num_workers = min(MOST_WORKERS, num_cores - 1)
    # A step that waits is held once, one in the making twice: as pictures and as a batch.
    most = ahead_bytes // max(1, 2 * step_bytes)
    workers = min(num_workers, max(1, most))
    if workers < 1:
        return Ahead(0, 0)
    free = max(1, num_cores - 1)
    return Ahead(workers, max(1, min(MOST_STEPS_EACH, most // workers)), max(1, free // workers))


def within(chosen: Ahead, step_bytes: int, room: int | None) -> Ahead:
    """As many steps ahead as the memory has room for that processes share (None: any number).

    A worker that writes beyond it is killed without a word; containers often have 64 MiB.
    """
    if room is None or chosen.num_workers * (chosen.steps_each + 1) * step_bytes <= room:
        return chosen
    most = room // step_bytes
    if most < 2:
        log.warning(
            "a step of %.0f MB does not fit into shared memory (%.0f MB for this process in "
            "/dev/shm): it is prepared without workers, which is slower. Start the container with "
            "--shm-size=8g", step_bytes / 1e6, room / 1e6,
        )  # fmt: skip
        return Ahead(0, 0)
    workers = min(chosen.num_workers, most // 2)
    return Ahead(workers, max(1, min(chosen.steps_each, most // workers - 1)), chosen.num_threads)


def shared_bytes() -> int | None:
    """This process's share of what is free in /dev/shm; None where there is no such place."""
    place = Path("/dev/shm")
    return shutil.disk_usage(place).free // processes_here() if place.is_dir() else None


def feed(data: StepData, steps: range, num_workers: int | None) -> Iterator[Prepared]:
    """The given steps in order, prepared ahead."""
    chosen = ahead(data.step_bytes, data.ahead_bytes, num_workers, cores())
    if len(steps) < 2:
        chosen = Ahead(0, 0)
    elif chosen.num_workers:
        chosen = within(chosen, data.step_bytes, shared_bytes())
    several = chosen.num_workers > 0
    pictures = getattr(data.collator, "pictures", None)
    if isinstance(pictures, PictureLoader):
        # Without workers this process decodes; a recipe that asks for none wants no threads either.
        alone = 1 if num_workers == 0 else cores()
        pictures.num_threads = chosen.num_threads if several else alone
    loader: DataLoader[Any] = DataLoader(
        data,
        batch_size=None,
        sampler=steps,  # type: ignore[arg-type]
        num_workers=chosen.num_workers if several else 0,
        prefetch_factor=chosen.steps_each if several else None,
        collate_fn=_as_it_is,  # type: ignore[arg-type]
        pin_memory=torch.cuda.is_available() and not cpu_is_asked_for(),
        worker_init_fn=_start_worker,
        # A loader draws a seed when it starts; from the global generator that would make a
        # resumed run, which starts one more loader, draw other dropout masks.
        generator=torch.Generator(),
    )
    yield from loader


def _as_it_is(prepared: Prepared) -> Prepared:
    return prepared


def _start_worker(_: int) -> None:
    # The trainer decides what a stop signal means; a worker just ends with its parent.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def open_index(config: DataConfig, stage: Stage, folder: Path, model: Any) -> Any:
    """A data set of a stage, read and checked once, reused when nothing changed.

    Samples longer than the context are found here, before training, unless the stage
    truncates them or does not read their tokens.
    """
    counts = stage.long_samples == "reject" and stage.objective.packs
    counter = TokenCounter(model.chat_encoder) if counts else None
    context = min(stage.context_tokens or model.context_tokens, model.context_tokens)
    index = Index.build(
        config.path,
        folder,
        format=config.format,
        images=config.images,
        verify=stage.verify_images,
        measure=counter,
        measure_key=counter.key() if counter else None,
        context=context if counter else None,
    )
    return index if config.pictures == "shown" else Withheld(index)


class Withheld(Sequence[Sample]):
    """The samples of an index without their pictures."""

    def __init__(self, index: Index):
        self.source = index
        self.ledger = index.ledger
        self.root = index.root

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, number: Any) -> Any:
        return self.source[int(number)].without_images()

    def image_bytes(self, image: Image) -> bytes:
        """There are none to read."""
        raise ModelError("pictures are withheld here", where=image.path)


def known_pictures(
    index: Any, row: int, tiling: TilingConfig
) -> Iterator[tuple[Image, Any, str | None, int | None]]:
    """A row's pictures as the feature cache takes them: how each is read, the SHA-256 of its bytes,
    None where they were not looked at, and the tiles that it may have."""
    images = list(index[row].images())
    known = index.image_sha256(row) if isinstance(index, Index) else ()
    most = tiling.share(len(images))
    for image, sha256 in zip(images, known or [None] * len(images), strict=True):
        yield image, index.image_bytes, sha256, most


def sharing_keys(index: Index) -> list[Any]:
    """One key per sample: its pictures' paths, or None for a sample without any."""
    keys = []
    for row in range(len(index)):
        images = tuple((i.path, i.span) for i in index[row].images())
        keys.append(images or None)
    return keys
