"""POPE as in lmms-eval: the whole answer must be "yes" or "no".

Variant: prediction and answer are lower-cased and stripped, then compared as they stand: "Yes."
scores 0. Predictions other than yes and no are counted in no class. As in the reference,
`yes_ratio` of `aggregate` is taken from the true answers, not from the predictions.

Source: EvolvingLMMs-Lab/lmms-eval at 75571cf, `lmms_eval/tasks/pope/utils.py`.
Parity: tests/conformance/test_vqa_metrics.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from diptych.eval.answer_text import yes_no_figures


def label(prediction: str) -> str:
    """The prediction as it is compared."""
    return prediction.lower().strip()


def score(prediction: str, answers: Sequence[str]) -> float:
    """1.0 if the prediction equals an accepted answer but for case and outer blanks, else 0.0."""
    return float(label(prediction) in {label(answer) for answer in answers})


def aggregate(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """Counts, accuracy, precision, recall, F1, and the share of "yes" among the true answers."""
    gold = [label(own[0]) for own in answers]
    figures = yes_no_figures([label(p) for p in predictions], gold, negative_is_rest=False)
    decided = gold.count("yes") + gold.count("no")
    return {**figures, "yes_ratio": gold.count("yes") / decided if decided else 0.0}
