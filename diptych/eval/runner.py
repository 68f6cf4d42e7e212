"""Run a benchmark: every score with its interval, its blind control and the majority answer.

`evaluate` asks a model, asks it again with the pictures withheld, and compares both with always
giving the most frequent answer. A question on which the model fails is excluded and counted; a
failure is never scored as if it were an answer.
"""

from __future__ import annotations

import itertools
import logging
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from diptych.data.sample import Image, Sample
from diptych.errors import (
    DataError,
    DuplicateId,
    EmptyConversation,
    Interrupted,
    MissingImage,
    ModelError,
)
from diptych.eval.benchmark import Benchmark
from diptych.eval.interval import mean, score_interval
from diptych.eval.metrics.exact import normalize
from diptych.eval.result import KindScore, Record, Result, Score

if TYPE_CHECKING:
    from rich.progress import Progress

logger = logging.getLogger(__name__)

ReadImage = Callable[[Image], bytes]
_FAILURES_BEFORE_GIVING_UP = 32


class Model(Protocol):
    """What an evaluation needs of a model."""

    def generate(
        self,
        samples: Sequence[Sample],
        *,
        max_new_tokens: int,
        images: ReadImage,
        num_beams: int = 1,
    ) -> list[str]:
        """The likeliest answer for each sample; `images` gives the encoded bytes of a picture."""
        ...

    def log_likelihoods(
        self,
        samples: Sequence[Sample],
        continuations: Sequence[Sequence[str]],
        *,
        images: ReadImage,
        chat: bool = True,
    ) -> list[list[float]]:
        """For each sample, the summed log-likelihood (nats) of each of its continuations.

        `chat`: the continuation is the assistant's reply in the model's chat template; if False,
        the samples' text is the prompt as it stands and the continuation follows it directly.
        """
        ...

    def text_log_likelihood(self, text: str) -> tuple[float, int]:
        """Summed log-likelihood of plain text in nats, and the number of tokens it is over."""
        ...


def inline_bytes(image: Image) -> bytes:
    """The bytes that the picture carries itself; other pictures need a source."""
    if image.data is None:
        raise MissingImage(
            "the picture is a reference, and the evaluation was given no source to read it from",
            where=image.path,
            fix="pass `images=`, a function from Image to bytes",
        )
    return image.data


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
    progress: bool = True,
) -> Result:
    """Ask `model` every question of `benchmark` and score the answers.

    Args:
        images: reads the encoded bytes of a picture.
        train: samples to count the majority answer in; without them it is counted in the evaluated
            set itself, per kind as well, which makes the control a little too strong.
        limit: evaluate that many samples, drawn at random with `seed` (files are often sorted).
        seed: of that draw and of the bootstrap.
        blind: also ask with the pictures withheld.
        batch_size: questions given to the model at once.
        progress: show a bar on a terminal for work over two seconds.

    Raises:
        DataError: the benchmark has no samples.
        DuplicateId: two samples share an id, so that runs could not be paired.
        The model's own error if it fails on every sample, or on the first 32.
    """
    started = time.monotonic()
    samples = benchmark.samples()
    total = len(samples) if isinstance(samples, Sized) else None
    total = limit if total is None else min(total, limit or total)
    asked: list[Sample] = []
    records: list[Record] = []
    seen: set[str] = set()
    first_error: Exception | None = None
    succeeded = False
    with _Progress(benchmark.name, total, progress) as bar:
        for batch in _batches(_choose(samples, limit, seed), batch_size):
            for sample in batch:
                if sample.id in seen:
                    raise DuplicateId(
                        f"two samples have the id '{sample.id}'", where=sample.source or None
                    )
                seen.add(sample.id)
            for sample, record, error in _run_batch(model, benchmark, batch, images, blind):
                asked.append(sample.without_images())
                records.append(record)
                succeeded |= record.score is not None
                first_error = first_error or error
            if first_error and not succeeded and len(records) >= _FAILURES_BEFORE_GIVING_UP:
                raise first_error
            bar.advance(len(batch))
    if not records:
        raise DataError(f"the benchmark '{benchmark.name}' has no samples to evaluate")
    if first_error and not succeeded:
        raise first_error

    _score_majority(benchmark, asked, records, train)
    return _summarize(
        benchmark,
        asked,
        records,
        majority_from="evaluated answers" if train is None else "training answers",
        seed=seed,
        limit=limit,
        seconds=time.monotonic() - started,
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


def _run_batch(
    model: Model, benchmark: Benchmark, batch: list[Sample], images: ReadImage, blind: bool
) -> Iterator[tuple[Sample, Record, Exception | None]]:
    outputs = _ask(model, benchmark, batch, images, withheld=False)
    with_images = [s for s in batch if blind and next(s.images(), None) is not None]
    blind_outputs = dict(
        zip(
            (s.id for s in with_images),
            _ask(model, benchmark, with_images, images, withheld=True),
            strict=True,
        )
    )
    for sample, output in zip(batch, outputs, strict=True):
        record = _describe(sample, benchmark)
        error: Exception | None = None
        if isinstance(output, Exception):
            error = output
        else:
            try:
                record.score = benchmark.score(output, sample)
                record.output = output
            except DataError as unusable:  # the row has no accepted answer
                error = unusable
        if error is not None:
            record.error = f"{type(error).__name__}: {error}"
            logger.warning("no score for sample '%s': %s", sample.id, record.error)
        elif isinstance(blind_output := blind_outputs.get(sample.id), str):
            record.blind_output = blind_output
            record.blind_score = benchmark.score(blind_output, sample)
        elif isinstance(blind_output, EmptyConversation):
            pass  # a caption without a prompt: with the picture withheld nothing is asked
        elif blind_output is not None:
            record.blind_error = f"{type(blind_output).__name__}: {blind_output}"
            logger.warning("no blind score for sample '%s': %s", sample.id, record.blind_error)
        yield sample, record, error


def _ask(
    model: Model, benchmark: Benchmark, batch: list[Sample], images: ReadImage, *, withheld: bool
) -> list[str | Exception]:
    """An output or the error for each sample; a batch that fails is asked one by one."""
    if not batch:
        return []
    try:
        prompts = [benchmark.prompt(sample) for sample in batch]
        if withheld:
            prompts = [prompt.without_images() for prompt in prompts]
        outputs = _outputs(model, benchmark, batch, prompts, images)
    except Interrupted:
        raise
    except Exception as error:  # whatever the model raises is recorded with the sample
        if len(batch) == 1:
            return [error]
        return [
            answer
            for sample in batch
            for answer in _ask(model, benchmark, [sample], images, withheld=withheld)
        ]
    return list(outputs)


def _outputs(
    model: Model,
    benchmark: Benchmark,
    batch: list[Sample],
    prompts: list[Sample],
    images: ReadImage,
) -> list[str]:
    if benchmark.how == "generate":
        search = {"num_beams": benchmark.num_beams} if benchmark.num_beams > 1 else {}
        outputs = model.generate(
            prompts, max_new_tokens=benchmark.max_new_tokens, images=images, **search
        )
    else:
        candidates = [list(benchmark.candidates(sample)) for sample in batch]
        values = model.log_likelihoods(prompts, candidates, images=images, chat=benchmark.chat)
        if [len(row) for row in values] != [len(row) for row in candidates]:
            raise ModelError("the model returned another number of log-likelihoods than asked")
        outputs = [
            texts[max(range(len(texts)), key=row.__getitem__)]
            for texts, row in zip(candidates, values, strict=True)
        ]
    if len(outputs) != len(batch):
        raise ModelError(f"the model gave {len(outputs)} outputs for {len(batch)} samples")
    return outputs


def _describe(sample: Sample, benchmark: Benchmark) -> Record:
    first = next(sample.images(), None)
    questions = [turn.text for turn in sample.turns if turn.role == "user"]
    accepted = sample.meta.get("answers") or [""]
    return Record(
        id=sample.id,
        question=questions[-1].strip() if questions else "",
        truth=sample.answer or str(accepted[0]),
        kind=benchmark.kind(sample),
        image=first.path if first else None,
        group=f"{first.path}{first.span or ''}" if first else f"sample {sample.id}",
    )


def _score_majority(
    benchmark: Benchmark,
    asked: list[Sample],
    records: list[Record],
    train: Iterable[Sample] | None,
) -> None:
    """Score the most frequent answer of each question's kind, or of all kinds for a new kind."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    forms: dict[str, str] = {}
    for sample in asked if train is None else train:
        try:
            answers = benchmark.answers(sample)
        except DataError:  # a row without usable answers has nothing to count
            continue
        for answer in answers:
            key = normalize(answer)
            forms.setdefault(key, answer)
            counts[benchmark.kind(sample)][key] += 1
    overall: Counter[str] = sum(counts.values(), Counter())
    for sample, record in zip(asked, records, strict=True):
        if record.score is not None:
            frequent = (counts.get(record.kind) or overall).most_common(1)
            guess = forms[frequent[0][0]] if frequent else ""
            record.majority_score = benchmark.score(guess, sample)


def _summarize(
    benchmark: Benchmark,
    asked: list[Sample],
    records: list[Record],
    *,
    majority_from: str,
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
        )
    aggregates = {}
    if benchmark.metric.aggregate:
        answers = [
            benchmark.answers(sample)
            for sample, record in zip(asked, records, strict=True)
            if record.score is not None
        ]
        aggregates = benchmark.metric.aggregate([r.output or "" for r in scored], answers)
    return Result(
        benchmark=benchmark.name,
        metric=benchmark.metric.name,
        how=benchmark.how,
        overall=_require(score_records(scored, "score", seed)),
        blind=score_records(scored, "blind_score", seed),
        majority=_require(score_records(scored, "majority_score", seed)),
        majority_from=majority_from,
        by_kind=by_kind,
        aggregates=aggregates,
        failures=len(records) - len(scored),
        blind_failures=sum(record.blind_error is not None for record in records),
        seconds=seconds,
        seed=seed,
        limit=limit,
        records=records,
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


class _Progress:
    """A bar on standard error, on a terminal only, once the work has taken two seconds."""

    def __init__(self, label: str, total: int | None, wanted: bool):
        self._label, self._total = label, total
        self._wanted = wanted and sys.stderr.isatty()
        self._show_at = time.monotonic() + 2
        self._done = 0
        self._bar: Progress | None = None

    def advance(self, count: int) -> None:
        self._done += count
        if self._wanted and self._bar is None and time.monotonic() >= self._show_at:
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._bar.start()
            self._bar.add_task(self._label, total=self._total)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
