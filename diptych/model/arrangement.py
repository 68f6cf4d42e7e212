"""How the tokens of a picture's tiles become the picture's tokens: how many, in which order.

A picture has as many tokens as its arrangement says, and that follows from its size. The chat
encoder, packing, the planner and generation ask here; nobody else assumes one count a picture.

Tiles stand one after the other, or, where the tiling merges them, they become one map: what shows
nothing but the ground behind the picture is left out, and a learned token ends every row. The whole
picture, a tile of its own, keeps its place before or behind them.

Shapes: S tiles of all pictures, K tokens of one tile, D language width, N tokens of all pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diptych.data.pixels.image import measure
from diptych.data.pixels.map_tiling import MapTiling
from diptych.data.pixels.tiling import Tiles, TilingConfig
from diptych.data.pixels.tilings.single import Config as Single
from diptych.data.sample import Image
from diptych.errors import ConfigError, ModelError
from diptych.model.connector import Grid

SLACK = 1.1
"""A map is scaled down where its sides are more than so many times as long as they may be."""


@dataclass(frozen=True)
class MapPart:
    """What of a merged map is kept, in tokens.

    Attributes:
        rows, columns: of the whole map.
        top, left: where the kept part begins.
        height, width: of the kept part.
        scaled: (height, width) that it is scaled down to; the same where it is not.
    """

    rows: int
    columns: int
    top: int
    left: int
    height: int
    width: int
    scaled: tuple[int, int]

    @property
    def num_tokens(self) -> int:
        """With the token that ends every row."""
        return self.scaled[0] * (self.scaled[1] + 1)


@dataclass(frozen=True)
class Arrangement:
    """Tokens of tiles in the order in which the language model reads them.

    Args:
        tokens_per_tile: what the connector announces.
        tiling: how pictures are cut.
        grid: rows and columns of a tile's tokens, where they stand for places; a merged map needs
            it.
    """

    tokens_per_tile: int
    tiling: TilingConfig = field(default_factory=Single)
    grid: Grid | None = None

    def __post_init__(self) -> None:
        if self.tiling.merged and self.grid is None:
            raise ConfigError(
                f"the tiling '{self.tiling.name}' makes one map of all tiles, but the connector's "
                "tokens do not stand for places",
                where="model.connector",
                fix="use linear, mlp, downsample or pixel_shuffle, or the tiling dynamic",
            )

    @property
    def is_fixed(self) -> bool:
        """Whether all pictures have as many tokens, whatever their size."""
        return isinstance(self.tiling, Single)

    @property
    def ends_rows(self) -> bool:
        """Whether a learned token ends every row."""
        return self.tiling.merged

    def plans(self, images: Sequence[Image]) -> list[Tiles]:
        """The tiles of each of a sample's pictures, which share its budget.

        Raises:
            ModelError: a size is not known, and the bytes are not at hand.
            ImageError: they are no picture.
        """
        most = self.tiling.share(len(images))
        return [self._plan(image, most) for image in images]

    def is_coarser(self, tiles: Tiles) -> bool:
        """Whether a budget made the picture coarser than it would be alone."""
        return tiles != self.tiling.plan(*tiles.of)

    def _plan(self, image: Image, most: int | None = None) -> Tiles:
        if self.is_fixed:  # nothing is read for a size that changes nothing
            return self.tiling.plan(1, 1)
        if image.size is None and image.data is None:
            raise ModelError(
                "how many tokens the picture has follows from its size, which nobody looked up",
                where=image.path,
                fix="let pictures be checked before training (verify_images: header or full)",
            )
        size = image.size or measure(image.data or b"", where=image.path)
        return self.tiling.plan(*size, most)

    def num_tokens(self, tiles: Tiles) -> int:
        """Language-model tokens of a picture with these tiles."""
        if not isinstance(self.tiling, MapTiling):
            return len(tiles) * self.tokens_per_tile
        return self.tokens_per_tile + self._map(tiles).num_tokens

    def tokens_of(self, image: Image) -> int:
        """Language-model tokens of a picture that is alone in its sample; see `plans`."""
        return self.num_tokens(self._plan(image, self.tiling.share(1)))

    def tiles_of(self, image: Image) -> int:
        """Tiles of a picture that is alone in its sample; see `plans`."""
        return len(self._plan(image, self.tiling.share(1)))

    def _map(self, tiles: Tiles) -> MapPart:
        """What of the merged map of these tiles is kept.

        Source: `unpad_image` of LLaVA-NeXT and of transformers, which differ in rounding
        (`MapTiling.rounded`); both take the same number off either side.
        """
        assert isinstance(self.tiling, MapTiling) and self.grid is not None
        if not tiles.boxes:  # transformers ends the lone whole picture as it ends a row
            return MapPart(0, 0, 0, 0, 1, 0, (1, 0))
        rows, columns = tiles.rows * self.grid[0], tiles.columns * self.grid[1]
        width, height = tiles.of
        top = left = 0
        if width / height > columns / rows:
            top = (rows - self._whole(height * (columns / width))) // 2
        else:
            left = (columns - self._whole(width * (rows / height))) // 2
        kept = (rows - 2 * top, columns - 2 * left)
        scaled = kept
        if self.tiling.max_map_tiles is not None:
            allowed = self.tiling.max_map_tiles * self.tokens_per_tile
            times = math.sqrt(kept[0] * kept[1] / allowed)
            if times > SLACK:
                scaled = int(kept[0] // times), int(kept[1] // times)
        return MapPart(rows, columns, top, left, *kept, scaled)

    def _whole(self, length: float) -> int:
        rounded = isinstance(self.tiling, MapTiling) and self.tiling.rounded
        return int(round(length, 7) if rounded else length)

    def laid_out(
        self,
        tokens_SKD: Tensor,  # noqa: N803
        tiles: Sequence[Tiles],
        row_end: Tensor | None = None,
    ) -> Tensor:
        """Tokens of all tiles [S, K, D] -> tokens of all pictures, one after the other [N, D].

        Args:
            row_end: [D], where a token ends every row.
        """
        assert len(tokens_SKD) == sum(map(len, tiles)), "every tile belongs to a picture"
        if not self.tiling.merged:
            return tokens_SKD.flatten(0, 1)
        assert row_end is not None, "the model has a token that ends rows"
        row_end = row_end.to(tokens_SKD.dtype)
        pictures = tokens_SKD.split([len(one) for one in tiles])
        return torch.cat(
            [self._merged(own, one, row_end) for own, one in zip(pictures, tiles, strict=True)]
        )

    def _merged(self, tokens_SKD: Tensor, tiles: Tiles, row_end: Tensor) -> Tensor:  # noqa: N803
        """Tokens of one picture [N, D]."""
        assert self.grid is not None
        first = tiles.thumbnail == "first"
        whole = tokens_SKD[0 if first else -1]
        cut = tokens_SKD[1:] if first else tokens_SKD[:-1]
        part, (down, across) = self._map(tiles), self.grid
        if not tiles.boxes:
            return torch.cat([whole, row_end[None]])
        # [rows, columns, down, across, D] -> [rows x down, columns x across, D]
        laid = cut.unflatten(0, (tiles.rows, tiles.columns)).unflatten(2, (down, across))
        laid = laid.transpose(1, 2).flatten(2, 3).flatten(0, 1)
        laid = laid[part.top : part.top + part.height, part.left : part.left + part.width]
        if part.scaled != (part.height, part.width):
            channels = laid.permute(2, 0, 1)[None]
            scaled = torch.nn.functional.interpolate(channels, size=part.scaled, mode="bilinear")
            laid = scaled[0].permute(1, 2, 0)
        ended = torch.cat([laid, row_end.expand(len(laid), 1, -1)], dim=1).flatten(0, 1)
        return torch.cat([whole, ended] if first else [ended, whole])

    def by_picture(self, tokens_ND: Tensor, tiles: Sequence[Tiles]) -> list[Tensor]:  # noqa: N803
        """`laid_out` taken apart again: [tokens, D] of each picture."""
        return list(tokens_ND.split([self.num_tokens(one) for one in tiles]))
