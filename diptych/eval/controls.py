"""The controls beside a score: what can be answered without a look at the picture.

- *blind*: the same model, pictures withheld (asked by the runner);
- *majority*: the most frequent answer of the question's kind;
- *look-up*: the most frequent answer to the same question text. Where question texts repeat, it is
  far stronger than both others: a table of questions and answers would reach it.

A gain is claimed against the best of the three. Answers and questions count as the same in the
form in which the metric compares texts. Where several answers are equally frequent, a control
scores their mean, so that no order of rows decides.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

from diptych.data.sample import Sample
from diptych.errors import DataError
from diptych.eval.benchmark import Benchmark
from diptych.eval.interval import difference_interval, mean
from diptych.eval.result import CONTROLS, Record, Score

_MAX_TIED = 8
"""So many equally frequent answers are tried, in alphabetical order; captions all differ."""


def score_controls(
    benchmark: Benchmark,
    asked: Sequence[Sample],
    records: Sequence[Record],
    train: Iterable[Sample] | None,
) -> int:
    """Fill `majority_score` and `lookup_score` of the records that have a score.

    A question that was not found is looked up as its kind, a new kind among all answers.

    Args:
        asked: the sample of each record, its answer included.
        train: samples to count in, all turns of them. Without them both controls count in `asked`.
            The majority then counts a sample's own answer too, which makes it a little too
            strong; the look-up leaves it out, as it would find nothing else where every question
            is asked once.

    Returns:
        How many scored questions were found by their text.
    """
    counts = _Counts(benchmark.metric.normalize)
    own = [(_last_question(s), benchmark.kind(s), _answers(benchmark, s)) for s in asked]
    wanted = {counts.normalize(question) for question, _, _ in own}
    if train is None:
        for said in own:
            counts.add(*said, wanted)
    else:
        for sample in train:
            for question, answers in _turns(benchmark, sample):
                counts.add(question, benchmark.kind(sample), answers, wanted)
    num_found = 0
    for sample, record, (question, kind, answers) in zip(asked, records, own, strict=True):
        if record.score is None:
            continue
        frequent = counts.of_kind(kind)
        found = counts.of_question(question, () if train is not None else answers)
        num_found += bool(found)
        record.majority_score = _mean_score(benchmark, frequent, sample)
        record.lookup_score = (
            record.majority_score
            if not found or found == frequent
            else _mean_score(benchmark, found, sample)
        )
    return num_found


class _Counts:
    """How often each answer was given: by kind, by question, and at all."""

    def __init__(self, normalize: Callable[[str], str]):
        self.normalize = normalize
        self._kinds: dict[str, Counter[str]] = defaultdict(Counter)
        self._questions: dict[str, Counter[str]] = defaultdict(Counter)
        self._forms: dict[str, Counter[str]] = defaultdict(Counter)
        self._known: dict[str | None, list[str]] = {}

    def add(self, question: str, kind: str, answers: Sequence[str], wanted: set[str]) -> None:
        """Count answers; by their question only where that is among `wanted`."""
        key = self.normalize(question)
        for answer in answers:
            form = self.normalize(answer)
            self._forms[form][answer] += 1
            self._kinds[kind][form] += 1
            if key in wanted:
                self._questions[key][form] += 1

    def of_kind(self, kind: str) -> list[str]:
        """The most frequent answers of a kind, or of all for a new kind."""
        key = kind if kind in self._kinds else None
        if key not in self._known:
            every = sum(self._kinds.values(), Counter()) if key is None else self._kinds[kind]
            self._known[key] = self._frequent(every)
        return self._known[key]

    def of_question(self, question: str, without: Sequence[str]) -> list[str]:
        """The most frequent answers to a question, `without` taken from the counts."""
        counted = self._questions.get(self.normalize(question), Counter())
        return self._frequent(counted - Counter(self.normalize(answer) for answer in without))

    def _frequent(self, counted: Counter[str]) -> list[str]:
        """Answers as they are mostly written; several where they are equally frequent."""
        most = max(counted.values(), default=0)
        tied = sorted(form for form, count in counted.items() if count == most)[:_MAX_TIED]
        written = (self._forms[form] for form in tied)
        return [min(forms, key=lambda text: (-forms[text], text)) for forms in written]


def _turns(benchmark: Benchmark, sample: Sample) -> Iterator[tuple[str, list[str]]]:
    """Every question of a conversation with its accepted answers."""
    last = max((n for n, t in enumerate(sample.turns) if t.role == "assistant"), default=-1)
    question = ""
    for number, turn in enumerate(sample.turns):
        if turn.role == "user":
            question = turn.text
        elif number == last:
            yield question, _answers(benchmark, sample)
        elif turn.role == "assistant":
            yield question, [benchmark.final(turn.text)]
    if last < 0:
        yield _last_question(sample), _answers(benchmark, sample)


def _last_question(sample: Sample) -> str:
    return next((turn.text for turn in reversed(sample.turns) if turn.role == "user"), "")


def _answers(benchmark: Benchmark, sample: Sample) -> list[str]:
    """What may be counted: a single answer too, where the metric scores by several."""
    try:
        return benchmark.answers(sample)
    except DataError:
        return [benchmark.final(text) for text in sample.texts]


def _mean_score(benchmark: Benchmark, guesses: Sequence[str], sample: Sample) -> float:
    return mean([benchmark.score(guess, sample) for guess in guesses or [""]])


def gain(records: Sequence[Record], seed: int = 0) -> tuple[str, Score] | None:
    """The control that is hardest to beat, and how far the model is above it.

    The difference is paired by question, over those that have both scores; its 95 % interval is
    resampled by picture. None where no control was measured.
    """
    found = []
    for name in CONTROLS:
        pairs = [
            (record, control)
            for record in records
            if record.score is not None
            and (control := getattr(record, f"{name}_score")) is not None
        ]
        if pairs:
            found.append((mean([control for _, control in pairs]), name, pairs))
    if not found:
        return None
    _, name, pairs = max(found, key=lambda entry: entry[0])
    changes = [(record.score or 0.0) - control for record, control in pairs]
    low, high = difference_interval(changes, [record.group for record, _ in pairs], seed=seed)
    return name, Score(score=mean(changes), low=low, high=high, n=len(changes))
