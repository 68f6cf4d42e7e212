"""Multiple choice in MMLU's CSV form, scored by the log-likelihood of the letters A to D.

Measures text-only ability, before and after images came in. The files have no header and the
columns question, A, B, C, D, answer letter; the subject is the file name without `_test`, `_val` or
`_dev`. Prompt and scoring are those of lm-evaluation-harness: 0 or more worked examples, the first
of the dev file, then the item up to "Answer:", and the letter with a blank before it that has the
largest log-likelihood.

Source: Hendrycks et al., "Measuring Massive Multitask Language Understanding" (arXiv 2009.03300),
data under MIT; EleutherAI/lm-evaluation-harness, `lm_eval/tasks/mmlu/default`.
Published figure: chance is 25 %; GPT-3 175B, 5 shots, 43.9 % (table 1 of the paper).
Parity: tests/conformance/test_mmlu_style.py.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from diptych.data.sample import Sample, Text, Turn
from diptych.errors import DataError, FormatError
from diptych.eval import metric as metrics
from diptych.eval.benchmark import Asked, Benchmark

LETTERS = "ABCD"
CONTINUATIONS = tuple(f" {letter}" for letter in LETTERS)
_HEADER = ["question", *LETTERS, "answer"]
_SPLITS = ("_test", "_val", "_dev")


@dataclass(frozen=True, slots=True)
class Item:
    """One row: a question, four choices, and the letter of the right one."""

    question: str
    choices: tuple[str, str, str, str]
    answer: str
    where: str = ""


def prompt_text(subject: str, item: Item, shots: Sequence[Item] = ()) -> str:
    """The prompt of lm-evaluation-harness, ending in "Answer:" without a blank."""
    head = "The following are multiple choice questions (with answers) about "
    examples = "".join(f"{_question(shot)} {shot.answer}\n\n" for shot in shots)
    return f"{head}{subject.replace('_', ' ')}.\n\n{examples}{_question(item)}"


def _question(item: Item) -> str:
    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, item.choices, strict=True)]
    return "\n".join([item.question.strip(), *lines, "Answer:"])


def subject_of(path: Path) -> str:
    """`high_school_geography_test.csv` -> `high_school_geography`."""
    for split in _SPLITS:
        if path.stem.endswith(split):
            return path.stem.removesuffix(split)
    return path.stem


def read_items(path: Path) -> Iterator[Item]:
    """The rows of one CSV file; a header line of MMLU's column names is passed over.

    Raises:
        DataError: the file cannot be opened.
        FormatError: a row has not six columns or no answer among A to D, or the file is not UTF-8
            or not CSV; says the line.
    """
    rows = csv.reader(_lines(path), strict=True)
    try:
        for row in rows:
            where = f"{path}:{rows.line_num}"
            if not row or (rows.line_num == 1 and row == _HEADER):
                continue
            if len(row) != len(_HEADER) or row[-1].strip() not in tuple(LETTERS):
                raise FormatError(
                    f"expected question, A, B, C, D and an answer letter; the row has {len(row)} "
                    f"columns and ends in {row[-1][:20]!r}",
                    where=where,
                    fix="quote fields that contain commas",
                )
            question, a, b, c, d, answer = row
            yield Item(question, (a, b, c, d), answer.strip(), where)
    except csv.Error as error:
        raise FormatError(f"not CSV: {error}", where=f"{path}:{rows.line_num}") from error


def _lines(path: Path) -> Iterator[str]:
    """Lines of a file, each decoded by itself so that a fault has its line number."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"cannot open the file: {error.strerror}", where=str(path)) from error
    with file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise FormatError(f"not UTF-8: {error}", where=f"{path}:{number}") from error
            if "\0" in text:
                raise FormatError("the line has a NUL byte", where=f"{path}:{number}")
            yield text


class Choices(Benchmark):
    """Multiple-choice files in MMLU's form.

    Args:
        path: a CSV file, or a folder whose `*.csv` are all read; kinds are the subjects.
        dev: the file, or folder of files `<subject>_dev.csv`, from which worked examples come.
        num_shots: worked examples before each question, the first of `dev`.

    Raises:
        DataError: no such file, or `dev` has fewer rows than `num_shots`.
    """

    how = "likelihood"
    chat = False
    needs_data = True

    @classmethod
    def open(cls, asked: Asked) -> Self:
        assert asked.path is not None, "needs_data"
        opened = cls(asked.path)
        opened.name = asked.name or opened.name
        return opened

    def __init__(self, path: str | Path, *, dev: str | Path | None = None, num_shots: int = 0):
        self.name = "choices"
        self.metric = metrics.find("exact")
        self.num_shots = num_shots
        path = Path(path)
        self._files = sorted(path.glob("*.csv")) if path.is_dir() else [path]
        if not self._files:
            raise DataError("the folder has no .csv file", where=str(path))
        self._shots = {
            subject_of(file): self._read_shots(file, dev) if num_shots else []
            for file in self._files
        }

    def _read_shots(self, file: Path, dev: str | Path | None) -> list[Item]:
        if dev is None:
            raise DataError(
                f"{self.num_shots} worked examples wanted and no dev file given",
                where=str(file),
                fix="give the dev file, or ask without examples",
            )
        dev = Path(dev)
        dev = dev / f"{subject_of(file)}_dev.csv" if dev.is_dir() else dev
        shots = list(read_items(dev))[: self.num_shots]
        if len(shots) < self.num_shots:
            raise DataError(
                f"{self.num_shots} worked examples wanted, the dev file has {len(shots)}",
                where=str(dev),
            )
        return shots

    def samples(self) -> Iterable[Sample]:
        for file in self._files:
            subject = subject_of(file)
            for row, item in enumerate(read_items(file)):
                text = prompt_text(subject, item, self._shots[subject])
                yield Sample(
                    id=f"{subject}:{row}",
                    turns=(
                        Turn("user", (Text(text),)),
                        Turn("assistant", (Text(item.answer),)),
                    ),
                    source=item.where,
                    meta={"kind": subject},
                )

    def candidates(self, sample: Sample) -> Sequence[str]:
        return CONTINUATIONS
