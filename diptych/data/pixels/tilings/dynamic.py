"""InternVL: a grid of the picture's proportions, 1 to 12 tiles, and the whole picture last.

Source: OpenGVLab/InternVL, `dynamic_preprocess`. Parity: tests/conformance/test_tilings.py (the
original), tests/parity/test_tilings.py (transformers' processor: tiles and pixels).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Self

from pydantic import Field, model_validator

from diptych.data.pixels.tiling import Tiles, TilingConfig, boxes_of


class Config(TilingConfig):
    """The grid whose proportions are nearest to the picture's, which is stretched to it."""

    name: str = "dynamic"
    """File stem of the part."""
    tile: int = Field(default=448, ge=1)
    """Side of a tile in pixels; the image's preprocessing has the same size."""
    min_tiles: int = Field(default=1, ge=1)
    """Fewest tiles of a grid."""
    max_tiles: int = Field(default=12, ge=1)
    """Most tiles of a grid, without the thumbnail."""
    thumbnail: bool = True
    """The whole picture as a last tile, where there are several."""

    @model_validator(mode="after")
    def _has_grids(self) -> Self:
        if self.min_tiles > self.max_tiles:
            raise ValueError("min_tiles is more than max_tiles")
        return self

    def plan(self, width: int, height: int, most: int | None = None) -> Tiles:
        allowed = self.max_tiles
        while True:
            columns, rows = self._grid(width, height, allowed)
            several = columns * rows > 1 and self.thumbnail
            # Under a budget the grid may be smaller than `min_tiles`: one tile is always allowed.
            if most is None or columns * rows + several <= most or allowed == 1:
                break
            allowed -= 1
        return Tiles(
            (width, height),
            (self.tile * columns, self.tile * rows),
            boxes_of(rows, columns, self.tile),
            rows=rows,
            columns=columns,
            thumbnail="last" if several else None,
            side=self.tile,
        )

    def _grid(self, width: int, height: int, most: int) -> tuple[int, int]:
        """(columns, rows). Between grids of equally near proportions the larger one is taken where
        the picture fills more than half of it."""
        best, least = (1, 1), float("inf")
        proportions = width / height
        for columns, rows in _grids(min(self.min_tiles, most), most):
            away = abs(proportions - columns / rows)
            fills = width * height > 0.5 * self.tile**2 * columns * rows
            if away < least or (away == least and fills):
                best, least = (columns, rows), away
        return best


@lru_cache
def _grids(fewest: int, most: int) -> tuple[tuple[int, int], ...]:
    """(columns, rows) of every grid with so many tiles, the fewest first."""
    sides = range(1, most + 1)
    fitting = ((c, r) for c in sides for r in sides if fewest <= c * r <= most)
    return tuple(sorted(fitting, key=lambda grid: grid[0] * grid[1]))
