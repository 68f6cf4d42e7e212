"""Questions of your own: any data set that Diptych reads, and a metric.

Source and licence: those of the data set. Variant: the metric's name, which stands in every result.
Accepted answers are `meta["answers"]` or the sample's own answer, the kind is `meta["kind"]`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import replace
from typing import Literal, Self

from diptych.data.sample import Sample
from diptych.eval import metric as metrics
from diptych.eval.benchmark import Asked, Benchmark


class Questions(Benchmark):
    """A benchmark over Samples that carry their answers.

    Args:
        samples: an index or list; iterated once for each evaluation.
        metric: name of a file of `metrics/`, such as "exact", "relaxed" or "vqa_official".
        how: "likelihood" needs `meta["choices"]` on every sample; the candidates are then compared
            by the log-likelihood of the whole text, not divided by its length.
    """

    reads_rows = True
    needs_data = True

    @classmethod
    def open(cls, asked: Asked) -> Self:
        return cls(
            asked.rows(),
            metric=asked.metric,
            how=asked.how,
            max_new_tokens=asked.max_new_tokens,
            num_beams=asked.num_beams,
            answer_after=asked.answer_after,
            name=asked.name or asked.stem or "questions",
        )

    def __init__(
        self,
        samples: Iterable[Sample],
        *,
        metric: str = "exact",
        how: Literal["generate", "likelihood"] = "generate",
        max_new_tokens: int = 32,
        num_beams: int = 1,
        answer_after: str | None = None,
        name: str = "questions",
    ):
        self.name = name
        self.metric = metrics.find(metric)
        self.how = how
        self.max_new_tokens = max_new_tokens
        self.num_beams = num_beams
        self.answer_after = answer_after
        self._samples = _by_picture(samples) if self.metric.by_picture else samples

    def samples(self) -> Iterable[Sample]:
        return self._samples


def _by_picture(samples: Iterable[Sample]) -> list[Sample]:
    """One sample for every picture and question, with the answers of all that ask it."""
    found: dict[Hashable, Sample] = {}
    for sample in samples:
        pictures = tuple((i.path, i.span, i.data) for i in sample.images())
        key = (pictures, sample.question) if pictures else sample.id
        if key in found:
            answers = [*found[key].texts, *sample.texts]
            sample = replace(found[key], meta={**found[key].meta, "answers": answers})
        found[key] = sample
    return list(found.values())
