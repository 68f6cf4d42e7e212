"""What stands where: every position of the picture tells the words it shows.

Teaches a new encoder to read and to tell colours before anything must be said about them. A
language model's answers are a thin signal for that (some ten tokens a picture, all through
its attention, which has to be learned too); here every position learns from its own place.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.data.batch import Batch
from diptych.data.collate import Collator, Pictures
from diptych.data.regions import RegionCollator
from diptych.errors import ConfigError
from diptych.train.objective import Objective, ObjectiveConfig


class Config(ObjectiveConfig):
    """Predict the tokens of the regions at every position of the encoder's grid."""

    text_passes: ClassVar[int] = 0  # words are compared with embeddings alone

    name: str = "regions"
    """File stem of the part."""
    empty_weight: float = Field(default=0.1, ge=0)
    """Weight of positions that show nothing; there are many of them."""

    def build(self, model: nn.Module) -> Objective:
        return Regions(self, model)


class Regions(Objective):
    """Cross-entropy at every position with the tokens it shows, in equal shares.

    Words are scored by the language model's own embeddings, so that what the encoder says of a
    place and what the language model reads and writes share one space from the start; they learn
    in this stage when it lets the language model learn. Positions that no region covers learn a
    class of their own, "nothing". The weight is the number of covered positions plus
    `empty_weight` times that of the others.

    Shapes: features [V, N, C] -> logits [V * N, vocabulary + 1].
    Source: reading all text as pre-training is Donut's (arXiv:2111.15664, section 3.2); telling
    it at its place, by a linear layer on every position, instead of in one long sequence is ours.
    """

    def __init__(self, config: Config, model: Any):
        super().__init__()
        encoder = model.vision_encoder
        image = encoder.preprocessing
        if image.resize != "exact" or image.crop is not None or image.pad_to_square:
            raise ConfigError(
                "regions are told in fractions of the whole picture",
                where="model.vision_encoder.image",
                fix="use resize: exact without crop or pad_to_square for this objective",
            )
        self.empty_weight = config.empty_weight
        self.num_positions = encoder.num_prefix + encoder.grid[0] * encoder.grid[1]
        table = model.language_model.embeddings
        self.nothing = len(table)
        self.projection = nn.Linear(encoder.dim, table.shape[1])
        self.empty = nn.Parameter(torch.zeros(table.shape[1]))
        self.bias = nn.Parameter(torch.zeros(self.nothing + 1))

    def collator(self, model: Any, **budgets: Any) -> Collator:
        encoder = model.vision_encoder
        return RegionCollator(
            model.tokenizer,
            encoder.grid,
            encoder.num_prefix,
            budgets.get("pictures") or Pictures(encoder.preprocessing),
        )

    def forward(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        if batch.features is not None:
            features = batch.features
        else:
            features = model.encode_pixels(batch.pixel_values)
        words = torch.cat([model.language_model.embeddings, self.empty[None]])
        scores = self.projection(features).flatten(0, 1) @ words.to(features).T + self.bias
        scores = scores.float().log_softmax(-1)
        shown = torch.bincount(batch.target_positions, minlength=len(scores))
        picked = scores[batch.target_positions, batch.target_ids]
        told = -(picked / shown[batch.target_positions]).sum()
        nothing = -scores[shown == 0, self.nothing].sum()
        return {"regions": told + self.empty_weight * nothing}

    def weight(self, batch: Batch) -> float:
        covered = len(batch.target_positions.unique())
        empty = len(batch.image_keys) * self.num_positions - covered
        return covered + self.empty_weight * empty
