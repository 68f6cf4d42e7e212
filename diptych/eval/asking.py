"""Asking a model a batch of questions, and what becomes of each: an answer, a failure, too long."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from diptych.data.sample import Image, Sample
from diptych.errors import (
    DataError,
    DiptychError,
    EmptyConversation,
    Interrupted,
    MissingImage,
    ModelError,
    SampleTooLong,
)
from diptych.eval.benchmark import Benchmark
from diptych.eval.interval import mean
from diptych.eval.result import Record

logger = logging.getLogger(__name__)

ReadImage = Callable[[Image], bytes]
_SAME = 1e-6
"""Log-likelihoods this close, relative to their size, are equal: float32 does not tell them apart,
and the same tokens at another place of a batch differ by as much."""
_EXAMPLES = 3


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


def run_batch(
    model: Model, benchmark: Benchmark, batch: list[Sample], images: ReadImage, blind: bool
) -> Iterator[tuple[Sample, Record, Exception | None]]:
    """Ask a batch: each sample with its record, and the error that left it without a score."""
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
        try:
            if isinstance(output, SampleTooLong):
                benchmark.answers(sample)
                record.score, record.too_long, record.error = 0.0, True, _said(output)
                logger.warning("sample '%s' counts as wrong: %s", sample.id, record.error)
            elif isinstance(output, Exception):
                error = output
            else:
                scores = [benchmark.score(text, sample) for text in output]
                record.score, record.tied = min(scores), len(set(output)) > 1
                record.output = output[scores.index(min(scores))]
        except DataError as unusable:  # the row has no accepted answer
            error = unusable
        if error is not None:
            record.error = _said(error)
            logger.warning("no score for sample '%s': %s", sample.id, record.error)
            yield sample, record, error
            continue
        blind_output = blind_outputs.get(sample.id)
        if isinstance(blind_output, EmptyConversation):
            pass  # a caption without a prompt: with the picture withheld nothing is asked
        elif isinstance(blind_output, SampleTooLong):
            record.blind_score = 0.0
        elif isinstance(blind_output, Exception):
            record.blind_error = _said(blind_output)
            logger.warning("no blind score for sample '%s': %s", sample.id, record.blind_error)
        elif blind_output is not None:
            # A tie counts against the model; the control gets what guessing among them gets.
            record.blind_output = blind_output[0]
            record.blind_score = mean([benchmark.score(text, sample) for text in blind_output])
        yield sample, record, None


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _ask(
    model: Model, benchmark: Benchmark, batch: list[Sample], images: ReadImage, *, withheld: bool
) -> list[list[str] | Exception]:
    """An output or the error for each sample; a batch that fails is asked one by one.

    An output is one text, or several between which the model cannot tell.
    """
    if not batch:
        return []
    failed: Exception
    try:
        prompts = [benchmark.prompt(sample) for sample in batch]
        if withheld:
            prompts = [prompt.without_images() for prompt in prompts]
        return _outputs(model, benchmark, batch, prompts, images)
    except Interrupted:
        raise
    except DiptychError as error:
        failed = error
    except Exception as error:
        if not _is_out_of_memory(error):
            ids = ", ".join(f"'{sample.id}'" for sample in batch[:_EXAMPLES])
            logger.error("the evaluation ends: the model failed on %s ...", ids)
            raise
        # Without its traceback, whose frames hold the tensors that did not fit.
        failed = error.with_traceback(None)
    if len(batch) == 1:
        return [failed]
    return [
        answer
        for sample in batch
        for answer in _ask(model, benchmark, [sample], images, withheld=withheld)
    ]


def _is_out_of_memory(error: Exception) -> bool:
    """Whether a smaller batch may succeed: CUDA's own error, or the allocator of the CPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    words = ("out of memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


def _outputs(
    model: Model,
    benchmark: Benchmark,
    batch: list[Sample],
    prompts: list[Sample],
    images: ReadImage,
) -> list[list[str] | Exception]:
    outputs: list[list[str] | Exception]
    if benchmark.how == "generate":
        search = {"num_beams": benchmark.num_beams} if benchmark.num_beams > 1 else {}
        written = model.generate(
            prompts, max_new_tokens=benchmark.max_new_tokens, images=images, **search
        )
        outputs = [[text] for text in written]
    else:
        candidates = [list(benchmark.candidates(sample)) for sample in batch]
        values = model.log_likelihoods(prompts, candidates, images=images, chat=benchmark.chat)
        if [len(row) for row in values] != [len(row) for row in candidates]:
            raise ModelError("the model returned another number of log-likelihoods than asked")
        outputs = [
            _likeliest(texts, row, sample)
            for texts, row, sample in zip(candidates, values, batch, strict=True)
        ]
    if len(outputs) != len(batch):
        raise ModelError(f"the model gave {len(outputs)} outputs for {len(batch)} samples")
    return outputs


def _likeliest(
    texts: Sequence[str], values: Sequence[float], sample: Sample
) -> list[str] | ModelError:
    """The candidates with the largest log-likelihood: one, or all that are as likely.

    A value that is no number makes the question a failure, whichever candidate it belongs to.
    """
    values = [float(value) for value in values]
    lost = sum(map(math.isnan, values))
    if lost:
        return ModelError(
            f"{lost} of {len(values)} log-likelihoods are not a number",
            where=sample.source or sample.id,
            fix="look for weights that are not finite, or compute in float32",
        )
    best = max(values)
    return [
        text
        for text, value in zip(texts, values, strict=True)
        if value == best or best - value <= _SAME * max(1.0, abs(best))
    ]


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
