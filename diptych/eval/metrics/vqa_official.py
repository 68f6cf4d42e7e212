"""VQA accuracy, official script: normalises both sides, but only when the answers differ.

Variant: line ends and blanks at the ends go always; punctuation, digits and articles of the
prediction and of every answer are processed only if the answers are not all equal. So "Two" fails
against ten times "two".

Source: GT-Vision-Lab/VQA at a013f00, `PythonEvaluationTools/vqaEvaluation/vqaEval.py`.
Parity: tests/conformance/test_vqa_metrics.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from diptych.eval.answer_text import (
    flatten,
    leave_one_out_accuracy,
    process_digits_and_articles,
    process_punctuation,
)

MIN_ANSWERS = 4


def normalize(text: str) -> str:
    """The form in which answers are compared where they are not all equal."""
    return process_digits_and_articles(process_punctuation(flatten(text)))


def score(prediction: str, answers: Sequence[str]) -> float:
    """Leave-one-out accuracy of the prediction among the human answers (ten in VQA)."""
    prediction, *answers = (flatten(text) for text in (prediction, *answers))
    if len(set(answers)) > 1:
        prediction, *answers = (normalize(text) for text in (prediction, *answers))
    return leave_one_out_accuracy(prediction, answers)
