"""ANLS (DocVQA, InfographicVQA) as in lmms-eval: edit distance over the unprocessed length.

Variant: both sides are stripped, lower-cased and have blanks collapsed before the edit distance;
it is divided by the longer length of the texts before that. The best accepted answer counts;
below 0.5 the score is 0, 0.5 itself counts.

Source: Biten et al., "Scene Text Visual Question Answering" (arXiv 1905.13648);
EvolvingLMMs-Lab/lmms-eval at 75571cf, `lmms_eval/api/metrics.py`.
Parity: tests/conformance/test_vqa_metrics.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from diptych.eval.answer_text import edit_distance

THRESHOLD = 0.5


def _similarity(prediction: str, answer: str) -> float:
    # Upper case can be longer than the text itself; the reference measures there.
    longest = max(len(prediction.upper()), len(answer.upper()))
    if longest == 0:
        return 1.0
    left, right = (" ".join(text.strip().lower().split()) for text in (prediction, answer))
    return 1 - edit_distance(left, right) / longest


def score(prediction: str, answers: Sequence[str]) -> float:
    """Similarity to the nearest accepted answer, 0 below the threshold."""
    best = max((_similarity(prediction, answer) for answer in answers), default=0.0)
    return best if best >= THRESHOLD else 0.0
