"""From which score on the filter of `diptych data capfilt` keeps a text."""

from __future__ import annotations

import json
import logging
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.data.checking.index import Index
from diptych.data.sample import Image
from diptych.errors import DataError, ModelError
from diptych.staging import write_json

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Held:
    """The clean pairs: a file to tune on, and pairs to set the threshold by."""

    tune: str
    images: str
    pairs: tuple[tuple[Image, str], ...]
    index: Index
    apart: bool


def calibrated(model: Any, held: Held, by: str, out: Path, seed: int) -> dict[str, Any]:
    """The threshold with the best mean of true pairs kept and exchanged ones dropped.

    Raises:
        DataError: all clean texts are the same, so that nothing can be exchanged.
        ModelError: the filter scores all pairs the same, or gives no number.
    """
    file = out / "threshold.json"
    if file.is_file():
        return dict(json.loads(file.read_text(encoding="utf-8")))
    order = list(range(len(held.pairs)))
    random.Random(seed).shuffle(order)
    images = [held.pairs[i][0] for i in order]
    texts = [held.pairs[i][1] for i in order]
    # Every picture gets the next text that no pair says of it.
    said: dict[Image, set[str]] = {}
    for image, text in held.pairs:
        said.setdefault(image, set()).add(text)
    others = [
        next((t for t in (*texts[n + 1 :], *texts[:n]) if t not in said[image]), None)
        for n, image in enumerate(images)
    ]
    if not texts or None in others:
        raise DataError(
            "the clean texts are all alike, so that no threshold can be found",
            fix="give a threshold",
        )
    if not held.apart:
        log.warning(
            "the clean set is too small, or its pictures are no files, so nothing is held out: "
            "the threshold is set on pairs that the filter was tuned on"
        )
    data = [held.index.image_bytes(image) for image in images]
    both = [*texts, *(t for t in others if t is not None)]
    pairs = [(n % len(texts), n) for n in range(len(both))]
    scores = filter_scores(model, data, both, pairs, by)
    true, wrong = sorted(scores[: len(texts)]), sorted(scores[len(texts) :])
    if true[0] == true[-1] == wrong[0] == wrong[-1]:
        raise ModelError(
            f"the filter gives all clean pairs and all exchanged ones {true[0]:.4f}; a threshold "
            "would keep everything or nothing",
            fix="tune it longer (--epochs), score --by something else, or give a --threshold",
        )
    # Of thresholds that part them as well, the strictest.
    best = max(
        {*true, *wrong},
        key=lambda at: (_share(true, at) + 1 - _share(wrong, at), at),
    )
    found = {
        "threshold": best,
        "pairs": len(texts),
        "kept_true": _share(true, best),
        "kept_exchanged": _share(wrong, best),
        "held_out": held.apart,
    }
    write_json(file, found)
    return found


def _share(scores: Sequence[float], threshold: float) -> float:
    return sum(score >= threshold for score in scores) / len(scores)


def filter_scores(
    model: Any, images: list[bytes], texts: list[str], pairs: list[tuple[int, int]], by: str
) -> list[float]:
    """What the filter thinks of each (picture, text), 0..1.

    Args:
        pairs: (number of a picture, number of a text).
        by: "match" (probability of the matching head), "similarity" (cosine, brought to 0..1) or
            "both" (their mean).

    Raises:
        ModelError: a score is not a number; it would be dropped as if it did not fit.
    """
    kinds = []
    if by != "similarity":
        kinds.append(model.match_scores(images, texts, pairs))
    if by != "match":
        pictures, words = model.encode_images(images), model.encode_texts(texts)
        left, right = [i for i, _ in pairs], [t for _, t in pairs]
        kinds.append((1 + (pictures[left] * words[right]).sum(1)) / 2)
    scores = [float(sum(values) / len(kinds)) for values in zip(*kinds, strict=True)]
    if lost := sum(not math.isfinite(score) for score in scores):
        raise ModelError(
            f"the filter gave no number for {lost} of {len(scores)} pairs",
            fix="look for weights that are not finite, or score --by something else",
        )
    return scores
