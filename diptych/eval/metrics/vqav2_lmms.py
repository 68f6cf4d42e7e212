"""VQA accuracy, lmms-eval's VQAv2 task: prediction and answers are always normalised.

Variant: line ends and blanks at the ends go, then punctuation, digits and articles, on both sides
and whether or not the answers are all equal. The EvalAI word split of `textvqa` is not applied.

Source: EvolvingLMMs-Lab/lmms-eval at 75571cf, `lmms_eval/tasks/vqav2/utils.py`.
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
    """The form in which answers are compared."""
    return process_digits_and_articles(process_punctuation(flatten(text), comma_runs=True))


def score(prediction: str, answers: Sequence[str]) -> float:
    """Leave-one-out accuracy of the prediction among the human answers (ten in VQAv2)."""
    return leave_one_out_accuracy(normalize(prediction), [normalize(a) for a in answers])
