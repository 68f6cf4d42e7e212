"""Result: a score with its interval, its controls and every single answer; on disk and back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from diptych import json_text
from diptych.errors import DataError
from diptych.staging import write_text

CONTROLS = ("blind", "majority", "lookup")
"""Names of the controls, as in `Result` and `Record`; see eval/controls.py."""
RESULT_FILE = "result.json"
RECORDS_FILE = "records.jsonl"
CHOICES_FOLDER = "choices"


@dataclass(frozen=True, slots=True)
class Score:
    """A mean score with its 95 % interval and the number of questions."""

    score: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, Any]:
        """`{score, low, high, n}`."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class KindScore(Score):
    """The score of one question kind, beside the controls on the same questions."""

    blind: float | None
    majority: float
    lookup: float | None = None


@dataclass(slots=True)
class Record:
    """What became of one question.

    Attributes:
        group: what questions share that are not independent: their first picture.
        output: the model's answer; None where the model failed, or the prompt was too long.
        score: 0 to 1; None where the model failed: a failure is never scored as an answer.
        blind_output, blind_score: the same with the pictures withheld, where that was asked.
        majority_score: score of the most frequent answer of the kind.
        lookup_score: score of the most frequent answer to the same question text.
        error, blind_error: why there is no score, or why it is 0.
        too_long: the prompt exceeds the context, which counts as wrong.
        tied: several candidates were equally likely; the one that is wrong was taken.
    """

    id: str
    question: str
    truth: str
    kind: str
    image: str | None
    group: str
    output: str | None = None
    score: float | None = None
    blind_output: str | None = None
    blind_score: float | None = None
    majority_score: float | None = None
    error: str | None = None
    blind_error: str | None = None
    lookup_score: float | None = None
    too_long: bool = False
    tied: bool = False


@dataclass(frozen=True, slots=True)
class TextAbility:
    """What a model can do with text alone.

    Attributes:
        texts: name -> {perplexity, bits_per_byte, tokens}; perplexities of models with different
            tokenizers do not compare, bits per byte do.
        choices: result on a multiple-choice file, where one was given.
    """

    texts: dict[str, dict[str, float]]
    choices: Result | None = None

    @property
    def perplexity(self) -> float:
        """Perplexity of the first text, the figure to quote."""
        return next(iter(self.texts.values()))["perplexity"]

    def to_dict(self) -> dict[str, Any]:
        return {
            "perplexity": self.perplexity,
            "texts": self.texts,
            "choices": self.choices.to_dict() if self.choices else None,
        }


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of one evaluation.

    Attributes:
        overall: score of the model over all questions that it answered.
        blind: the same model with the pictures withheld; None where not asked, or no pictures.
        majority: the score of always giving the most frequent answer of the question's kind.
        majority_from: where that answer was counted: "training answers" or "evaluated answers".
        lookup: the score of always giving the most frequent answer to the same question text,
            counted in the same place; None in old files and for retrieval.
        lookup_found: scored questions whose text was found there; the others got the majority.
        best_control: name of the control that is hardest to beat ("blind", "majority", "lookup").
        gain: how far the model is above that control, paired by question; what may be claimed.
        by_kind: score and controls for each question kind.
        aggregates: figures of the metric over the whole set (precision...), where it has any.
        failures: questions without an output; they are in `records` and in no score.
        too_long: ids of questions whose prompt exceeds the context; each counts as wrong.
        ties: questions on which several candidates were equally likely; none of them won.
        blind_failures: questions answered with pictures and failed without.
        seconds: wall time.
        text: text-only ability, where it was measured.
        answer_after: what stands between working and answer in outputs; None where all is answer.
    """

    benchmark: str
    metric: str
    how: str
    overall: Score
    blind: Score | None
    majority: Score
    majority_from: str
    by_kind: dict[str, KindScore]
    aggregates: dict[str, float]
    failures: int
    blind_failures: int
    seconds: float
    seed: int
    limit: int | None
    records: list[Record] = field(repr=False)
    text: TextAbility | None = None
    lookup: Score | None = None
    lookup_found: int = 0
    best_control: str | None = None
    gain: Score | None = None
    too_long: list[str] = field(default_factory=list)
    ties: int = 0
    answer_after: str | None = None

    @property
    def score(self) -> float:
        return self.overall.score

    @property
    def low(self) -> float:
        return self.overall.low

    @property
    def high(self) -> float:
        return self.overall.high

    @property
    def n(self) -> int:
        return self.overall.n

    def to_dict(self) -> dict[str, Any]:
        """All but the records; scores and `gain` are `{score, low, high, n}`."""
        return {
            "benchmark": self.benchmark,
            "metric": self.metric,
            "how": self.how,
            "after": self.overall.to_dict(),
            "blind": self.blind.to_dict() if self.blind else None,
            "majority": self.majority.to_dict(),
            "majority_from": self.majority_from,
            "lookup": self.lookup.to_dict() if self.lookup else None,
            "lookup_found": self.lookup_found,
            "best_control": self.best_control,
            "gain": self.gain.to_dict() if self.gain else None,
            "by_kind": {kind: score.to_dict() for kind, score in self.by_kind.items()},
            "aggregates": self.aggregates,
            "failures": self.failures,
            "blind_failures": self.blind_failures,
            "too_long": self.too_long,
            "ties": self.ties,
            "seconds": self.seconds,
            "seed": self.seed,
            "limit": self.limit,
            "text": self.text.to_dict() if self.text else None,
            "answer_after": self.answer_after,
        }

    def save(self, folder: str | Path) -> None:
        """Write `result.json` and `records.jsonl`; each appears whole or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        lines = (json_text.dumps(asdict(r)) + "\n" for r in self.records)
        write_text(folder / RECORDS_FILE, "".join(lines))
        if self.text and self.text.choices:
            self.text.choices.save(folder / CHOICES_FOLDER)
        text = json_text.dumps(self.to_dict(), indent=2) + "\n"
        write_text(folder / RESULT_FILE, text)

    @classmethod
    def load(cls, folder: str | Path) -> Result:
        """Read what `save` wrote.

        Raises:
            DataError: a file is missing or is not what `save` writes.
        """
        folder = Path(folder)
        path = folder / RESULT_FILE
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            records = list(_read_records(folder / RECORDS_FILE))
            text = data["text"]
            if text:
                choices = cls.load(folder / CHOICES_FOLDER) if text["choices"] else None
                texts = {name: _numbers(figures) for name, figures in text["texts"].items()}
                text = TextAbility(texts=texts, choices=choices)
            kept = {
                name: data[name]
                for name in (
                    *("benchmark", "metric", "how", "majority_from", "aggregates"),
                    *("failures", "blind_failures", "seconds", "seed", "limit"),
                )
            }
            # What came later is not in the files of older versions.
            since = ("lookup_found", "best_control", "too_long", "ties", "answer_after")
            later = {name: data[name] for name in since if name in data}
            return cls(
                overall=Score(**data["after"]),
                blind=Score(**data["blind"]) if data["blind"] else None,
                lookup=Score(**data["lookup"]) if data.get("lookup") else None,
                gain=Score(**data["gain"]) if data.get("gain") else None,
                majority=Score(**data["majority"]),
                by_kind={kind: KindScore(**score) for kind, score in data["by_kind"].items()},
                records=records,
                text=text or None,
                **{**kept, "aggregates": _numbers(kept["aggregates"])},
                **later,
            )
        except OSError as error:
            raise DataError(
                f"no evaluation can be read: {error.strerror}",
                where=str(error.filename or folder),
                fix=f"name a folder with {RESULT_FILE} and {RECORDS_FILE}",
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"not an evaluation result: {error!r}", where=str(path)) from error


def _numbers(figures: dict[str, Any]) -> dict[str, Any]:
    """Figures as they were before they were written: null stands for what is no number."""
    return {name: math.nan if value is None else value for name, value in figures.items()}


def _read_records(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                values = json.loads(line)
                values.pop(json_text.NOT_FINITE, None)
                yield Record(**values)
            except (ValueError, TypeError, AttributeError) as error:
                raise DataError(f"not a record: {error}", where=f"{path}:{number}") from error
