"""A tiling for tests: a picture higher than wide is two tiles and a thumbnail, others are one."""

from __future__ import annotations

from diptych.data.pixels.tiling import Tiles, TilingConfig


class Config(TilingConfig):
    name: str = "tests.equivalence.halves"

    def plan(self, width: int, height: int, most: int | None = None) -> Tiles:
        size = (width, height)
        if height <= width or (most is not None and most < 3):
            return Tiles(size, size, ((0, 0, width, height),))
        half = height // 2
        boxes = ((0, 0, width, half), (0, half, width, height))
        return Tiles(size, size, boxes, rows=2, thumbnail="first")
