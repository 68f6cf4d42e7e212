"""Contract of a tiling: how a picture is cut into the tiles that an encoder looks at.

A part in `tilings/` has a `Config` (a `TilingConfig`) whose `plan(width, height)` answers from the
size alone, nothing decoded: the number of a picture's tiles is known wherever its size is, before
any pixel is. What becomes of the tiles' tokens says the model (`model/arrangement.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image as Pillow

from diptych.config import PartConfig, part_field

DEFAULT = "single"


@dataclass(frozen=True, slots=True)
class Tiles:
    """One picture's tiles.

    Attributes:
        size: width and height in pixels that the picture is scaled to before it is cut.
        boxes: (left, top, right, bottom) of each tile in the scaled picture, row by row.
        rows, columns: of the tiles.
        thumbnail: the whole picture is a tile of its own besides; which place it takes among the
            tokens says the arrangement, among the tiles it is the first.
    """

    size: tuple[int, int]
    boxes: tuple[tuple[int, int, int, int], ...]
    rows: int = 1
    columns: int = 1
    thumbnail: bool = False

    def __len__(self) -> int:
        """Number of tiles, the thumbnail among them."""
        return len(self.boxes) + self.thumbnail

    def cut(self, picture: Pillow.Image) -> list[Pillow.Image]:
        """The tiles of a picture, each to be preprocessed as a picture of its own."""
        scaled = picture
        if picture.size != self.size:
            scaled = picture.resize(self.size, Pillow.Resampling.BICUBIC)
        whole = (0, 0, *self.size)
        cut = [scaled if box == whole else scaled.crop(box) for box in self.boxes]
        return [picture, *cut] if self.thumbnail else cut


class TilingConfig(PartConfig):
    """What every tiling config can do."""

    def plan(self, width: int, height: int) -> Tiles:
        """The tiles of a picture of that size in pixels."""
        raise NotImplementedError(f"{type(self).__name__} plans nothing")


TilingField: Any = part_field("data.pixels.tilings", TilingConfig, default=DEFAULT)
