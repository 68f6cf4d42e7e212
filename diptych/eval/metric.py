"""Contract: a metric says how right one answer is.

A metric is a file `metrics/<name>.py` with `score(prediction, answers) -> float` in [0, 1] and a
docstring that names the variant and its source, because published metrics of one name differ.
It may also have

- `MIN_ANSWERS`: how many accepted answers a question needs for the score to mean something;
- `normalize(text) -> text`: the form in which it compares texts; without it, that of `exact`.
  The controls count answers and questions in that form;
- `BY_PICTURE`: what different samples say of one picture are accepted answers to one question
  (captions);
- `aggregate(predictions, answers) -> {name: figure}`: figures over a whole set (precision...);
  `answers` has the accepted answers of each prediction.

Held to the contract by tests/contract/test_metrics.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from diptych import parts
from diptych.errors import PartNotFound
from diptych.eval.metrics import exact

FOLDER = "eval.metrics"


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric by name.

    Attributes:
        score: (prediction, accepted answers) -> share of right, 0 to 1.
        description: first line of its docstring: variant and source.
        min_answers: accepted answers that a question must have.
        aggregate: (predictions, accepted answers of each) -> figures over the whole set, where
            there are any.
        by_picture: samples that ask the same of one picture are one question.
        normalize: the form in which texts count as the same.
    """

    name: str
    score: Callable[[str, Sequence[str]], float]
    description: str
    min_answers: int = 1
    aggregate: Callable[[Sequence[str], Sequence[Sequence[str]]], dict[str, float]] | None = None
    by_picture: bool = False
    normalize: Callable[[str], str] = exact.normalize


def find(name: str) -> Metric:
    """The metric `name`: a file stem of `metrics/`, or a dotted module of your own.

    Raises:
        PartNotFound: there is no such metric, or the module has no `score`.
    """
    module = parts.find(FOLDER, name)
    score = getattr(module, "score", None)
    if score is None:
        raise PartNotFound(
            f"the module '{name}' is no metric: it has no `score(prediction, answers)`",
            fix=f"add the function, or use one of: {', '.join(parts.names(FOLDER))}",
        )
    return Metric(
        name=name,
        score=score,
        description=(module.__doc__ or "").strip().split("\n", 1)[0],
        min_answers=getattr(module, "MIN_ANSWERS", 1),
        aggregate=getattr(module, "aggregate", None),
        by_picture=getattr(module, "BY_PICTURE", False),
        normalize=getattr(module, "normalize", exact.normalize),
    )
