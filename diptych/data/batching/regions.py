"""Regions: which text stands where in a picture, and what each position of a grid shows.

A row may say so in `regions`, a list of `[text, left, top, right, bottom]` in fractions of the
picture's width and height from the upper left corner, as OCR and grounding sets give it. A sixth
entry says what is written there, letter by letter (`["Wed third", ..., "Wed"]`; empty for a shape);
without it all of the text is. A text that does not begin with it tells it in other words
(`["v34 percent", ..., "34 %"]`). Every format keeps the key in a sample's `meta`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from diptych.data.batching.batch import Batch
from diptych.data.batching.collate import Prepared
from diptych.data.batching.picture_loader import Item, PictureLoader, Shown, attach
from diptych.data.sample import Sample
from diptych.errors import DataError, DiptychError, FormatError

MIN_OVERLAP = 0.35
"""A region counts for a position when they share this much of the smaller of the two."""


@dataclass(frozen=True, slots=True)
class Region:
    """What is told of a box, in fractions of width and height.

    Attributes:
        written: what is written there, and told where the text begins with it; None for all of it.
    """

    text: str
    left: float
    top: float
    right: float
    bottom: float
    written: str | None = None


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
    if not isinstance(row, list) or len(row) not in (5, 6) or not isinstance(row[0], str):
        raise FormatError("a region is [text, left, top, right, bottom]", where=where)
    text, *box = row[:5]
    written = row[5] if len(row) == 6 else None
    if written is not None and not isinstance(written, str):
        raise FormatError("a region's sixth entry is the text written there", where=where)
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
    left, top, right, bottom = map(float, box)
    return Region(text, left, top, right, bottom, written)


def cells(region: Region, grid: tuple[int, int]) -> list[int]:
    """Positions (row * columns + column) of a (rows, columns) grid that show a region."""
    rows, columns = grid
    across = _overlap(region.left * columns, region.right * columns, columns)
    down = _overlap(region.top * rows, region.bottom * rows, rows)
    area = (region.right - region.left) * columns * (region.bottom - region.top) * rows
    needed = MIN_OVERLAP * min(1.0, area)
    return [r * columns + c for r, y in down for c, x in across if x * y >= needed]


def centre(region: Region, grid: tuple[int, int]) -> int:
    """Position (row * columns + column) of a grid under the centre of a region."""
    rows, columns = grid
    row = int((region.top + region.bottom) / 2 * rows)
    column = int((region.left + region.right) / 2 * columns)
    return min(row, rows - 1) * columns + min(column, columns - 1)


def letters(region: Region) -> list[tuple[str, float, float]]:
    """The letters written in a region, each with its centre (x, y) in fractions.

    Advances are taken as equal but for wide characters (Chinese, Japanese, Korean). In a box higher
    than wide, text is taken to run upwards; in one that is large both ways from the lower left to
    the upper right, as turned labels of an axis do.
    """
    text = "".join((region.text if region.written is None else region.written).split())
    widths = [2.0 if ord(character) > 0x2E7F else 1.0 for character in text]
    width, height = region.right - region.left, region.bottom - region.top
    advance = max(width, height) / sum(widths) if widths else 0.0
    across = upwards = False
    if len(text) > 1 and height > 1.3 * width:
        upwards = True
    elif len(text) > 2 and height > 2.5 * advance:
        across = upwards = True
    else:
        across = True
    found, at = [], 0.0
    for character, own in zip(text, widths, strict=True):
        share = (at + own / 2) / sum(widths)
        at += own
        x = region.left + (share if across else 0.5) * width
        y = region.bottom - (share if upwards else 0.5) * height
        found.append((character, x, y))
    return found


def _overlap(start: float, end: float, number: int) -> list[tuple[int, float]]:
    """(cell, how much of it) for the unit cells that an interval touches."""
    first, last = int(start), min(int(end), number - 1)
    return [(i, min(end, i + 1) - max(start, i)) for i in range(first, last + 1)]


@dataclass
class RegionCollator:
    """Pictures with the tokens that each position of the encoder's grid shows.

    `target_positions` are flat indices (picture * positions + position) and `target_ids` the
    tokens; a position that shows several has several targets. The batch's `extra` has

    - `target_shares`: float32 [P], share of a target among those of its position;
    - `letters`: float32 [L, 4], picture, x and y (fractions from the upper left corner) and code
      point of every single letter;
    - `centres`: int64 [M], positions under the centre of a region.

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
    pictures: PictureLoader
    pictures_per_batch: int = 64
    _known: dict[str, list[int]] = field(default_factory=dict)
    _blank: list[int] | None = None

    def __call__(self, items: Sequence[Item]) -> Prepared:
        prepared = Prepared()
        keys, pictures, errors = self.pictures.load(items)
        good: list[tuple[str, str, list[Region]]] = []
        for number, item in enumerate(items):
            try:
                if number in errors:
                    raise errors[number]
                if len(keys[number]) != 1:
                    raise DataError(
                        f"regions need one picture, this sample has {len(keys[number])}",
                        where=item.sample.source,
                    )
                good.append((item.sample.id, keys[number][0], regions_of(item.sample)))
            except DiptychError as error:
                prepared.rejected.append((item.sample.id, error.to_dict()))
        prepared.used = [sample_id for sample_id, _, _ in good]
        for start in range(0, len(good), self.pictures_per_batch):
            chunk = good[start : start + self.pictures_per_batch]
            prepared.batches.append(self._batch(chunk, pictures))
        return prepared

    def _targets(self, regions: Sequence[Region]) -> list[tuple[int, int, float]]:
        """(position, token, share of the position), each token of a position once.

        What is written at a position and what is told of it share it evenly.
        """
        read: dict[int, set[int]] = {}
        told: dict[int, set[int]] = {}
        for region in regions:
            own, others = self._words(region)
            for cell in cells(region, self.grid):
                read.setdefault(cell, set()).update(own)
                told.setdefault(cell, set()).update(others - own)
        found = []
        for cell in sorted(read):
            # A word that one region tells and another shows is read.
            halves = [half for half in (read[cell], told[cell] - read[cell]) if half]
            found += [
                (self.num_prefix + cell, token, 1 / len(half) / len(halves))
                for half in halves
                for token in sorted(half)
            ]
        return found

    def _words(self, region: Region) -> tuple[set[int], set[int]]:
        """Tokens of what is written in a region, and of what else is told of it."""
        if region.written is None:
            return set(self._tokens(region.text)), set()
        # What is told stands behind what is written; but numbers are told in other words.
        begins = region.text.startswith(region.written)
        words = region.text[len(region.written) if begins else 0 :].split()
        own = self._tokens(region.written) if begins else []
        # Word by word: the same few words are told of every region, each time in another order.
        return set(own), {token for word in words for token in self._tokens(word)}

    def _tokens(self, text: str) -> list[int]:
        if not text.strip():
            return []
        if text not in self._known:
            encode = self.tokenizer.encode
            if self._blank is None:
                self._blank = encode(" ", add_special_tokens=False)
            ids = encode(f" {text.strip()}", add_special_tokens=False)
            # Where a blank is a token of its own (before Chinese) it says nothing.
            self._known[text] = [i for i in ids if [i] != self._blank] or ids
        return self._known[text]

    def _batch(
        self, chunk: list[tuple[str, str, list[Region]]], pictures: dict[str, Shown]
    ) -> Batch:
        positions = self.num_prefix + self.grid[0] * self.grid[1]
        targets = [
            (number * positions + at, token, number, share)
            for number, (_, _, own) in enumerate(chunk)
            for at, token, share in self._targets(own)
        ]
        where, what, whose, shares = ([target[column] for target in targets] for column in range(4))
        written = [
            (number, x, y, ord(letter))
            for number, (_, _, own) in enumerate(chunk)
            for region in own
            for letter, x, y in letters(region)
        ]
        centres = [
            number * positions + self.num_prefix + centre(region, self.grid)
            for number, (_, _, own) in enumerate(chunk)
            for region in own
        ]
        empty = torch.zeros(len(chunk), 0, dtype=torch.int64)
        batch = Batch(
            empty, empty, empty, empty,
            target_positions=torch.tensor(where, dtype=torch.int64),
            target_ids=torch.tensor(what, dtype=torch.int64),
            target_samples=torch.tensor(whose, dtype=torch.int64),
            image_keys=tuple(key for _, key, _ in chunk),
            sample_ids=tuple(sample_id for sample_id, _, _ in chunk),
            extra={
                "target_shares": torch.tensor(shares, dtype=torch.float32),
                "letters": torch.tensor(written, dtype=torch.float32).reshape(-1, 4),
                "centres": torch.tensor(centres, dtype=torch.int64).unique(),
            },
        )  # fmt: skip
        attach(batch, pictures, self.pictures.features is not None)
        return batch
