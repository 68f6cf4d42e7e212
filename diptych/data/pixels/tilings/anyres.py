"""LLaVA-NeXT: the best of a few grids, the whole picture before it.

Source: LLaVA-VL/LLaVA-NeXT, `select_best_resolution` and `spatial_unpad`. Parity:
tests/conformance/test_tilings.py (the original), tests/parity/test_tilings.py (transformers'
processor: tiles, pixels and counts).
"""

from __future__ import annotations

from pydantic import Field

from diptych.data.pixels.map_tiling import MapTiling, Side


class Config(MapTiling):
    """Tiles of 336 pixels in 1 x 2, 2 x 1, 2 x 2, 3 x 1 or 1 x 3."""

    name: str = "anyres"
    """File stem of the part."""
    grids: tuple[tuple[Side, Side], ...] = Field(
        default=((1, 2), (2, 1), (2, 2), (3, 1), (1, 3)), min_length=1
    )
    """(rows, columns) to choose from; of equally good ones the first is taken."""
