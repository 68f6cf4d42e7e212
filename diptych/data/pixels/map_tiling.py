"""What the tilings of LLaVA have in common: tiles that become one map of the picture.

A grid is chosen, the picture scaled to fit into it with its proportions kept and set on a black
ground, and cut. The whole picture, squeezed to a square, is a tile of its own besides. What shows
nothing but ground is left out of the map (`model/arrangement.py`).
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

from pydantic import Field

from diptych.data.pixels.tiling import Place, Tiles, TilingConfig, boxes_of

Side = Annotated[int, Field(ge=1)]


class MapTiling(TilingConfig):
    """Tiles that are merged into one map, and the whole picture.

    Attributes:
        whole: place of the whole picture among the tiles.
    """

    merged: ClassVar[bool] = True
    whole: ClassVar[Place] = "first"

    tile: int = Field(default=336, ge=1)
    """Side of a tile in pixels; the image's preprocessing has the same size."""
    grids: tuple[tuple[Side, Side], ...] = Field(default=(), min_length=1)
    """(rows, columns) to choose from; of equally good ones the first is taken."""
    rounded: bool = True
    """Sizes of the map are rounded to seven digits before they are cut to whole numbers, as
    transformers does; false does without, as the first LLaVA code, which loses a row or column
    where a product falls just short of a whole number."""
    max_map_tiles: int | None = Field(default=None, ge=1)
    """A map of more tokens than so many tiles have is scaled down to about that (LLaVA-OneVision:
    9); null keeps every token."""

    def plan(self, width: int, height: int, most: int | None = None) -> Tiles:
        fitting = [g for g in self.grids if most is None or g[0] * g[1] + 1 <= most]
        if not fitting:  # the whole picture alone
            return Tiles((width, height), (width, height), (), 0, 0, self.whole, side=self.tile)
        rows, columns = self._best(width, height, fitting)
        canvas = (self.tile * columns, self.tile * rows)
        return Tiles(
            (width, height),
            _fitted((width, height), canvas),
            boxes_of(rows, columns, self.tile),
            rows=rows,
            columns=columns,
            thumbnail=self.whole,
            canvas=canvas,
            side=self.tile,
        )

    def _best(self, width: int, height: int, grids: list[tuple[int, int]]) -> tuple[int, int]:
        """The grid that keeps most pixels of the picture, of those the one with least ground."""

        def kept(grid: tuple[int, int]) -> tuple[int, int]:
            across, down = self.tile * grid[1], self.tile * grid[0]
            scale = min(across / width, down / height)
            pixels = min(int(width * scale) * int(height * scale), width * height)
            return pixels, pixels - across * down

        return max(grids, key=kept)  # the first of equal ones


def _fitted(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """Width and height of a picture in a canvas; the longer side fills it."""
    (width, height), (across, down) = size, canvas
    if across / width < down / height:
        return across, min(math.ceil(height * (across / width)), down)
    return min(math.ceil(width * (down / height)), across), down
