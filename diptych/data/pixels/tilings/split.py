"""LLaVA-1.5-HD: a grid of up to six tiles, the whole picture behind it.

Source: the LLaVA-1.5 paper (Improved Baselines with Visual Instruction Tuning), appendix A: tiles
of 224 pixels, features of mere padding removed, a learned token at the end of every row. No weights
of it were published, so nothing else can be compared.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from diptych.data.pixels.map_tiling import MapTiling, Side
from diptych.data.pixels.tiling import Place


class Config(MapTiling):
    """Tiles of 224 pixels in any grid of up to six."""

    whole: ClassVar[Place] = "last"

    name: str = "split"
    """File stem of the part."""
    tile: int = Field(default=224, ge=1)
    """Side of a tile in pixels; the image's preprocessing has the same size."""
    grids: tuple[tuple[Side, Side], ...] = Field(
        default=tuple((r, c) for r in range(1, 7) for c in range(1, 7) if r * c <= 6), min_length=1
    )
    """(rows, columns) to choose from; of equally good ones the first is taken."""
