"""Objectives of a dual encoder: embed every pair of a step, then one loss over all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diptych.data.batching.batch import Batch
from diptych.data.batching.budget import Budget
from diptych.data.batching.collate import Collator
from diptych.data.batching.collate_pairs import PairCollator
from diptych.data.batching.picture_loader import PictureLoader
from diptych.errors import ConfigError
from diptych.model.trainable import normalises_over_batch
from diptych.train.objective import Objective

Loss = Callable[[Any, Tensor, Tensor], Tensor]
"""(model, unit vectors of pictures [n, D], of texts [n, D]) -> sum of losses of these pairs."""


class Pairs(Objective):
    """A loss over a step's pairs, those of every rank; its weight is their number.

    With `chunk_size`, activations are kept for so many pairs only: each chunk is embedded without
    them, and again when its gradient is known. The gradients are those of the whole batch, dropout
    masks included.
    Source: GradCache (arXiv:2101.06983), here by way of activation checkpointing.
    Parity: tests/equivalence/test_pairs.py, chunks and two ranks.
    """

    splits = False
    gathers = True
    groups_pictures = False

    def __init__(self, name: str, loss: Loss, chunk_size: int | None):
        super().__init__()
        self.name = name
        self.loss = loss
        self.chunk_size = chunk_size

    def collator(self, model: Any, budget: Budget, pictures: PictureLoader) -> Collator:
        return PairCollator(
            pictures, model.text_tokens, draws=True, long_samples=budget.long_samples
        )

    def forward(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        size, total = self.chunk_size, len(batch.sample_ids)
        if size is None or size >= total:
            images, texts = model.embed(batch)
        else:
            _refuse_batch_norm(model)
            starts = range(0, total, size)
            parts = [
                checkpoint(model.embed, batch.pairs(s, s + size), use_reentrant=False)
                for s in starts
            ]
            images, texts = (torch.cat(side) for side in zip(*parts, strict=True))
        return {self.name: self.loss(model, images, texts)}

    def weight(self, batch: Batch) -> float:
        return float(len(batch.sample_ids))


def numbered(keys: tuple[str, ...], device: torch.device) -> Tensor:
    """Content hashes as int64 [n], equal where the pictures are."""
    return torch.tensor([int(key[:15], 16) for key in keys], dtype=torch.int64, device=device)


def padded(rows: Tensor, width: int) -> Tensor:
    """Rows [n, T] filled with zeros on the right to [n, width]."""
    return nn.functional.pad(rows, (0, width - rows.shape[1]))


def _refuse_batch_norm(model: nn.Module) -> None:
    if (name := normalises_over_batch(model)) is not None:
        raise ConfigError(
            f"{name} normalises over the batch, so chunks of it would not be the same",
            where="objective.chunk_size",
            fix="leave chunk_size out, or choose an encoder without batch normalisation",
        )
