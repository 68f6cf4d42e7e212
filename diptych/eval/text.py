"""Text-only ability: what a language model still knows after it has learned to see.

Perplexity on held-out prose, and a multiple-choice file in MMLU's form when one is given. The
shipped passages are public domain (`held_out_texts.json` names the sources); they are well known,
so a model may have met them in pretraining. Read the figures as the change between two states of
one model, which is what `compare` reports, not as absolute ability.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from diptych.errors import DataError
from diptych.eval.benchmarks.choices import Choices
from diptych.eval.result import TextAbility
from diptych.eval.runner import Model, evaluate


def held_out_texts() -> dict[str, str]:
    """Name -> text of the passages that come with Diptych: `english`, then `chinese`."""
    path = files("diptych.eval") / "held_out_texts.json"
    return {row["name"]: row["text"] for row in json.loads(path.read_text(encoding="utf-8"))}


def perplexity(model: Model, texts: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """For each text: `perplexity` = exp(-log-likelihood / tokens), `bits_per_byte`, `tokens`.

    A model whose output is not finite has the perplexity NaN, one beyond float64 infinity.

    Raises:
        DataError: a text gives no token to predict.
    """
    figures = {}
    for name, text in texts.items():
        nats, tokens = model.text_log_likelihood(text)
        if tokens < 1:
            raise DataError("the text gives no token to predict", where=f"text '{name}'")
        figures[name] = {
            "perplexity": _exp(-nats / tokens),
            "bits_per_byte": -nats / math.log(2) / len(text.encode("utf-8")),
            "tokens": tokens,
        }
    return figures


def _exp(nats: float) -> float:
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


def text_ability(
    model: Model,
    *,
    texts: Mapping[str, str] | None = None,
    choices: str | Path | None = None,
    dev: str | Path | None = None,
    num_shots: int = 0,
    batch_size: int = 16,
    progress: bool = True,
) -> TextAbility:
    """Measure what `model` can do with text alone.

    Args:
        texts: name -> held-out text, the one to quote first; the shipped passages by default.
        choices, dev, num_shots: a multiple-choice file or folder, see `benchmarks/choices.py`.
    """
    result = None
    if choices is not None:
        benchmark = Choices(choices, dev=dev, num_shots=num_shots)
        result = evaluate(model, benchmark, blind=False, batch_size=batch_size, progress=progress)
    return TextAbility(texts=perplexity(model, texts or held_out_texts()), choices=result)
