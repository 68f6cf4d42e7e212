"""Contract of an objective: what a stage minimises.

A part in `objectives/` has a `Config` (an `ObjectiveConfig`). `build(model)` gives a module
that turns a batch into named loss sums; `weight(batch)` is what those sums are divided by,
known before the forward pass, so that accumulation over micro-batches and ranks gives the
loss and the gradients of one big batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from diptych.config import PartConfig, part_field
from diptych.data.batching.batch import Batch
from diptych.data.batching.budget import Budget
from diptych.data.batching.collate import Collator
from diptych.data.batching.picture_loader import PictureLoader


class ObjectiveConfig(PartConfig):
    """What every objective config can do.

    Attributes:
        budget: fields of a stage's budget (`data/batching/budget.py`) that it uses.
        text_passes: how often a step runs a sample's text through the text part.
        learns: whether it may own parameters; they learn at the stage's rate.
    """

    budget: ClassVar[tuple[str, ...]] = ()
    text_passes: ClassVar[int] = 1
    learns: ClassVar[bool] = False

    @property
    def packs(self) -> bool:
        """Whether samples fill rows; else a step is computed at once."""
        return "tokens_per_row" in self.budget

    def build(self, model: nn.Module) -> Objective:
        """The objective for a model."""
        raise NotImplementedError(f"{type(self).__name__} builds nothing")


class Objective(nn.Module):
    """(model, Batch) -> {name: sum of losses}. May own parameters that learn with the stage.

    Attributes:
        splits: whether a step may be cut into micro-batches; False where samples of one
            step depend on each other (contrastive negatives).
        gathers: whether an objective that does not split exchanges samples between ranks
            itself, so that each rank may hold a share of the step.
        groups_pictures: whether samples about one picture stay side by side, to share its tokens;
            False where they would be each other's negatives.
    """

    splits = True
    gathers = False
    groups_pictures = True

    def prepare(self, texts: Iterable[str], cache: Path, progress: Any) -> None:
        """Look at every text of the stage before the first step; nothing by default.

        Args:
            texts: the assistant's text of every sample.
            cache: folder for what a resumed run shall find again.
            progress: progress display.
        """

    def collator(self, model: Any, budget: Budget, pictures: PictureLoader) -> Collator:
        """How samples of a step become micro-batches."""
        raise NotImplementedError

    def forward(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """Loss sums by name; their total is minimised."""
        raise NotImplementedError

    def watch(self, losses: dict[str, float], num_samples: int) -> None:
        """See the losses of a whole step (means over all ranks); may warn. Nothing by default."""

    def weight(self, batch: Batch) -> float:
        """What a loss sum is divided by."""
        raise NotImplementedError


PAIRS: tuple[str, ...] = ("long_samples",)
"""Budget of objectives that read one picture and one text a sample."""
PACKS: tuple[str, ...] = tuple(field.name for field in fields(Budget))
"""Budget of objectives that fill rows."""
ObjectiveField: Any = part_field("train.objectives", ObjectiveConfig)
