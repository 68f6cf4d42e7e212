"""Whether a picture and a text belong together: the heads of BLIP and of BLIP-2's first stage.

Shapes: P pairs, I pictures, E width of the shared space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diptych.data.batching.chunks import in_chunks


class Heads(nn.Module):
    """Projections to the shared space, the matching head, the temperature.

    Args:
        image_dim, text_dim: widths of the states that are projected.
        dim: width of the shared space.
        temperature: of the contrastive logits to begin with; learned.
    """

    def __init__(self, image_dim: int, text_dim: int, dim: int, temperature: float):
        super().__init__()
        self.image = nn.Linear(image_dim, dim)
        self.text = nn.Linear(text_dim, dim)
        self.matching = nn.Linear(text_dim, 2)
        self.temperature = nn.Parameter(torch.tensor(temperature))


def match_logits(
    model: Any,
    encode: Callable[[list[Any]], Tensor],
    images: Sequence[Any],
    texts: Sequence[str],
    pairs: Sequence[tuple[int, int]],
    batch_size: int,
) -> Tensor:
    """Logits float32 [P, 2] of a matching head for pairs of a picture and a text, on the CPU.

    Every picture is encoded once, and no more of them are held than fit in a batch.

    Args:
        model: with `ids_of(texts)` and `match(ids, mask, encoded)`.
        encode: encoded pictures -> what `match` looks at [I, ...].
        pairs: (number of a picture, number of a text).
    """
    found = torch.zeros(len(pairs), 2)
    by_image: dict[int, list[int]] = {}
    for number, (image, _) in enumerate(pairs):
        by_image.setdefault(image, []).append(number)
    for shown in in_chunks(by_image, batch_size):
        seen = encode([images[i] for i in shown])
        asked = [(place, n) for place, image in enumerate(shown) for n in by_image[image]]
        for chunk in in_chunks(asked, batch_size):
            rows, numbers = ([c[side] for c in chunk] for side in (0, 1))
            ids, mask = model.ids_of([texts[pairs[n][1]] for n in numbers])
            found[numbers] = model.match(ids, mask, seen[rows]).float().cpu()
    return found
