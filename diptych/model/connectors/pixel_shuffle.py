"""Pixel shuffle 0.5, layer norm and a two-layer perceptron (InternVL): 1024 -> 256 tokens."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from diptych.errors import ConfigError
from diptych.model.connector import Connector, ConnectorConfig, Grid


class Config(ConnectorConfig):
    """Fold `1/scale` x `1/scale` patches into channels, then a perceptron."""

    name: str = "pixel_shuffle"
    """File stem of the part."""
    scale: float = Field(default=0.5, gt=0, le=1)
    """Grid size after over grid size before; one over a whole number."""
    order: Literal["v1", "v2"] = "v2"
    """Which of InternVL's two block orders; v1 has rows and columns swapped."""

    def build(
        self, vision_dim: int, text_dim: int, embeddings: nn.Module | None = None
    ) -> Connector:
        return PixelShuffle(vision_dim, text_dim, round(1 / self.scale), self.order)

    def num_tokens(self, grid: Grid, num_prefix: int = 0) -> int:
        factor = round(1 / self.scale)
        if num_prefix or grid[0] % factor or grid[1] % factor:
            raise ConfigError(
                f"pixel shuffle by {self.scale} needs a grid divisible by {factor} and no class "
                f"token; the grid is {grid[0]} x {grid[1]} with {num_prefix} class tokens",
                where="model.vision_encoder",
                fix="choose another image size, features: patch, or the downsample connector",
            )
        return (grid[0] // factor) * (grid[1] // factor)

    def token_grid(self, grid: Grid) -> Grid | None:
        factor = round(1 / self.scale)
        return grid[0] // factor, grid[1] // factor


def pixel_shuffle(images_BHWC: Tensor, factor: int, order: str = "v2") -> Tensor:  # noqa: N803
    """Fold space into channels.

    `v2`: channels of a block stand row by row (top-left, top-right, bottom-left,
    bottom-right). `v1`: the same blocks with the two output axes swapped.

    Shapes: [B, H, W, C] -> [B, H/f, W/f, f*f*C].
    Source: InternVL `modeling_internvl_chat.py`.
    Parity: tests/conformance/test_internvl_tiles.py.
    """
    batch, rows, columns, dim = images_BHWC.shape
    blocks = images_BHWC.reshape(batch, rows // factor, factor, columns // factor, factor, dim)
    blocks = blocks.permute(0, 1, 3, 2, 4, 5)
    blocks = blocks.reshape(batch, rows // factor, columns // factor, factor * factor * dim)
    return blocks if order == "v2" else blocks.transpose(1, 2)


class PixelShuffle(Connector):
    """Pixel shuffle, LayerNorm, linear, GELU, linear.

    Shapes: [B, N, C] -> [B, K, D].
    Source: InternVL 1.5, section 3.1 (arXiv:2404.16821).
    Parity: tests/conformance/test_internvl_tiles.py (the shuffle).
    """

    def __init__(self, vision_dim: int, text_dim: int, factor: int, order: str):
        super().__init__()
        self.factor = factor
        self.order = order
        folded = vision_dim * factor * factor
        self.norm = nn.LayerNorm(folded)
        self.linear_1 = nn.Linear(folded, text_dim)
        self.activation = nn.GELU()
        self.linear_2 = nn.Linear(text_dim, text_dim)

    def forward(self, features_BNC: Tensor, grid: Grid) -> Tensor:  # noqa: N803
        batch, _, dim = features_BNC.shape
        images_BHWC = features_BNC.reshape(batch, *grid, dim)  # noqa: N806
        folded = pixel_shuffle(images_BHWC, self.factor, self.order).flatten(1, 2)
        return self.linear_2(self.activation(self.linear_1(self.norm(folded))))
