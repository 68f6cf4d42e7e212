"""VQA accuracy, LAVIS's older copy: digits and articles of the answers are never normalised.

Variant: the prediction is always normalised; answers only lose punctuation, and only when they are
not all equal. So the prediction "two" becomes "2" and misses the answer "two". Use it to compare
with numbers published from LAVIS (BLIP, BLIP-2), `vqa_official` otherwise.

Source: salesforce/LAVIS at 506965b, `lavis/common/vqa_tools/vqa_eval.py`.
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


def normalize_prediction(prediction: str) -> str:
    """The prediction as it is compared with the answers."""
    return process_digits_and_articles(process_punctuation(flatten(prediction)))


normalize = normalize_prediction


def score(prediction: str, answers: Sequence[str]) -> float:
    """Leave-one-out accuracy of the prediction among the human answers (ten in VQA)."""
    if len(set(answers)) > 1:
        answers = [process_punctuation(answer) for answer in answers]
    return leave_one_out_accuracy(normalize_prediction(prediction), answers)
