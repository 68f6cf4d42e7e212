"""Captions: ROUGE-L of each; BLEU, METEOR, ROUGE-L and CIDEr-D of the whole set.

Variant: the score of one caption is ROUGE-L over words found without Java, as the other figures say
nothing of one caption alone. The figures of the set (`aggregate`) use the COCO evaluation's own
tokenizer where Java and the pycocoevalcap package are found (`official` is 1 then), jieba for
Chinese. Accepted answers are the references: all captions of a picture, in one row or in several.

Source: salaniz/pycocoevalcap 1.2; formulas and papers in diptych/eval/captions.py.
Parity: tests/conformance/test_caption_metrics.py.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from diptych.errors import DiptychError
from diptych.eval import captions

BY_PICTURE = True

log = logging.getLogger(__name__)

_FIGURES = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr", "official")


def score(prediction: str, answers: Sequence[str]) -> float:
    """ROUGE-L of a caption against its references, 0 to 1."""
    wanted = captions.fitting(answers)
    plain = "simple" if wanted == "ptb" else wanted
    words, *truths = captions.tokenize([prediction, *answers], plain)
    return captions.rouge_l(words, truths)


def aggregate(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """BLEU 1 to 4, ROUGE-L, CIDEr-D (0 to 10) and, with the official tokenizer, METEOR."""
    if not predictions:
        return dict.fromkeys(_FIGURES, 0.0)
    names = [str(number) for number in range(len(predictions))]
    candidates = dict(zip(names, predictions, strict=True))
    references = dict(zip(names, answers, strict=True))
    try:
        found = captions.score(candidates, references)
    except DiptychError as error:
        # The answers of a long evaluation are not thrown away over Java; `official` tells.
        log.warning("the official caption metrics failed, others stand in: %s", error)
        found = captions.score(candidates, references, tokenizer="simple")
    return {**found.corpus, "official": float(found.official)}
