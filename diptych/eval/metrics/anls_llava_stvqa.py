"""ANLS as in LLaVA's ST-VQA evaluator: edit distance over the processed length.

Variant: both sides are lower-cased and stripped, inner blanks stay; the edit distance is divided by
the longer length after that. Below 0.5 the score is 0. Two empty texts, where the reference fails
with a division by zero, are equal here and score 1.

Source: haotian-liu/LLaVA at c121f04, `llava/eval/m4c_evaluator.py`, STVQAANLSEvaluator.
Parity: tests/conformance/test_vqa_metrics.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from diptych.eval.answer_text import edit_distance

THRESHOLD = 0.5


def _similarity(prediction: str, answer: str) -> float:
    left, right = prediction.lower().strip(), answer.lower().strip()
    longest = max(len(left), len(right))
    return 1 - edit_distance(left, right) / longest if longest else 1.0


def score(prediction: str, answers: Sequence[str]) -> float:
    """Similarity to the nearest accepted answer, 0 below the threshold."""
    best = max((_similarity(prediction, answer) for answer in answers), default=0.0)
    return best if best >= THRESHOLD else 0.0
