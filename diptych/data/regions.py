"""Regions: which text stands where in a picture, and what each position of a grid shows.

A row may say so in `regions`, a list of `[text, left, top, right, bottom]` in fractions of the
picture's width and height from the upper left corner, as OCR and grounding sets give it. Every
format keeps the key in a sample's `meta`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from diptych.data.batch import Batch
from diptych.data.collate import Item, Pictures, Prepared, attach
from diptych.data.sample import Sample
from diptych.errors import DataError, DiptychError, FormatError

MIN_OVERLAP = 0.35
"""A region counts for a position when they share this much of the smaller of the two."""


@dataclass(frozen=True, slots=True)
class Region:
    """A text and the box it stands in, in fractions of width and height."""

    text: str
    left: float
    top: float
    right: float
    bottom: float


def regions_of(sample: Sample) -> list[Region]:
    """The regions of a sample.

    Raises:
        FormatError: `regions` is missing or empty, or an entry is no text with a box inside the
            picture; the message says which.
    """
    rows = sample.meta.get("regions")
    if not isinstance(rows, list) or not rows:
        raise FormatError(
            "the sample has no 'regions'",
            where=sample.source or sample.id,
            fix="give each row regions: [[text, left, top, right, bottom], ...] in 0..1",
        )
    return [
        _region(row, f"{sample.source or sample.id} regions[{i}]") for i, row in enumerate(rows)
    ]


def _region(row: Any, where: str) -> Region:
    if not isinstance(row, list) or len(row) != 5 or not isinstance(row[0], str):
        raise FormatError("a region is [text, left, top, right, bottom]", where=where)
    text, *box = row
    numbers = all(isinstance(at, int | float) and not isinstance(at, bool) for at in box)
    if not numbers or not all(0 <= at <= 1 for at in box):
        raise FormatError(
            f"the box {box} is not within 0..1",
            where=where,
            fix="divide pixels by the picture's width and height",
        )
    if not (box[0] < box[2] and box[1] < box[3]):
        raise FormatError(f"the box {box} is empty: left < right and top < bottom", where=where)
    if not text.strip():
        raise FormatError("the region's text is empty", where=where)
    return Region(text, *map(float, box))


def cells(region: Region, grid: tuple[int, int]) -> list[int]:
    """Positions (row * columns + column) of a (rows, columns) grid that show a region."""
    rows, columns = grid
    across = _overlap(region.left * columns, region.right * columns, columns)
    down = _overlap(region.top * rows, region.bottom * rows, rows)
    area = (region.right - region.left) * columns * (region.bottom - region.top) * rows
    needed = MIN_OVERLAP * min(1.0, area)
    return [r * columns + c for r, y in down for c, x in across if x * y >= needed]


def _overlap(start: float, end: float, number: int) -> list[tuple[int, float]]:
    """(cell, how much of it) for the unit cells that an interval touches."""
    first, last = int(start), min(int(end), number - 1)
    return [(i, min(end, i + 1) - max(start, i)) for i in range(first, last + 1)]


@dataclass
class RegionCollator:
    """Pictures with the tokens that each position of the encoder's grid shows.

    `target_positions` are flat indices (picture * positions + position) and `target_ids` the
    tokens; a position that shows several has several targets.

    Args:
        tokenizer: of the language model; a text is encoded as it stands behind a blank.
        grid: rows and columns of the encoder's features.
        num_prefix: class and register tokens before the grid.
        pictures: picture loader.
        pictures_per_batch: most pictures of a micro-batch.
    """

    tokenizer: Any
    grid: tuple[int, int]
    num_prefix: int
    pictures: Pictures
    pictures_per_batch: int = 64
    _known: dict[str, list[int]] = field(default_factory=dict)

    def __call__(self, items: Sequence[Item]) -> Prepared:
        prepared = Prepared()
        keys, arrays, errors = self.pictures.load(items)
        good: list[tuple[str, str, list[tuple[int, int]]]] = []
        for number, item in enumerate(items):
            try:
                if number in errors:
                    raise errors[number]
                if len(keys[number]) != 1:
                    raise DataError(
                        f"regions need one picture, this sample has {len(keys[number])}",
                        where=item.sample.source,
                    )
                good.append((item.sample.id, keys[number][0], self._targets(item.sample)))
            except DiptychError as error:
                prepared.rejected.append((item.sample.id, error.to_dict()))
        prepared.used = [sample_id for sample_id, _, _ in good]
        for start in range(0, len(good), self.pictures_per_batch):
            chunk = good[start : start + self.pictures_per_batch]
            prepared.batches.append(self._batch(chunk, arrays))
        return prepared

    def _targets(self, sample: Sample) -> list[tuple[int, int]]:
        """(position, token), each once."""
        found = {
            (self.num_prefix + cell, token)
            for region in regions_of(sample)
            for token in self._tokens(region.text)
            for cell in cells(region, self.grid)
        }
        return sorted(found)

    def _tokens(self, text: str) -> list[int]:
        if text not in self._known:
            encode = self.tokenizer.encode
            blank = encode(" ", add_special_tokens=False)
            ids = encode(f" {text.strip()}", add_special_tokens=False)
            # Where a blank is a token of its own (before Chinese) it says nothing.
            self._known[text] = [i for i in ids if [i] != blank] or ids
        return self._known[text]

    def _batch(
        self, chunk: list[tuple[str, str, list[tuple[int, int]]]], arrays: dict[str, np.ndarray]
    ) -> Batch:
        positions = self.num_prefix + self.grid[0] * self.grid[1]
        targets = [
            (number * positions + at, token, number)
            for number, (_, _, own) in enumerate(chunk)
            for at, token in own
        ]
        where, what, whose = (
            torch.tensor(column, dtype=torch.int64)
            for column in (zip(*targets, strict=True) if targets else ((), (), ()))
        )
        empty = torch.zeros(len(chunk), 0, dtype=torch.int64)
        batch = Batch(
            empty, empty, empty, empty, where, what, whose,
            image_keys=tuple(key for _, key, _ in chunk),
            sample_ids=tuple(sample_id for sample_id, _, _ in chunk),
        )  # fmt: skip
        attach(batch, arrays, self.pictures.features is not None)
        return batch
