"""Only the places that show something, projected to the language model's width."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.model.connector import Connector, ConnectorConfig, Grid


class Config(ConnectorConfig):
    """A fixed number of places, chosen by a score that is learned."""

    name: str = "select"
    """File stem of the part."""
    num_kept: int = Field(default=48, ge=1)
    """Most tokens of one image: the places with the highest scores, in reading order."""

    def build(self, vision_dim: int, text_dim: int) -> Connector:
        return Select(vision_dim, text_dim, self.num_kept)

    def num_tokens(self, grid: Grid, num_prefix: int = 0) -> int:
        return min(self.num_kept, grid[0] * grid[1])

    def token_grid(self, grid: Grid) -> Grid | None:
        return grid


class Select(Connector):
    """A linear map, of the places with the highest scores alone.

    Most of a chart or a scanned page is empty, and of what is not, one place of every word is
    enough for a language model that only has to look it up. Which places these are a linear
    score of the features says; the objective `regions` teaches it. A token is multiplied by the
    sigmoid of its score, so that without regions the score learns from the answers too. Class
    tokens are left out.

    Shapes: [B, N, C] -> [B, min(num_kept, rows * columns), D], in reading order.
    Source: routing a fixed number of tokens by a learned score that also scales them is
    Mixture-of-Depths' (arXiv:2404.02258, section 3).
    """

    def __init__(self, vision_dim: int, text_dim: int, num_kept: int):
        super().__init__()
        self.num_kept = num_kept
        self.projection = nn.Linear(vision_dim, text_dim)
        self.score = nn.Linear(vision_dim, 1)

    def forward(self, features_BNC: Tensor, grid: Grid) -> Tensor:  # noqa: N803
        tokens, scores = self.places(features_BNC, grid)
        assert scores is not None
        kept = scores.topk(min(self.num_kept, scores.shape[1])).indices.sort().values
        tokens = tokens * scores.sigmoid()[..., None]
        return torch.take_along_dim(tokens, kept[..., None], 1)

    def places(self, features_BNC: Tensor, grid: Grid) -> tuple[Tensor, Tensor | None]:  # noqa: N803
        features = features_BNC[:, -grid[0] * grid[1] :]
        return self.projection(features), self.score(features).squeeze(-1)
