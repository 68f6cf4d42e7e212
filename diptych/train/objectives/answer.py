"""Answers to questions about pictures, written by an answerer (BLIP)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diptych.data.batching.batch import IGNORE, Batch
from diptych.data.batching.budget import Budget
from diptych.data.batching.collate import Collator
from diptych.data.batching.collate_pairs import PairCollator
from diptych.data.batching.picture_loader import PictureLoader
from diptych.errors import ConfigError
from diptych.model.architectures.answerer import Answerer
from diptych.train.objective import PAIRS, Objective, ObjectiveConfig


class Config(ObjectiveConfig):
    """Write the answer from the question and the picture."""

    budget: ClassVar[tuple[str, ...]] = PAIRS

    name: str = "answer"
    """File stem of the part."""
    smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Label smoothing."""

    def build(self, model: nn.Module) -> Objective:
        if not isinstance(model, Answerer):
            raise ConfigError(
                "the answer objective needs an answerer",
                where="model",
                fix="set model.name=answerer, or use next_token",
            )
        return Answers(self)


class Answers(Objective):
    """Loss `answer`: the sum over an answer's tokens, a mean over answers.

    Source: BLIP, section 5.3 (arXiv:2201.12086); `blip_vqa.py` of salesforce/LAVIS, where an answer
    also has the share of the people who gave it as its weight: repeat the row as often instead.
    Parity: tests/parity/test_hf_blip_vqa.py.
    """

    groups_pictures = False

    def __init__(self, config: Config):
        super().__init__()
        self.smoothing = config.smoothing

    def collator(self, model: Any, budget: Budget, pictures: PictureLoader) -> Collator:
        return PairCollator(
            pictures, model.text_tokens, questions=True, long_samples=budget.long_samples
        )

    def weight(self, batch: Batch) -> float:
        return float(len(batch.sample_ids))

    def forward(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        ids, mask = batch.input_ids, batch.segment_ids
        states = model.text.answer(ids, mask, model.question_states(batch), batch.encoder_mask)
        labels = ids.masked_fill(mask == 0, IGNORE)[:, 1:]
        kept = labels != IGNORE
        logits = model.text.logits(states[:, :-1][kept]).float()
        loss = F.cross_entropy(
            logits, labels[kept], reduction="sum", label_smoothing=self.smoothing
        )
        return {"answer": loss}
