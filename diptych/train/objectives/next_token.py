"""Cross-entropy of the answer's tokens (LLaVA, VILA, InternVL; captioning too)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from diptych.data.batching.batch import Batch
from diptych.data.batching.budget import Budget
from diptych.data.batching.collate import Collator
from diptych.data.batching.picture_loader import PictureLoader
from diptych.machine import widest
from diptych.train.objective import PACKS, Objective, ObjectiveConfig


class Config(ObjectiveConfig):
    """Predict the assistant's tokens."""

    budget: ClassVar[tuple[str, ...]] = PACKS

    name: str = "next_token"
    """File stem of the part."""
    average: Literal["token", "sqrt", "sample"] = "token"
    """What counts alike: every token; every sample; or, between them, a sample of n tokens as
    the square root of n (InternVL's "square averaging"), so that long answers do not drown
    short ones and short ones not long ones."""

    def build(self, model: nn.Module) -> Objective:
        return NextToken(self)


class NextToken(Objective):
    """Weighted sum of -log p over supervised tokens; the weight is the sum of their weights.

    Source: LLaVA, section 4.2, equation 3 (arXiv:2304.08485); `average: sqrt` after InternVL 2.5
    (arXiv:2412.05271).
    Parity: tests/parity/test_language_model.py, against the loss of transformers.
    """

    def collator(self, model: Any, budget: Budget, pictures: PictureLoader) -> Collator:
        return model.collator(budget, pictures)

    def __init__(self, config: Config):
        super().__init__()
        self.power = {"token": 0.0, "sqrt": -0.5, "sample": -1.0}[config.average]

    def forward(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        log_probs = model.target_log_probs(batch)
        if self.power:
            log_probs = log_probs * self._weights(batch).to(log_probs)
        return {"next_token": -log_probs.sum()}

    def weight(self, batch: Batch) -> float:
        return float(self._weights(batch).sum()) if self.power else float(batch.num_targets)

    def _weights(self, batch: Batch) -> Tensor:
        """Weight of every target; a sample never spans two micro-batches."""
        whose = batch.target_samples
        return torch.bincount(whose).to(widest(whose.device))[whose] ** self.power
