"""Contract: a benchmark gives samples, the prompt for each, and the score of an output.

A benchmark is a file `benchmarks/<name>.py` with one subclass of `Benchmark`; recipes
(`evaluations`) and `diptych eval` reach it by that name. Its docstring names
source, licence, metric variant and, where there is one, a published figure. The runner adds what
every score needs: interval, controls (`controls.py`), split by question kind.
"""

from __future__ import annotations

import inspect
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self

from diptych import parts
from diptych.data.sample import Sample
from diptych.data.text.working import split_working
from diptych.errors import DataError, PartNotFound
from diptych.eval.metric import Metric

FOLDER = "eval.benchmarks"
NO_KIND = "all"


@dataclass(frozen=True)
class Asked:
    """What a recipe or the command line says of a benchmark; see `Benchmark.open`.

    Attributes:
        path: its data; None where the benchmark brings its own.
        rows: reads the rows of `path` as any data set is read; nothing is read before it is called.
        name: how it is called in results; None, as the benchmark calls itself.
        metric, how, max_new_tokens, num_beams, answer_after: for benchmarks that leave them open.
    """

    path: str | None = None
    rows: Callable[[], Sequence[Sample]] = tuple
    name: str | None = None
    metric: str = "exact"
    how: Literal["generate", "likelihood"] = "generate"
    max_new_tokens: int = 32
    num_beams: int = 1
    answer_after: str | None = None

    @property
    def stem(self) -> str | None:
        """The data's name without its place and ending."""
        return None if self.path is None else Path(self.path).stem


class Benchmark(ABC):
    """Samples with answers, and how a model's output for them is obtained and scored.

    Attributes:
        name: stands in reports.
        metric: scores one output against the accepted answers.
        how: "generate" scores the text the model writes; "likelihood" scores the candidate
            (see `candidates`) to which the model gives the largest log-likelihood; a tie for the
            largest counts against the model.
        chat: the prompt is a conversation for the model's chat template; if False, the prompt's
            text is given to the language model as it stands (published text benchmarks).
        max_new_tokens: bound on a generated answer.
        num_beams: width of the search for an answer; 1 is greedy.
        answer_after: what stands between working and answer; None where there is no working.
        reads_rows: it is about rows of any data set (`Asked.rows`). Pictures are read there, and
            what a model has learned from tells how often an answer is.
        needs_data: it cannot be opened without `Asked.path`.
    """

    name: str
    metric: Metric
    how: Literal["generate", "likelihood"] = "generate"
    chat: bool = True
    max_new_tokens: int = 32
    num_beams: int = 1
    answer_after: str | None = None
    reads_rows: ClassVar[bool] = False
    needs_data: ClassVar[bool] = False

    @classmethod
    def open(cls, asked: Asked) -> Self:
        """The benchmark as a recipe or the command line asks for it.

        One that brings its own samples is made without arguments; others say here what they take.

        Raises:
            DataError: its data cannot be read.
        """
        del asked
        return cls()

    @abstractmethod
    def samples(self) -> Iterable[Sample]:
        """All samples, answers included; may be iterated more than once."""

    def prompt(self, sample: Sample) -> Sample:
        """What the model is asked: the sample without its answer."""
        return sample.without_answer()

    def answers(self, sample: Sample) -> list[str]:
        """Accepted answers: `meta["answers"]`, or the sample's own answer.

        Raises:
            DataError: there are fewer than the metric needs, or none.
        """
        answers = list(sample.meta.get("answers") or [])
        if not answers and sample.answer:
            answers = [self.final(sample.answer)]
        if len(answers) < self.metric.min_answers:
            raise DataError(
                f"sample '{sample.id}' has {len(answers)} accepted answers; the metric "
                f"'{self.metric.name}' needs at least {self.metric.min_answers}",
                where=sample.source or None,
                fix="use --metric exact or relaxed" if answers else "give the row an answer",
            )
        return answers

    def candidates(self, sample: Sample) -> Sequence[str]:
        """Texts among which the likelihood decides: `meta["choices"]`.

        Raises:
            DataError: the sample has no choices.
        """
        choices = sample.meta.get("choices")
        if not choices:
            raise DataError(
                f"sample '{sample.id}' has no choices to compare by likelihood",
                where=sample.source or None,
                fix="give the row a list `choices`, or let the model generate its answers",
            )
        return list(choices)

    def kind(self, sample: Sample) -> str:
        """The question kind for the split, `meta["kind"]`."""
        return str(sample.meta.get("kind") or NO_KIND)

    def score(self, output: str, sample: Sample) -> float:
        """How right `output` is, 0 to 1.

        Raises:
            DataError: the sample has no accepted answer, or the metric gave no number.
        """
        score = self.metric.score(self.final(output), self.answers(sample))
        if not math.isfinite(score):
            raise DataError(
                f"the metric '{self.metric.name}' gave {score} for {output[:80]!r}",
                where=sample.source or sample.id,
                fix="a metric gives 0 to 1 for every answer; mend it, or use another",
            )
        return score

    def final(self, text: str) -> str:
        """The answer, without the working before it."""
        return split_working(text, self.answer_after)[1]


def is_name(text: str) -> bool:
    """Whether a text names a benchmark: a file of the folder, or a module that is allowed."""
    allowed = os.environ.get("DIPTYCH_PARTS", "").split(",")
    package, dot, _ = text.partition(".")
    return text in parts.names(FOLDER) or bool(dot and package in [p.strip() for p in allowed])


def find(name: str) -> type[Benchmark]:
    """The class that is the benchmark `name`: a file of `benchmarks/` or a dotted module.

    Raises:
        PartNotFound: there is no such file, or it defines no subclass of Benchmark.
    """
    module = parts.find(FOLDER, name)
    for member in vars(module).values():
        if (
            inspect.isclass(member)
            and issubclass(member, Benchmark)
            and member.__module__ == module.__name__
        ):
            return member
    raise PartNotFound(
        f"the module '{name}' is no benchmark: it defines no subclass of Benchmark",
        fix=f"available: {', '.join(parts.names(FOLDER))}",
    )
