"""Retrieval with a dual encoder: every picture looks for its texts, every text for its picture.

Every similarity is computed, in blocks, and none is kept: time grows with pictures times texts as
one matrix product does, memory and everything else with their sum.

The result is one like any other: a score with its interval, a control, every single query. What
guessing gets (the share of the right ones among all, at that depth) stands where the majority
answer stands elsewhere.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from diptych.data.sample import Image, Sample
from diptych.errors import ConfigError, DataError
from diptych.eval.controls import gain
from diptych.eval.embedding_map import Vectors
from diptych.eval.interval import mean, score_interval
from diptych.eval.result import KindScore, Record, Result, Score
from diptych.eval.retrieval import BLOCK_ELEMENTS, Ranks, ranked, texts_of

DEPTHS = (1, 5, 10)
IMAGE_TO_TEXT, TEXT_TO_IMAGE = "image to text", "text to image"
NUM_SHOWN = 5


class Embeds(Protocol):
    """What retrieval needs of a model."""

    def encode_images(self, images: Iterable[Any]) -> Tensor:
        """Encoded pictures -> unit vectors float32 [I, D]."""
        ...

    def encode_texts(self, texts: Iterable[str]) -> Tensor:
        """Texts -> unit vectors float32 [T, D]."""
        ...

    def compare(self, images: Tensor, texts: Tensor) -> Tensor:
        """What the two gave -> similarity [I, T]."""
        ...


@dataclass(frozen=True)
class Example:
    """One query with the first few that were found.

    Attributes:
        kind: "image to text" or "text to image".
        query: path of a picture, or a text.
        found: (path or text, whether it is right), best first.
        rank: of the first right one, 1 being best.
    """

    kind: str
    query: str
    found: tuple[tuple[str, bool], ...]
    rank: int


@dataclass(frozen=True)
class Found:
    """What a retrieval shows beside its figures: some queries, and what was compared."""

    examples: tuple[Example, ...]
    vectors: Vectors


def retrieve(
    model: Embeds,
    samples: Iterable[Sample],
    *,
    images: Callable[[Image], bytes],
    name: str = "retrieval",
    seed: int = 0,
    limit: int | None = None,
    rerank: int | None = None,
    num_examples: int = 24,
) -> tuple[Result, Found]:
    """Recall at 1, 5 and 10, both ways, over all pictures and texts of a data set.

    A picture may have several texts, as samples of their own or as a list of captions; each is
    right for it. A text that stands at two
    pictures is two texts, and as nobody can tell them apart, the tie counts against both.

    Args:
        images: reads the encoded bytes of a picture.
        limit: evaluate that many pictures, drawn with `seed`.
        rerank: the first so many of every query are put in order again by the model's matching
            head, whose logit is added to the similarity.
        num_examples: queries of each way that are returned to be looked at.

    Raises:
        DataError: a sample has not exactly one picture and a text, or there are fewer than two.
        ConfigError: `rerank`, and the model has no matching head.

    Source of the re-ranking: `compute_sim_matrix` of salesforce/LAVIS.
    """
    start = time.monotonic()
    shown, texts, owners = _pairs(samples)
    if limit is not None and limit < len(shown):
        shown, texts, owners = _drawn(shown, texts, owners, limit, seed)
    if len(shown) < 2 or len(texts) < 2:
        raise DataError(
            f"retrieval needs at least two pictures and two texts, here are {len(shown)} and "
            f"{len(texts)}",
            where=name,
            fix="add pairs, or compare single ones with `diptych eval MODEL --image --text`",
        )
    pictures, same_picture = _encoded_once((images(i) for i in shown), model.encode_images, _hash)
    written, same_text = _encoded_once(texts, model.encode_texts, str)
    own_texts = texts_of(owners, len(shown))

    def compared_images(start: int, stop: int) -> Tensor:
        rows = model.compare(pictures[same_picture[start:stop]], written)
        return rows if len(written) == len(texts) else rows[:, same_text]

    def compared_texts(start: int, stop: int) -> Tensor:
        rows = model.compare(pictures, written[same_text[start:stop]]).T
        return rows if len(pictures) == len(shown) else rows[:, same_picture]

    of_images: Scores = compared_images
    of_texts: Scores = compared_texts
    if rerank is not None:
        read = _Read(shown, images)
        of_images = _reranked(model, read, texts, of_images, (len(shown), len(texts)), rerank)
        of_texts = _reranked(
            model, read, texts, of_texts, (len(texts), len(shown)), rerank, by_text=True
        )
    # A model with several vectors a picture compares every one of them.
    width = pictures.shape[1] if pictures.ndim == 3 else 1
    image_of_text, best_images = ranked(of_texts, [[o] for o in owners], len(shown), width)
    text_of_image, best_texts = ranked(of_images, own_texts, len(texts), width)
    found = Ranks(image_of_text=image_of_text, text_of_image=text_of_image)
    paths = [image.path for image in shown]

    records: list[Record] = []
    for i, (rank, best) in enumerate(
        zip(found.text_of_image.tolist(), best_texts.tolist(), strict=True)
    ):
        right = [texts[t] for t in own_texts[i]]
        records.append(
            _record(f"image {i}: {paths[i]}", IMAGE_TO_TEXT, "Which text belongs to the picture?",
                    " / ".join(right), texts[best], paths[i], rank)
        )  # fmt: skip
    for t, (rank, best) in enumerate(
        zip(found.image_of_text.tolist(), best_images.tolist(), strict=True)
    ):
        records.append(
            _record(f"text {t}: {texts[t][:80]}", TEXT_TO_IMAGE, texts[t], paths[owners[t]],
                    paths[best], paths[owners[t]], rank)
        )  # fmt: skip

    groups = [r.group for r in records]
    split = len(shown)
    ways = {
        IMAGE_TO_TEXT: (found.text_of_image, groups[:split], [len(o) for o in own_texts]),
        TEXT_TO_IMAGE: (found.image_of_text, groups[split:], [1] * len(texts)),
    }
    by_kind = {}
    for way, (places, members, rights) in ways.items():
        among = len(texts) if way == IMAGE_TO_TEXT else len(shown)
        for depth in DEPTHS:
            hits = [float(p < depth) for p in places.tolist()]
            low, high = score_interval(hits, members, seed=seed)
            chance = mean([_chance(among, n, depth) for n in rights])
            by_kind[f"{way}, recall@{depth}"] = KindScore(
                mean(hits), low, high, len(hits), blind=None, majority=chance
            )
    hits = [r.score or 0.0 for r in records]
    low, high = score_interval(hits, groups, seed=seed)
    guess = [_chance(len(texts), n, 1) for n in ways[IMAGE_TO_TEXT][2]]
    guess += [_chance(len(shown), 1, 1)] * len(texts)
    for record, chance in zip(records, guess, strict=True):
        record.majority_score = chance
    chance = mean(guess)
    hardest = gain(records, seed)
    result = Result(
        benchmark=name,
        metric="recall@1" if rerank is None else f"recall@1, the first {rerank} put in order anew",
        how="retrieval",
        overall=Score(mean(hits), low, high, len(hits)),
        blind=None,
        majority=Score(chance, chance, chance, len(hits)),
        majority_from="chance",
        best_control=hardest[0] if hardest else None,
        gain=hardest[1] if hardest else None,
        by_kind=by_kind,
        aggregates={
            **{k: v for depth in DEPTHS for k, v in found.recall(depth).items()},
            "median_rank_of_text": float(found.text_of_image.double().median()) + 1,
            "median_rank_of_image": float(found.image_of_text.double().median()) + 1,
        },
        failures=0,
        blind_failures=0,
        seconds=time.monotonic() - start,
        seed=seed,
        limit=limit,
        records=records,
    )
    chosen = torch.Generator().manual_seed(seed)
    examples = (
        *_examples(IMAGE_TO_TEXT, of_images, own_texts, found.text_of_image, paths, texts,
                   num_examples, chosen),
        *_examples(TEXT_TO_IMAGE, of_texts, [[o] for o in owners], found.image_of_text, texts,
                   paths, num_examples, chosen),
    )  # fmt: skip
    vectors = Vectors(pictures[same_picture], written[same_text], owners, paths, texts)
    return result, Found(examples, vectors)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _encoded_once(
    given: Iterable[Any], encode: Callable[[Iterable[Any]], Tensor], key: Callable[[Any], str]
) -> tuple[Tensor, Tensor]:
    """Vectors of the distinct ones, and which of them belongs to each.

    In another batch the same text or picture has a vector that differs in its last bits, and would
    be before or behind itself by luck.
    """
    numbers: dict[str, int] = {}
    places: list[int] = []

    def new() -> Iterator[Any]:
        for one in given:
            known = len(numbers)
            places.append(numbers.setdefault(key(one), known))
            if places[-1] == known:
                yield one

    vectors = encode(new())
    return vectors, torch.tensor(places)


@dataclass(frozen=True)
class _Read(Sequence[bytes]):
    """Encoded pictures, each read when it is asked for."""

    shown: Sequence[Image]
    read: Callable[[Image], bytes]

    def __getitem__(self, number: Any) -> Any:
        return self.read(self.shown[number])

    def __len__(self) -> int:
        return len(self.shown)


Scores = Callable[[int, int], Tensor]


def _reranked(
    model: Any,
    images: Sequence[bytes],
    texts: Sequence[str],
    scores: Scores,
    shape: tuple[int, int],
    depth: int,
    *,
    by_text: bool = False,
) -> Scores:
    """Scores with the matching logit added to the first `depth` of every query.

    What was not among the first stays behind them in its old order.

    Args:
        shape: numbers of queries and of targets.
    """
    if "match" not in model.can:
        raise ConfigError(
            "the model has no matching head to put finds in order with",
            where="rerank",
            fix="leave it out, or use a query_transformer",
        )
    queries, targets = shape
    depth = min(depth, targets)
    size = max(1, BLOCK_ELEMENTS // targets)
    first = torch.cat(
        [
            scores(start, min(start + size, queries)).topk(depth, dim=1).indices
            for start in range(0, queries, size)
        ]
    )
    pairs = [(t, q) if by_text else (q, t) for q, row in enumerate(first.tolist()) for t in row]
    matching = model.match_scores(images, texts, pairs, logits=True).view(queries, depth)

    def again(start: int, stop: int) -> Tensor:
        rows, asked = scores(start, stop), first[start:stop]
        added = rows.gather(1, asked) + matching[start:stop]
        # Below every one of them.
        lowered = rows - rows.amax(1, keepdim=True) + added.amin(1, keepdim=True) - 1
        return lowered.scatter(1, asked, added)

    return again


def _pairs(samples: Iterable[Sample]) -> tuple[list[Image], list[str], list[int]]:
    """Distinct pictures, all texts, and the picture of each text."""
    known: dict[tuple[str, Any], int] = {}
    shown: list[Image] = []
    texts: list[str] = []
    owners: list[int] = []
    for sample in samples:
        pictures = list(sample.images())
        if len(pictures) != 1 or not sample.texts:
            raise DataError(
                f"a pair needs one picture and one text; sample '{sample.id}' has "
                f"{len(pictures)} pictures and {len(sample.answer)} characters",
                where=sample.source or None,
            )
        key = (pictures[0].path, pictures[0].span)
        if key not in known:
            known[key] = len(shown)
            shown.append(pictures[0])
        texts += sample.texts
        owners += [known[key]] * len(sample.texts)
    return shown, texts, owners


def _drawn(
    shown: list[Image], texts: list[str], owners: list[int], limit: int, seed: int
) -> tuple[list[Image], list[str], list[int]]:
    order = torch.randperm(len(shown), generator=torch.Generator().manual_seed(seed))
    chosen = sorted(order[:limit].tolist())
    place = {i: n for n, i in enumerate(chosen)}
    kept = [t for t, o in enumerate(owners) if o in place]
    return [shown[i] for i in chosen], [texts[t] for t in kept], [place[owners[t]] for t in kept]


def _record(
    id: str, kind: str, question: str, truth: str, output: str, image: str, rank: int
) -> Record:
    return Record(
        id=id,
        question=question,
        truth=truth,
        kind=f"{kind}, recall@1",
        image=image,
        group=image,
        output=output,
        score=float(rank < 1),
    )


@cache
def _chance(among: int, right: int, depth: int) -> float:
    """Probability that a random order of `among` has one of `right` in its first `depth`."""
    if among - right < depth:
        return 1.0
    return 1.0 - math.comb(among - right, depth) / math.comb(among, depth)


def _examples(
    kind: str, scores: Scores, right: Sequence[Sequence[int]], places: Tensor,
    queries: Sequence[str], targets: Sequence[str], count: int, generator: torch.Generator,
) -> Iterator[Example]:  # fmt: skip
    for q in torch.randperm(len(queries), generator=generator)[:count].tolist():
        row = scores(q, q + 1)[0]
        belongs = torch.zeros(len(targets), dtype=torch.bool)
        belongs[list(right[q])] = True
        # The right ones last among equals, as they are counted.
        order = belongs.int().argsort(stable=True)
        first = order[row[order].argsort(descending=True, stable=True)][:NUM_SHOWN].tolist()
        found = tuple((targets[t], bool(belongs[t])) for t in first)
        yield Example(kind, queries[q], found, int(places[q]) + 1)
