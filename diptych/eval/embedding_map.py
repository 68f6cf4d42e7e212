"""A flat picture of a shared space: pictures and texts as points, near where they are near (t-SNE).

Source: t-SNE, van der Maaten and Hinton 2008; scikit-learn's, with its defaults but the metric.

Shapes: I pictures, n texts, D width, Q vectors of one picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_PAIRS = 250
"""More points say no more, and time grows with their number."""


@dataclass(frozen=True)
class Vectors:
    """What a retrieval compared.

    Attributes:
        images: float32 [I, D], or [I, Q, D] for a model with several vectors a picture.
        texts: float32 [n, D].
        owners: picture of each text.
        names: path of each picture.
        written: the texts.
    """

    images: Tensor
    texts: Tensor
    owners: Sequence[int]
    names: Sequence[str]
    written: Sequence[str]


def available() -> bool:
    """Whether scikit-learn is there (the extra `maps`)."""
    return find_spec("sklearn") is not None


def draw(found: Vectors, *, seed: int = 0) -> dict[str, Any]:
    """Points of up to MAX_PAIRS pairs, the first text of a picture each.

    Several vectors of a picture count by their mean. Axes mean nothing; coordinates are scaled to
    0..1 together.

    Returns:
        `pairs`: for each its picture's path, its text, and both points; `share_nearest`: the share
        of pictures among the pairs shown whose nearest text, in the space itself, is their own
        and no other is as near.
    """
    from sklearn.manifold import TSNE

    first: dict[int, int] = {}
    for text, owner in enumerate(found.owners):
        first.setdefault(owner, text)
    order = torch.randperm(len(first), generator=torch.Generator().manual_seed(seed))
    shown = sorted(list(first)[i] for i in order[:MAX_PAIRS].tolist())
    images = found.images if found.images.ndim == 2 else found.images.mean(1)
    sides = [images[shown], found.texts[[first[i] for i in shown]]]
    vectors = F.normalize(torch.cat([side.float() for side in sides]), dim=-1)
    count = len(shown)
    perplexity = min(30.0, max(1.0, (2 * count - 1) / 3))
    flat = TSNE(metric="cosine", init="random", perplexity=perplexity, random_state=seed)
    points = torch.from_numpy(flat.fit_transform(vectors.numpy())).double()
    low = points.min(0).values
    points = (points - low) / (points - low).max().clamp(min=1e-12)
    cosines = vectors[:count] @ vectors[count:].T
    others = cosines.masked_fill(torch.eye(count, dtype=torch.bool), -torch.inf)
    # A tie is not nearest, nor is what is no number.
    nearest = cosines.diagonal() > others.amax(1)
    return {
        "share_nearest": float(nearest.double().mean()),
        "pairs": [
            {
                "image": found.names[i],
                "text": found.written[first[i]],
                "image_at": [round(float(v), 4) for v in points[n]],
                "text_at": [round(float(v), 4) for v in points[count + n]],
            }
            for n, i in enumerate(shown)
        ],
    }
