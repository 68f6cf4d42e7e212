"""Two linear layers with GELU between (LLaVA 1.5)."""

from __future__ import annotations

from torch import Tensor, nn

from diptych.model.connector import Connector, ConnectorConfig, Grid


class Config(ConnectorConfig):
    """A two-layer perceptron to the language model's width."""

    name: str = "mlp"
    """File stem of the part."""

    def build(
        self, vision_dim: int, text_dim: int, embeddings: nn.Module | None = None
    ) -> Connector:
        return Mlp(vision_dim, text_dim)

    def num_tokens(self, grid: Grid, num_prefix: int = 0) -> int:
        return grid[0] * grid[1] + num_prefix

    def token_grid(self, grid: Grid) -> Grid | None:
        return grid


class Mlp(Connector):
    """Every patch becomes one token by a two-layer perceptron of the language model's width.

    Shapes: [B, N, C] -> [B, N, D].
    Source: LLaVA 1.5, section 3.2 (arXiv:2310.03744): linear, exact GELU, linear.
    Parity: transformers.LlavaForConditionalGeneration, tests/parity/test_hf_llava.py.
    """

    def __init__(self, vision_dim: int, text_dim: int):
        super().__init__()
        self.linear_1 = nn.Linear(vision_dim, text_dim)
        self.activation = nn.GELU()
        self.linear_2 = nn.Linear(text_dim, text_dim)

    def forward(self, features_BNC: Tensor, grid: Grid) -> Tensor:  # noqa: N803
        return self.linear_2(self.activation(self.linear_1(features_BNC)))
