"""Run a benchmark: every score with its interval and its controls.

`evaluate` asks a model, asks it again with the pictures withheld, and compares both with what needs
no model (`controls.py`). Nothing is left to luck: a prompt that is too long counts as wrong, a tie
between candidates counts against the model, and where more than 1 % of the questions fail there is
no score at all. A failure is never scored as if it were an answer.
"""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Sized

from diptych.data.sample import Sample
from diptych.errors import DataError, DiptychError, DuplicateId, ModelError, TooManyFailures
from diptych.eval.asking import Model, ReadImage, inline_bytes, run_batch
from diptych.eval.benchmark import Benchmark
from diptych.eval.controls import gain, score_controls
from diptych.eval.interval import mean, score_interval
from diptych.eval.result import KindScore, Record, Result, Score
from diptych.progress import Progress

MAX_FAILURE_SHARE = 0.01
_FAILURES_BEFORE_GIVING_UP = 32
"""An evaluation that cannot get below its share of failures any more ends after so many of them:
enough to see what went wrong, long before a large benchmark is through."""
_EXAMPLES = 3


def evaluate(
    model: Model,
    benchmark: Benchmark,
    *,
    images: ReadImage = inline_bytes,
    train: Iterable[Sample] | None = None,
    limit: int | None = None,
    seed: int = 0,
    blind: bool = True,
    batch_size: int = 16,
    max_failure_share: float = MAX_FAILURE_SHARE,
    progress: bool = True,
) -> Result:
    """Ask `model` every question of `benchmark` and score the answers.

    A batch that fails is asked one by one, if it was an error of Diptych's own or memory that ran
    out; the questions that fail again are in no score. Any other error of the model (a CUDA
    assertion, a fault in its code) ends the evaluation, as nothing after it could be trusted.

    Args:
        images: reads the encoded bytes of a picture.
        train: samples to count the most frequent answers in; without them they are counted in
            the evaluated set itself (see `controls.score_controls`).
        limit: evaluate that many samples, drawn at random with `seed` (files are often sorted).
        seed: of that draw and of the bootstrap.
        blind: also ask with the pictures withheld.
        batch_size: questions given to the model at once.
        max_failure_share: of the questions that may fail, with pictures and without.
        progress: show a bar on a terminal for work over two seconds.

    Raises:
        DataError: the benchmark has no samples.
        DuplicateId: two samples share an id, so that runs could not be paired.
        TooManyFailures: more failed than `max_failure_share` allows.
        The model's own error if it fails on every sample, or on the first 32.
    """
    started = time.monotonic()
    samples = benchmark.samples()
    total = len(samples) if isinstance(samples, Sized) else None
    total = limit if total is None else min(total, limit or total)
    asked: list[Sample] = []
    records: list[Record] = []
    seen: set[str] = set()
    failures = _Failures(max_failure_share)
    with Progress(quiet=not progress).task(benchmark.name, total) as bar:
        for batch in _batches(_choose(samples, limit, seed), batch_size):
            for sample in batch:
                if sample.id in seen:
                    raise DuplicateId(
                        f"two samples have the id '{sample.id}'", where=sample.source or None
                    )
                seen.add(sample.id)
            for sample, record, error in run_batch(model, benchmark, batch, images, blind):
                asked.append(sample.without_images())
                records.append(record)
                failures.add(record, error)
            failures.give_up(total)
            bar.advance(count=len(batch))
    if not records:
        raise DataError(f"the benchmark '{benchmark.name}' has no samples to evaluate")
    failures.enforce()

    lookup_found = score_controls(benchmark, asked, records, train)
    return _summarize(
        benchmark,
        asked,
        records,
        majority_from="evaluated answers" if train is None else "training answers",
        lookup_found=lookup_found,
        seed=seed,
        limit=limit,
        seconds=time.monotonic() - started,
    )


class _Failures:
    """What went wrong, and whether it is too much for a score."""

    def __init__(self, max_share: float):
        self.max_share = max_share
        self.first: Exception | None = None
        self.asked = self.asked_blind = self.succeeded = 0
        self.failed: list[Record] = []
        self.failed_blind: list[Record] = []

    def add(self, record: Record, error: Exception | None) -> None:
        """Count one question; `error` is the one that left it without a score."""
        self.asked += 1
        self.asked_blind += record.blind_error is not None or record.blind_score is not None
        self.succeeded += record.score is not None
        self.first = self.first or error
        if error is not None:
            self.failed.append(record)
        if record.blind_error is not None:
            self.failed_blind.append(record)

    def give_up(self, total: int | None) -> None:
        """Stop early where the outcome is certain; `total` questions will have been asked."""
        if len(self.failed) < _FAILURES_BEFORE_GIVING_UP:
            return
        if not self.succeeded or (total and len(self.failed) > self.max_share * total):
            self.enforce()

    def enforce(self) -> None:
        """Raise if the share of failures is too large.

        Raises:
            TooManyFailures: with the counts by error and the first examples.
            The first error itself where nothing else happened.
        """
        if isinstance(self.first, DiptychError) and not self.succeeded:
            raise self.first
        for what, failed, asked in (
            ("questions failed", self.failed, self.asked),
            ("questions failed with their pictures withheld", self.failed_blind, self.asked_blind),
        ):
            if len(failed) <= self.max_share * asked:
                continue
            errors = [str(r.error if failed is self.failed else r.blind_error) for r in failed]
            kinds = Counter(error.split(":", 1)[0] for error in errors)
            shown = [f"'{r.id}': {e.splitlines()[0]}" for r, e in zip(failed, errors, strict=True)]
            raise TooManyFailures(
                f"{len(failed)} of {asked} {what}, more than the allowed {self.max_share:.2%}: "
                + ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
                + "; first: "
                + "; ".join(shown[:_EXAMPLES]),
                where="max_failure_share",
                fix="mend what the errors name; or raise evaluation.max_failure_share (of `diptych "
                "eval`: --max-failure-share), and the score is one over fewer questions",
            )


def _choose(samples: Iterable[Sample], limit: int | None, seed: int) -> Iterator[Sample]:
    """All samples, or a uniform draw of `limit` in their order; holds no more than `limit`."""
    if limit is None:
        yield from samples
        return
    if limit < 1:
        raise DataError(f"the limit is {limit}; at least one sample is needed", fix="drop --limit")
    rng = random.Random(seed)
    kept: list[tuple[int, Sample]] = []
    for index, sample in enumerate(samples):
        if index < limit:
            kept.append((index, sample))
        elif (slot := rng.randint(0, index)) < limit:
            kept[slot] = (index, sample)
    yield from (sample for _, sample in sorted(kept, key=lambda pair: pair[0]))


def _batches(samples: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    iterator = iter(samples)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _summarize(
    benchmark: Benchmark,
    asked: list[Sample],
    records: list[Record],
    *,
    majority_from: str,
    lookup_found: int,
    seed: int,
    limit: int | None,
    seconds: float,
) -> Result:
    scored = [record for record in records if record.score is not None]
    by_kind = {}
    for kind in sorted({record.kind for record in scored}):
        chosen = [record for record in scored if record.kind == kind]
        own = _require(score_records(chosen, "score", seed))
        seen_blind = [r.blind_score for r in chosen if r.blind_score is not None]
        by_kind[kind] = KindScore(
            **own.to_dict(),
            blind=mean(seen_blind) if seen_blind else None,
            majority=mean([r.majority_score or 0.0 for r in chosen]),
            lookup=mean([r.lookup_score or 0.0 for r in chosen]),
        )
    aggregates = {}
    if benchmark.metric.aggregate:
        answers = [
            benchmark.answers(sample)
            for sample, record in zip(asked, records, strict=True)
            if record.score is not None
        ]
        aggregates = benchmark.metric.aggregate([r.output or "" for r in scored], answers)
    hardest = gain(records, seed)
    return Result(
        benchmark=benchmark.name,
        metric=benchmark.metric.name,
        how=benchmark.how,
        overall=_require(score_records(scored, "score", seed)),
        blind=score_records(scored, "blind_score", seed),
        majority=_require(score_records(scored, "majority_score", seed)),
        majority_from=majority_from,
        lookup=score_records(scored, "lookup_score", seed),
        lookup_found=lookup_found,
        best_control=hardest[0] if hardest else None,
        gain=hardest[1] if hardest else None,
        by_kind=by_kind,
        aggregates=aggregates,
        failures=len(records) - len(scored),
        blind_failures=sum(record.blind_error is not None for record in records),
        too_long=[record.id for record in records if record.too_long],
        ties=sum(record.tied for record in records),
        seconds=seconds,
        seed=seed,
        limit=limit,
        records=records,
        answer_after=benchmark.answer_after,
    )


def score_records(records: Sequence[Record], which: str, seed: int = 0) -> Score | None:
    """Mean and interval of a score field over the records that have it; None if none has."""
    pairs = [(value, r.group) for r in records if (value := getattr(r, which)) is not None]
    if not pairs:
        return None
    scores, groups = zip(*pairs, strict=True)
    low, high = score_interval(scores, groups, seed=seed)
    return Score(score=mean(scores), low=low, high=high, n=len(scores))


def _require(score: Score | None) -> Score:
    if score is None:
        raise ModelError("no sample was scored")
    return score
