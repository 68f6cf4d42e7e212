"""Questions of your own: any data set that Diptych reads, and a metric.

Source and licence: those of the data set. Variant: the metric's name, which stands in every result.
Accepted answers are `meta["answers"]` or the sample's own answer, the kind is `meta["kind"]`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from diptych.data.sample import Sample
from diptych.eval import metric as metrics
from diptych.eval.benchmark import Benchmark


class Questions(Benchmark):
    """A benchmark over Samples that carry their answers.

    Args:
        samples: an index or list; iterated once for each evaluation.
        metric: name of a file of `metrics/`, such as "exact", "relaxed" or "vqa_official".
        how: "likelihood" needs `meta["choices"]` on every sample; the candidates are then compared
            by the log-likelihood of the whole text, not divided by its length.
    """

    def __init__(
        self,
        samples: Iterable[Sample],
        *,
        metric: str = "exact",
        how: Literal["generate", "likelihood"] = "generate",
        max_new_tokens: int = 32,
        num_beams: int = 1,
        name: str = "questions",
    ):
        self.name = name
        self.metric = metrics.find(metric)
        self.how = how
        self.max_new_tokens = max_new_tokens
        self.num_beams = num_beams
        self._samples = samples

    def samples(self) -> Iterable[Sample]:
        return self._samples
