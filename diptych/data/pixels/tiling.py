"""Contract of a tiling: how a picture is cut into the tiles that an encoder looks at.

A part in `tilings/` has a `Config` (a `TilingConfig`) whose `plan(width, height)` answers from the
size alone, nothing decoded: the number of a picture's tiles is known wherever its size is, before
any pixel is. What becomes of the tiles' tokens says the model (`model/arrangement.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from PIL import Image as Pillow
from pydantic import Field

from diptych.config import PartConfig, part_field

DEFAULT = "single"
Box = tuple[int, int, int, int]
Place = Literal["first", "last"]


@dataclass(frozen=True, slots=True)
class Tiles:
    """One picture's tiles.

    Attributes:
        of: width and height in pixels of the picture.
        size: those that it is scaled to before it is cut.
        boxes: (left, top, right, bottom) of each tile, row by row; in the canvas if there is one.
        rows, columns: of the tiles.
        thumbnail: place of the whole picture among the tiles, where it is a tile of its own too.
        canvas: width and height of a black ground on which the scaled picture stands in the middle;
            None: the scaled picture itself is cut.
        side: width and height that the whole picture is squeezed to as a thumbnail; None leaves it
            to the preprocessing of a tile.
    """

    of: tuple[int, int]
    size: tuple[int, int]
    boxes: tuple[Box, ...]
    rows: int = 1
    columns: int = 1
    thumbnail: Place | None = None
    canvas: tuple[int, int] | None = None
    side: int | None = None

    def __len__(self) -> int:
        """Number of tiles, the thumbnail among them."""
        return len(self.boxes) + (self.thumbnail is not None)

    def cut(self, picture: Pillow.Image) -> list[Pillow.Image]:
        """The tiles of a picture, each to be preprocessed as a picture of its own."""
        cut = [self._scaled(picture).crop(box) for box in self.boxes] if len(self.boxes) > 1 else (
            [self._scaled(picture)] if self.boxes else []
        )  # fmt: skip
        if self.thumbnail is None:
            return cut
        whole = picture
        if self.side is not None:
            whole = picture.resize((self.side, self.side), Pillow.Resampling.BICUBIC)
        return [whole, *cut] if self.thumbnail == "first" else [*cut, whole]

    def _scaled(self, picture: Pillow.Image) -> Pillow.Image:
        scaled = picture
        if picture.size != self.size:
            scaled = picture.resize(self.size, Pillow.Resampling.BICUBIC)
        if self.canvas is None or self.canvas == self.size:
            return scaled
        ground = Pillow.new("RGB", self.canvas)
        left, top = ((c - s) // 2 for c, s in zip(self.canvas, self.size, strict=True))
        ground.paste(scaled, (left, top))
        return ground


def boxes_of(rows: int, columns: int, side: int) -> tuple[Box, ...]:
    """Squares of a grid, row by row."""
    return tuple(
        (side * column, side * row, side * (column + 1), side * (row + 1))
        for row in range(rows)
        for column in range(columns)
    )


class TilingConfig(PartConfig):
    """What every tiling config can do.

    Attributes:
        merged: the tiles' tokens become one map of the whole picture, with a learned token at the
            end of every row; else they stand one tile after the other.
    """

    merged: ClassVar[bool] = False

    tiles_per_sample: int | None = Field(default=None, ge=1)
    """Most tiles of all pictures of a sample together; several pictures share them evenly and are
    seen more coarsely, none is left out. Null: each picture has its own."""

    def share(self, num_pictures: int) -> int | None:
        """Most tiles of each of a sample's pictures; None where nothing limits them."""
        if self.tiles_per_sample is None or not num_pictures:
            return None
        return max(1, self.tiles_per_sample // num_pictures)

    def plan(self, width: int, height: int, most: int | None = None) -> Tiles:
        """The tiles of a picture of that size in pixels.

        Args:
            most: no more tiles than so many, but at least one: a picture is seen more coarsely,
                never cut off.
        """
        raise NotImplementedError(f"{type(self).__name__} plans nothing")


TilingField: Any = part_field("data.pixels.tilings", TilingConfig, default=DEFAULT)
