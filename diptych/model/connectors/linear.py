"""One linear layer (LLaVA, VILA)."""

from __future__ import annotations

from torch import Tensor, nn

from diptych.model.connector import Connector, ConnectorConfig, Grid


class Config(ConnectorConfig):
    """A single projection to the language model's width."""

    name: str = "linear"
    """File stem of the part."""

    def build(
        self, vision_dim: int, text_dim: int, embeddings: nn.Module | None = None
    ) -> Connector:
        return Linear(vision_dim, text_dim)

    def num_tokens(self, grid: Grid, num_prefix: int = 0) -> int:
        return grid[0] * grid[1] + num_prefix

    def token_grid(self, grid: Grid) -> Grid | None:
        return grid


class Linear(Connector):
    """Every patch becomes one token by one linear map.

    Shapes: [B, N, C] -> [B, N, D].
    Source: LLaVA, section 4.1 (arXiv:2304.08485).
    """

    def __init__(self, vision_dim: int, text_dim: int):
        super().__init__()
        self.projection = nn.Linear(vision_dim, text_dim)

    def forward(self, features_BNC: Tensor, grid: Grid) -> Tensor:  # noqa: N803
        return self.projection(features_BNC)
