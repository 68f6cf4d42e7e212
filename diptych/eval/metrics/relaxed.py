"""ChartQA relaxed accuracy: numbers within 5 %, other answers equal but for case.

Variant: the rule as in lmms-eval and Qwen-VL. A trailing % divides by 100. If the prediction is a
number and the answer a number other than 0, the relative difference may be at most 5 %; otherwise
both must be equal without regard to case, blanks included. So years are numbers too (1999 passes
for 1998), "1,000" is no number, and the answer 0 needs the string "0". With several accepted
answers the best counts.

Source: Masry et al., "ChartQA" (arXiv 2203.10244), end of section 5.1;
EvolvingLMMs-Lab/lmms-eval, `lmms_eval/tasks/chartqa/utils.py`.
Parity: tests/conformance/test_vqa_metrics.py.
"""

from __future__ import annotations

from collections.abc import Sequence

TOLERANCE = 0.05


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _is_right(prediction: str, answer: str) -> bool:
    predicted, wanted = _number(prediction), _number(answer)
    if predicted is not None and wanted:
        return abs(predicted - wanted) / abs(wanted) <= TOLERANCE
    return prediction.lower() == answer.lower()


def score(prediction: str, answers: Sequence[str]) -> float:
    """1.0 if the prediction is right by the relaxed rule for an accepted answer, else 0.0."""
    return float(any(_is_right(prediction, answer) for answer in answers))
