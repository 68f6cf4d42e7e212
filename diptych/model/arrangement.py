"""How the tokens of a picture's tiles become the picture's tokens: how many, in which order.

A picture has as many tokens as its arrangement says, and that follows from its size. The chat
encoder, packing, the planner and generation ask here; nobody else assumes one count a picture.

Shapes: S tiles of all pictures, K tokens of one tile, D language width, N tokens of all pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from diptych.data.pixels.image import measure
from diptych.data.pixels.tiling import Tiles, TilingConfig
from diptych.data.pixels.tilings.single import Config as Single
from diptych.data.sample import Image
from diptych.errors import ModelError


@dataclass(frozen=True)
class Arrangement:
    """Tiles one after the other, each with the tokens that the connector makes of it.

    Args:
        tokens_per_tile: what the connector announces.
        tiling: how pictures are cut.
    """

    tokens_per_tile: int
    tiling: TilingConfig = field(default_factory=Single)

    @property
    def is_fixed(self) -> bool:
        """Whether all pictures have as many tokens, whatever their size."""
        return isinstance(self.tiling, Single)

    def _plan(self, image: Image) -> Tiles:
        """The tiles of a picture.

        Raises:
            ModelError: its size is not known, and its bytes are not at hand.
            ImageError: they are no picture.
        """
        if self.is_fixed:  # nothing is read for a size that changes nothing
            return self.tiling.plan(1, 1)
        if image.size is None and image.data is None:
            raise ModelError(
                "how many tokens the picture has follows from its size, which nobody looked up",
                where=image.path,
                fix="let pictures be checked before training (verify_images: header or full)",
            )
        return self.tiling.plan(*image.size or measure(image.data or b"", where=image.path))

    def num_tokens(self, tiles: Tiles) -> int:
        """Language-model tokens of a picture with these tiles."""
        return len(tiles) * self.tokens_per_tile

    def tokens_of(self, image: Image) -> int:
        """Language-model tokens of a picture; see `_plan`."""
        return self.num_tokens(self._plan(image))

    def tiles_of(self, image: Image) -> int:
        """Tiles of a picture; see `_plan`."""
        return len(self._plan(image))

    def laid_out(self, tokens_SKD: Tensor, tiles: Sequence[Tiles]) -> Tensor:  # noqa: N803
        """Tokens of all tiles [S, K, D] -> tokens of all pictures, one after the other [N, D]."""
        assert len(tokens_SKD) == sum(map(len, tiles)), "every tile belongs to a picture"
        return tokens_SKD.flatten(0, 1)

    def by_picture(self, tokens_ND: Tensor, tiles: Sequence[Tiles]) -> list[Tensor]:  # noqa: N803
        """`laid_out` taken apart again: [tokens, D] of each picture."""
        return list(tokens_ND.split([self.num_tokens(one) for one in tiles]))
