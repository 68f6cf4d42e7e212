"""Budget: how much of a step stands together, and what happens to what is too long.

A stage says it, a collator obeys it. An objective declares which of its fields it uses
(`ObjectiveConfig.budget`); a recipe that sets another one is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of rows and micro-batches.

    Attributes:
        context_tokens: longest sample; None is the model's own context.
        long_samples: what happens to longer ones.
        packed: several samples a row; False gives each a row of its own (for comparison, and where
            a model cannot).
        share_images: samples about one picture share its tokens.
        tokens_per_row: tokens of a packed row; None finds the length with the least work for
            each step.
        tiles_per_row: tiles of pictures in a packed row; a picture that is not cut is one.
        rows_per_batch: rows of one micro-batch.
    """

    context_tokens: int | None = None
    long_samples: Literal["reject", "truncate"] = "reject"
    packed: bool = True
    share_images: bool = True
    tokens_per_row: int | None = None
    tiles_per_row: int = 16
    rows_per_batch: int = 8
