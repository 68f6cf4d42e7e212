"""POPE as in LLaVA: "no" if the first sentence has the word No, no or not, otherwise "yes".

Variant: whatever is not recognised as "no" counts as "yes", an empty or failed answer too; report
`pope_lmms` beside it. `aggregate` gives POPE's own figures; `yes_ratio` is the share of
predictions read as "yes".

Source: Li et al., "Evaluating Object Hallucination in Large Vision-Language Models"
(arXiv 2305.10355); haotian-liu/LLaVA at c121f04, `llava/eval/eval_pope.py`.
Parity: tests/conformance/test_vqa_metrics.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from diptych.eval.answer_text import yes_no_figures

NEGATIONS = frozenset({"No", "no", "not"})


def label(prediction: str) -> str:
    """What the prediction is read as: "yes" or "no"."""
    first_sentence = prediction.split(".", 1)[0]
    words = first_sentence.replace(",", "").split(" ")
    return "no" if NEGATIONS.intersection(words) else "yes"


def _truth(answer: str) -> str:
    return "no" if answer.strip().lower() == "no" else "yes"


def score(prediction: str, answers: Sequence[str]) -> float:
    """1.0 if the label read from the prediction is an accepted answer, else 0.0."""
    return float(label(prediction) in {_truth(answer) for answer in answers})


def aggregate(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """Counts, accuracy, precision, recall, F1, and the share of "yes" among the predictions."""
    labels = [label(prediction) for prediction in predictions]
    figures = yes_no_figures(labels, [_truth(own[0]) for own in answers], negative_is_rest=True)
    return {**figures, "yes_ratio": labels.count("yes") / len(labels) if labels else 0.0}
