"""Recall of retrieval between pictures and texts, several texts a picture allowed.

Source: LAION-AI/CLIP_benchmark, metrics/zeroshot_retrieval.py.
Parity: tests/conformance/test_retrieval.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diptych.errors import ConfigError

BLOCK_ELEMENTS = 2**24
"""Similarities held at once: 64 MiB of float32."""


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
    without = sorted(set(range(images)) - set(owner.tolist()))
    if without:
        raise ConfigError(
            f"{len(without)} pictures have no text, the first is row {without[0]}",
            fix="leave them out, or give them texts",
        )
    owners = owner.tolist()
    of_text, _ = ranked(lambda a, b: similarity.T[a:b], [[o] for o in owners], images)
    of_image, _ = ranked(lambda a, b: similarity[a:b], texts_of(owners, images), texts)
    return Ranks(of_text, of_image)


def texts_of(owners: Sequence[int], num_images: int) -> list[list[int]]:
    """The texts of each picture, from the picture of each text."""
    found: list[list[int]] = [[] for _ in range(num_images)]
    for text, owner in enumerate(owners):
        found[owner].append(text)
    return found


def ranked(
    scores: Callable[[int, int], Tensor],
    right: Sequence[Sequence[int]],
    num_targets: int,
    width: int = 1,
) -> tuple[Tensor, Tensor]:
    """How many wrong targets stand before the first right one of each query, and what is first.

    Scores are asked for in blocks of queries, so memory grows with their number and not with
    their product with the targets. Ties count against the right one; what stands first is a wrong
    target then.

    Args:
        scores: (start, stop) -> [stop - start, num_targets] of those queries, higher is closer.
        right: for each query the numbers of its right targets, at least one.
        width: numbers that `scores` holds for each that it gives.

    Returns:
        int64 [queries] and int64 [queries].

    Raises:
        ConfigError: a score is not a number.
    """
    places = torch.zeros(len(right), dtype=torch.int64)
    first = torch.zeros(len(right), dtype=torch.int64)
    size = max(1, BLOCK_ELEMENTS // max(1, num_targets * width))
    for start in range(0, len(right), size):
        stop = min(start + size, len(right))
        rows = scores(start, stop)
        highest, top = _highest(rows)
        if torch.isnan(highest).any():  # NaN is the maximum of whatever holds one
            raise ConfigError(
                "a similarity is not a number", fix="look for empty or zero embeddings"
            )
        pairs = [(q - start, t) for q in range(start, stop) for t in right[q]]
        query, target = torch.tensor(pairs, dtype=torch.int64, device=rows.device).T
        own = rows[query, target]
        best = rows.new_full((stop - start,), -torch.inf).scatter_reduce(0, query, own, "amax")
        leading = own >= best[query]
        # Ones as float32 are summed twenty times as fast as bool is, and exactly up to 2**24.
        at_least = torch.ge(rows, best[:, None], out=torch.empty_like(rows, dtype=torch.float32))
        before = at_least.sum(1, dtype=None if num_targets < 2**24 else torch.float64).long()
        # The right ones that lead are among those that are at least as close.
        before.index_add_(0, query, leading.long(), alpha=-1)
        alone = leading & (before == 0)[query]
        top[query[alone]] = target[alone]
        tied = ((before > 0) & (best == highest)).nonzero()[:, 0]
        if len(tied):  # the highest may be a right one, which is not counted as found
            wrong = rows[tied] == highest[tied, None]
            of_tied = torch.full_like(before, -1)
            of_tied[tied] = torch.arange(len(tied), device=rows.device)
            inside = of_tied[query] >= 0
            wrong[of_tied[query[inside]], target[inside]] = False
            top[tied] = wrong.int().argmax(1)
        places[start:stop], first[start:stop] = before, top
    return places, first


def _highest(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The maximum of each row, and its column; `max` of torch takes six times as long for it."""
    width, last = 256, rows.shape[1] - 1
    whole = rows.shape[1] // width * width
    windows = rows[:, :whole].unflatten(1, (-1, width)).amax(2)
    if whole <= last:
        windows = torch.cat([windows, rows[:, whole:].amax(1, keepdim=True)], 1)
    highest, window = windows.max(1)
    columns = (window[:, None] * width + torch.arange(width, device=rows.device)).clamp(max=last)
    inside = rows.gather(1, columns).argmax(1, keepdim=True)
    return highest, columns.gather(1, inside)[:, 0]
