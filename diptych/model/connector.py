"""Contract of a connector: the hinge between image features and a language model.

A part in `connectors/` has a `Config` (a `ConnectorConfig`) and the module it builds. The
module maps encoder features of one image to language-model tokens; the number of those
tokens is known from the feature grid before any tensor exists, so that placeholders,
packing budgets and the planner agree.

Shapes: B images, N patches (= grid height x grid width, plus a class token where the
        encoder is asked for `full` features), C encoder width, K tokens, D language width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from diptych.config import PartConfig, part_field

Grid = tuple[int, int]
"""Patches of one image as (rows, columns)."""


class ConnectorConfig(PartConfig):
    """What every connector config can do."""

    def build(
        self, vision_dim: int, text_dim: int, embeddings: nn.Module | None = None
    ) -> Connector:
        """The module, newly initialised.

        Args:
            embeddings: of the language model (`weight` [W, D]), whose words its tokens stand among;
                may be on the meta device. None where they do not matter.
        """
        raise NotImplementedError(f"{type(self).__name__} builds nothing")

    def num_tokens(self, grid: Grid, num_prefix: int = 0) -> int:
        """Language-model tokens of one image with that grid and `num_prefix` class tokens."""
        raise NotImplementedError(f"{type(self).__name__} counts nothing")

    def token_grid(self, grid: Grid) -> Grid | None:
        """Rows and columns of tokens where each stands for a place in the picture, else None."""
        return None


class Connector(nn.Module):
    """features [B, N, C] and their grid -> tokens [B, K, D].

    Attributes:
        row_end: token [D] that ends every row of a map that several tiles make up; None where no
            tiling merges tiles.
    """

    row_end: nn.Parameter | None

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("row_end", None)

    def add_row_end(self, text_dim: int) -> None:
        """Give it a token that ends rows, newly initialised (as LLaVA-NeXT's `image_newline`)."""
        self.row_end = nn.Parameter(torch.randn(text_dim) / math.sqrt(text_dim))

    def forward(self, features_BNC: Tensor, grid: Grid) -> Tensor:  # noqa: N803
        raise NotImplementedError


ConnectorField: Any = part_field("model.connectors", ConnectorConfig)
