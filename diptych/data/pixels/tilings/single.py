"""The whole picture is one tile, as CLIP, BLIP-2 and LLaVA-1.5 read it."""

from __future__ import annotations

from diptych.data.pixels.tiling import Tiles, TilingConfig


class Config(TilingConfig):
    """One tile a picture, whatever its size."""

    name: str = "single"
    """File stem of the part."""

    def plan(self, width: int, height: int, most: int | None = None) -> Tiles:
        return Tiles((width, height), (width, height), ((0, 0, width, height),))
