"""Neighbouring patches concatenated, then one linear layer (VILA): 576 -> 144 tokens."""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diptych.errors import ConfigError
from diptych.model.connector import Connector, ConnectorConfig, Grid


class Config(ConnectorConfig):
    """Concatenate `factor` x `factor` patches, then project."""

    name: str = "downsample"
    """File stem of the part."""
    factor: int = Field(default=2, ge=1, le=8)
    """Patches merged in each direction."""

    def build(
        self, vision_dim: int, text_dim: int, embeddings: nn.Module | None = None
    ) -> Connector:
        return Downsample(vision_dim, text_dim, self.factor)

    def num_tokens(self, grid: Grid, num_prefix: int = 0) -> int:
        if num_prefix:
            raise ConfigError(
                "the downsample connector merges patches and has no place for a class token",
                where="model.vision_encoder.features",
                fix="set it to patch",
            )
        return -(-grid[0] // self.factor) * -(-grid[1] // self.factor)

    def token_grid(self, grid: Grid) -> Grid | None:
        return -(-grid[0] // self.factor), -(-grid[1] // self.factor)


def merge_patches(features_BNC: Tensor, grid: Grid, factor: int) -> Tensor:  # noqa: N803
    """Concatenate the channels of each `factor` x `factor` block of patches.

    Odd grids get zero rows and columns at the bottom and right. Channels of a block stand
    row by row: top-left, top-right, bottom-left, bottom-right.

    Shapes: [B, N, C] -> [B, ceil(rows / f) * ceil(columns / f), f * f * C].
    Source: VILA `base_projector.py`. Parity: tests/conformance/test_vila_downsample.py.
    """
    batch, _, dim = features_BNC.shape
    rows, columns = grid
    blocks = features_BNC.reshape(batch, rows, columns, dim)
    blocks = F.pad(blocks, (0, 0, 0, -columns % factor, 0, -rows % factor))
    rows, columns = -(-rows // factor), -(-columns // factor)
    blocks = blocks.reshape(batch, rows, factor, columns, factor, dim)
    blocks = blocks.permute(0, 1, 3, 2, 4, 5)
    return blocks.reshape(batch, rows * columns, factor * factor * dim)


class Downsample(Connector):
    """Merge neighbouring patches by concatenation, then project linearly.

    Shapes: [B, N, C] -> [B, K, D].
    Source: VILA, section 3.1 and appendix (arXiv:2312.07533).
    Parity: tests/conformance/test_vila_downsample.py.
    """

    def __init__(self, vision_dim: int, text_dim: int, factor: int):
        super().__init__()
        self.factor = factor
        self.projection = nn.Linear(vision_dim * factor * factor, text_dim)

    def forward(self, features_BNC: Tensor, grid: Grid) -> Tensor:  # noqa: N803
        return self.projection(merge_patches(features_BNC, grid, self.factor))
