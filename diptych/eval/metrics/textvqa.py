"""TextVQA accuracy: the EvalAI answer processor on both sides, then leave-one-out accuracy.

Variant: before the usual steps, every comma and question mark is deleted and a blank is put before
's ("red,white" becomes "redwhite"). lmms-eval and LLaVA's M4C evaluator agree on it.

Source: EvolvingLMMs-Lab/lmms-eval at 75571cf, `lmms_eval/tasks/textvqa/utils.py`;
haotian-liu/LLaVA at c121f04, `llava/eval/m4c_evaluator.py`.
Parity: tests/conformance/test_vqa_metrics.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from diptych.eval.answer_text import evalai, leave_one_out_accuracy

MIN_ANSWERS = 4
normalize = evalai


def score(prediction: str, answers: Sequence[str]) -> float:
    """Leave-one-out accuracy of the prediction among the human answers (ten in TextVQA)."""
    return leave_one_out_accuracy(normalize(prediction), [normalize(answer) for answer in answers])
