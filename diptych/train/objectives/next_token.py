"""Cross-entropy of the answer's tokens (LLaVA, VILA, InternVL; captioning too)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from diptych.data.batch import Batch
from diptych.data.collate import Collator
from diptych.model.likelihood import token_collator
from diptych.train.objective import Objective, ObjectiveConfig


class Config(ObjectiveConfig):
    """Predict the assistant's tokens."""

    name: str = "next_token"
    """File stem of the part."""

    def build(self, model: nn.Module) -> Objective:
        return NextToken()


class NextToken(Objective):
    """Sum of -log p over supervised tokens; weight is their number.

    Source: LLaVA, section 4.2, equation 3 (arXiv:2304.08485).
    Parity: tests/parity/test_language_model.py, against the loss of transformers.
    """

    def collator(self, model: Any, **budgets: Any) -> Collator:
        return token_collator(model, **budgets)

    def forward(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        return {"next_token": -model.target_log_probs(batch).sum()}

    def weight(self, batch: Batch) -> float:
        return float(batch.num_targets)
