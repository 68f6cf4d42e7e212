"""What is read at the places that show something, in the language model's own words."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.errors import ConfigError
from diptych.model.connector import Connector, ConnectorConfig, Grid

SCALE = 8.0
"""Of the scores at the start: tokens about as large as words then tell them apart."""
DEVIATION = 0.06
"""Of the table of words at the start."""
HALF = 0.03
"""Share of a place at which a word counts half: a word of six that are told there counts nearly
whole, one that is taken for another by one in ten hardly."""


class Config(ConnectorConfig):
    """A fixed number of places, chosen by a score that is learned, and one token for the whole."""

    name: str = "words"
    """File stem of the part."""
    num_kept: int = Field(default=48, ge=1)
    """Most places of one image: those with the highest scores, in reading order."""
    vocab_size: int = Field(default=2048, ge=1)
    """Words that can be told: as many as the language model has embeddings."""

    def build(
        self, vision_dim: int, text_dim: int, embeddings: nn.Module | None = None
    ) -> Connector:
        if embeddings is None:
            raise ConfigError(
                "the words connector needs a language model's embeddings", where="model.connector"
            )
        return Words(vision_dim, text_dim, self.num_kept, self.vocab_size, embeddings)

    def num_tokens(self, grid: Grid, num_prefix: int = 0) -> int:
        return 1 + min(self.num_kept, grid[0] * grid[1])

    def token_grid(self, grid: Grid) -> Grid | None:
        return grid


class Words(Connector):
    """Every place becomes the sum of the language model's embeddings of the words read there.

    First stands one token for the whole picture, a linear map of what the places have in common:
    what no place tells, such as the type of a chart. A token of a place is made of words alone.
    So a word asked for and a place that shows it are alike from the language model's first
    step, however its embeddings move. Most of a chart or a scanned page is empty: which places
    are passed on, a linear score of the features says. What is read where and which places
    count the objective `regions` teaches; answers teach the embeddings and the first token.
    Class tokens are left out.

    Shapes: [B, N, C] -> [B, 1 + min(num_kept, rows * columns), D], in reading order.
    Source: visual tokens as mixtures of embeddings by a probability over a vocabulary are Ovis'
    (arXiv:2405.20797, section 3.1), with a table of its own; here the table is the text's.
    """

    def __init__(
        self, vision_dim: int, text_dim: int, num_kept: int, vocab_size: int, embeddings: nn.Module
    ):
        super().__init__()
        self._embeddings = (embeddings,)  # the language model's, and no part of this one
        self.num_kept = num_kept
        self.vocab_size = vocab_size
        self.projection = nn.Linear(vision_dim, text_dim)
        # The last row is "nothing"; "embed" in the name says that its rows stand for one word each.
        table = torch.randn(vocab_size + 1, text_dim) * DEVIATION
        table[-1] = 0.0
        self.word_embeds = nn.Parameter(table)
        self.bias = nn.Parameter(torch.zeros(vocab_size + 1))
        self.scale = nn.Parameter(torch.tensor(SCALE))
        self.score = nn.Linear(vision_dim, 1)
        self.overview = nn.Linear(vision_dim, text_dim)

    def forward(self, features_BNC: Tensor, grid: Grid) -> Tensor:  # noqa: N803
        words_WD: Any = self._embeddings[0].weight  # noqa: N806
        if len(words_WD) != self.vocab_size:
            raise ConfigError(
                f"the connector tells {self.vocab_size} words, the language model has "
                f"{len(words_WD)}",
                where="model.connector.vocab_size",
                fix=f"set it to {len(words_WD)}",
            )
        features = features_BNC[:, -grid[0] * grid[1] :]
        with torch.no_grad():
            scores = self.score(features).squeeze(-1)
            kept = scores.topk(min(self.num_kept, scores.shape[1])).indices.sort().values
            features = torch.take_along_dim(features, kept[..., None], 1)
            share = self._told(features).float().softmax(-1)[..., :-1]
            there = share.square() / (share.square() + HALF**2)
        whole = self.overview(features.mean(1, keepdim=True))
        # What all words share tells none of them; it is how heads that look up tell text from
        # picture.
        tokens = there.to(words_WD.dtype) @ (words_WD - words_WD.mean(0))
        return torch.cat([whole, tokens.to(whole.dtype)], 1)

    def told(self, features_BNC: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:  # noqa: N803
        """Scores of the words, and last of "nothing", at every place [B, places, W + 1], and of
        the places [B, places]."""
        features = features_BNC[:, -grid[0] * grid[1] :]
        return self._told(features), self.score(features).squeeze(-1)

    def _told(self, features: Tensor) -> Tensor:
        told, nothing = self.word_embeds[:-1], self.word_embeds[-1:]
        words = torch.cat([told - told.mean(0), nothing])
        tokens = self.projection(features) * self.scale
        return nn.functional.linear(tokens, words.to(tokens), self.bias.to(tokens))
