"""Learned queries that read the patches through cross-attention (Flamingo, Qwen-VL)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.errors import ConfigError
from diptych.model.connector import Connector, ConnectorConfig, Grid
from diptych.model.positions import grid_positions


class Config(ConnectorConfig):
    """A fixed number of tokens whatever the resolution."""

    name: str = "resampler"
    """File stem of the part."""
    num_queries: int = Field(default=64, ge=1)
    """Tokens of one image."""
    num_layers: int = Field(default=2, ge=1)
    """Cross-attention blocks."""
    num_heads: int = Field(default=8, ge=1)
    """Attention heads; must divide `hidden_dim`."""
    hidden_dim: int = Field(default=512, ge=1)
    """Width of the queries."""

    def build(
        self, vision_dim: int, text_dim: int, embeddings: nn.Module | None = None
    ) -> Connector:
        if self.hidden_dim % self.num_heads or self.hidden_dim % 4:
            raise ConfigError(
                f"hidden_dim {self.hidden_dim} must be divisible by num_heads {self.num_heads} "
                "and by 4",
                where="model.connector.hidden_dim",
            )
        return Resampler(vision_dim, text_dim, self)

    def num_tokens(self, grid: Grid, num_prefix: int = 0) -> int:
        return self.num_queries


class Resampler(Connector):
    """Perceiver resampler: queries attend to patches, then to a feed-forward layer.

    Pre-norm blocks; keys carry two-dimensional positions.

    Shapes: [B, N, C] -> [B, num_queries, D].
    Source: Flamingo, section 3.1 (arXiv:2204.14198).
    """

    def __init__(self, vision_dim: int, text_dim: int, config: Config):
        super().__init__()
        dim = config.hidden_dim
        self.queries = nn.Parameter(torch.randn(config.num_queries, dim) * dim**-0.5)
        self.input = nn.Linear(vision_dim, dim)
        self.input_norm = nn.LayerNorm(dim)
        self.blocks = nn.ModuleList(_Block(dim, config.num_heads) for _ in range(config.num_layers))
        self.output_norm = nn.LayerNorm(dim)
        self.output = nn.Linear(dim, text_dim)

    def forward(self, features_BNC: Tensor, grid: Grid) -> Tensor:  # noqa: N803
        keys = self.input_norm(self.input(features_BNC))
        positions = grid_positions(grid, keys.shape[-1], keys.device).to(keys.dtype)
        num_prefix = keys.shape[1] - positions.shape[0]
        keys = torch.cat([keys[:, :num_prefix], keys[:, num_prefix:] + positions], 1)
        queries = self.queries.expand(len(keys), -1, -1).to(keys.dtype)
        for block in self.blocks:
            queries = block(queries, keys)
        return self.output(self.output_norm(queries))


class _Block(nn.Module):
    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.query_norm = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)
        )

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        attended, _ = self.attention(self.query_norm(queries), keys, keys, need_weights=False)
        queries = queries + attended
        return queries + self.feed_forward(queries)
