"""Recall of retrieval between pictures and texts, several texts a picture allowed.

Source: LAION-AI/CLIP_benchmark, metrics/zeroshot_retrieval.py.
Parity: tests/conformance/test_retrieval.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diptych.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Ranks:
    """How many wrong ones stand before the first right one, 0 being best.

    Attributes:
        image_of_text: int64 [T], for each text the rank of its picture among all pictures.
        text_of_image: int64 [I], for each picture the rank of its best text among all texts.
    """

    image_of_text: Tensor
    text_of_image: Tensor

    def recall(self, k: int) -> dict[str, float]:
        """Share of texts whose picture, and of pictures one of whose texts, is in the first k."""
        return {
            f"image_retrieval_recall@{k}": _share(self.image_of_text < k),
            f"text_retrieval_recall@{k}": _share(self.text_of_image < k),
        }


def _share(hits: Tensor) -> float:
    return hits.double().mean().item()


def ranks(similarity: Tensor, image_of_text: Sequence[int] | Tensor) -> Ranks:
    """Ranks of what belongs together.

    Ties count against the right one, so that a model that says the same of everything is last
    and not first.

    Args:
        similarity: [I, T] of I pictures and T texts, higher is closer.
        image_of_text: row of the picture that each text belongs to; a picture may have several
            texts, and has at least one.

    Raises:
        ConfigError: sizes do not fit, a similarity is not a number, or a picture has no text.
    """
    images, texts = similarity.shape
    owner = torch.as_tensor(image_of_text, dtype=torch.int64, device=similarity.device)
    if len(owner) != texts:
        raise ConfigError(f"{texts} columns of similarity, but {len(owner)} texts")
    if texts and not (int(owner.min()) >= 0 and int(owner.max()) < images):
        raise ConfigError(f"a text belongs to a picture that is not among the {images}")
    if torch.isnan(similarity).any():
        raise ConfigError("a similarity is not a number", fix="look for empty or zero embeddings")
    without = sorted(set(range(images)) - set(owner.tolist()))
    if without:
        raise ConfigError(
            f"{len(without)} pictures have no text, the first is row {without[0]}",
            fix="leave them out, or give them texts",
        )
    columns = torch.arange(texts, device=similarity.device)
    own = similarity[owner, columns]
    # Itself is among those that are at least as close.
    of_text = (similarity >= own).sum(0) - 1
    mine = torch.zeros_like(similarity, dtype=torch.bool)
    mine[owner, columns] = True
    best = similarity.masked_fill(~mine, -torch.inf).max(1, keepdim=True).values
    of_image = ((similarity >= best) & ~mine).sum(1)
    return Ranks(of_text, of_image)
