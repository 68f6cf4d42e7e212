"""Examine: the one pass over a data set, whoever makes it.

Reads rows, fetches and checks every picture, tells rows with one id apart (or refuses them) and,
given a tokenizer's measure, finds samples that are too long. `checking/index.py` stores what
comes out good, `checking/check.py` reports it to the user.

Pictures are decoded by threads: Pillow releases the interpreter's lock while it decodes,
bytes need not be copied between processes, and a script needs no `__main__` guard.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from diptych.data import format as formats
from diptych.data.pixels.image import decode
from diptych.data.pixels.image import measure as measure_image
from diptych.data.reading.disk_map import DiskMap
from diptych.data.reading.fields import unread
from diptych.data.reading.rows import Reject
from diptych.data.sample import Image, Sample
from diptych.data.source import Source, read_bytes
from diptych.errors import DataError, DuplicateId, SampleTooLong

Verify = Literal["full", "header", "none"]
Measure = Callable[[Sample], tuple[int, ...]]
"""(tokens, supervised tokens) of a sample, and optionally tokens cut off; or SampleTooLong."""

_MAX_REMEMBERED = 20_000
REPEATED_ID = "id used before: the row is called ID#2, ID#3, ..."


class Picture(NamedTuple):
    """What is known of a checked picture: content hash, file size, size in pixels."""

    sha256: str
    num_bytes: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Examined:
    """A good sample and what the pass found out about it.

    Attributes:
        pictures: one for each of the sample's images; empty when they were not looked at.
        num_tokens, num_supervised_tokens: -1 when not measured.
        num_cut_tokens: tokens that its measure cuts off.
        notes: what it says and nothing follows, and how its id was made.
    """

    sample: Sample
    pictures: tuple[Picture, ...]
    num_tokens: int = -1
    num_supervised_tokens: int = -1
    num_cut_tokens: int = 0
    notes: tuple[str, ...] = ()


class _Checks:
    """Checks of pictures, run by threads; each distinct path once, as far as remembered."""

    def __init__(self, root: str, verify: Verify, num_workers: int):
        self._root = root
        self._verify = verify
        self._pool = ThreadPoolExecutor(num_workers, thread_name_prefix="diptych-pictures")
        self._known: OrderedDict[str, Future[Picture | DataError]] = OrderedDict()

    def submit(self, image: Image) -> Future[Picture | DataError]:
        """Start the check of a picture, or find the one that was started."""
        if image.data is not None or image.span is not None:
            return self._pool.submit(self._check, image)
        future = self._known.get(image.path)
        if future is None:
            future = self._known[image.path] = self._pool.submit(self._check, image)
            if len(self._known) > _MAX_REMEMBERED:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(image.path)
        return future

    def _check(self, image: Image) -> Picture | DataError:
        try:
            data = read_bytes(image, self._root)
            if self._verify == "full":
                width, height = decode(data, where=image.path).size
            else:
                width, height = measure_image(data, where=image.path)
            return Picture(hashlib.sha256(data).hexdigest(), len(data), width, height)
        except DataError as error:
            # Kept until its sample's turn: the traceback would keep the picture's bytes, too.
            return type(error)(error.what, where=error.where, fix=error.fix)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def examine(
    source: Source,
    *,
    verify: Verify = "full",
    measure: Measure | None = None,
    context: int | None = None,
    workers: int | None = None,
    on_image_fault: Callable[[Image], None] | None = None,
    unique: bool = False,
) -> Iterator[Examined | Reject]:
    """Read everything once, in order; every row comes out exactly once, good or rejected.

    Args:
        verify: decode every picture, only read its header, or leave pictures alone.
        measure: token counts of a sample.
        context: longest sample in tokens that is accepted; needs `measure`.
        workers: threads that decode; None takes one for each core.
        on_image_fault: told of every picture that made its row a reject.
        unique: ids are keys (embedding, pairing two evaluations): a row whose id was used before
            is rejected. Elsewhere it is used, as `ID#2`: published sets repeat the id of a
            picture for every conversation about it.
    """
    workers = workers or os.cpu_count() or 1
    checks = _Checks(source.root, verify, workers)
    places, repeats = DiskMap(), DiskMap()
    waiting: deque[_Waiting] = deque()

    def finish() -> Examined | Reject:
        item, futures, notes = waiting.popleft()
        if isinstance(item, Reject):
            return item
        pictures = []
        for image, future in zip(item.images(), futures, strict=verify != "none"):
            found = future.result()
            if isinstance(found, DataError):
                if on_image_fault is not None:
                    on_image_fault(image)
                message = f"{found.what} ('{found.where or image.path}')"
                return _reject(item, type(found)(message), source.format)
            pictures.append(found)
        try:
            found_notes = (*notes, *unread(item))
            return _measured(item, tuple(pictures), measure, context, found_notes)
        except DataError as error:
            return _reject(item, error, source.format)

    try:
        for item in source.rows():
            futures: list[Future[Picture | DataError]] = []
            notes: tuple[str, ...] = ()
            if isinstance(item, Sample):
                first = places.add(item.id, item.source)
                if first is not None and unique:
                    error = DuplicateId(f"the id '{item.id}' was used before, at {first}")
                    item = _reject(item, error, source.format)
                elif first is not None:
                    item, notes = _told_apart(item, places, repeats), (REPEATED_ID,)
            if isinstance(item, Sample) and verify != "none":
                futures = [checks.submit(image) for image in item.images()]
            waiting.append((item, futures, notes))
            # The window bounds memory: a row of a shard carries its pictures' bytes.
            if len(waiting) > 8 * workers:
                yield finish()
        while waiting:
            yield finish()
    finally:
        checks.close()
        places.close()
        repeats.close()


_Waiting = tuple[Sample | Reject, list[Future[Picture | DataError]], tuple[str, ...]]


def _told_apart(sample: Sample, places: DiskMap, repeats: DiskMap) -> Sample:
    """The sample with a number behind its id: where `7` was used, `7#2`, or the next free one."""
    number = int(repeats.pop(sample.id) or 1)
    while True:
        number += 1
        name = f"{sample.id}#{number}"
        if places.add(name, sample.source) is None:
            repeats.add(sample.id, str(number))
            return replace(sample, id=name)


def _reject(sample: Sample, error: DataError, format: str | None) -> Reject:
    return Reject.of(error, sample.source, formats.row_text(sample, format), sample.id)


def _measured(
    sample: Sample,
    pictures: tuple[Picture, ...],
    measure: Measure | None,
    context: int | None,
    notes: tuple[str, ...],
) -> Examined:
    if measure is None:
        return Examined(sample, pictures, notes=notes)
    num_tokens, num_supervised, *cut = measure(_sized(sample, pictures))
    if context is not None and num_tokens > context:
        raise SampleTooLong(f"the sample has {num_tokens} tokens, the context {context}")
    return Examined(sample, pictures, num_tokens, num_supervised, cut[0] if cut else 0, notes)


def _sized(sample: Sample, pictures: Sequence[Picture]) -> Sample:
    """The sample whose pictures say how large they are: their tokens may follow from it."""
    if not pictures:
        return sample
    sizes = iter([(picture.width, picture.height) for picture in pictures])
    turns = tuple(
        replace(turn, parts=tuple(
            replace(part, size=next(sizes)) if isinstance(part, Image) else part
            for part in turn.parts
        ))
        for turn in sample.turns
    )  # fmt: skip
    return replace(sample, turns=turns)
