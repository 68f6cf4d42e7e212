"""The tokenizer that a run trains on its own data, where its recipe asks for one."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from diptych import parts
from diptych.data.sample import Sample
from diptych.model.architecture import ArchitectureConfig
from diptych.model.text_config import TRAINED_ON_DATA
from diptych.recipe import Recipe

READ_ROWS = 8_000
"""Most rows of a data set that its tokenizer is trained on: the first."""


def with_tokenizer(recipe: Recipe, run: Path) -> ArchitectureConfig:
    """The recipe's model with a tokenizer trained on its data, where it asks for one.

    Trained once and kept in the run folder, so that a resumed run reads the same tokens.
    """
    from diptych.data.source import rows
    from diptych.data.text.tokenizer import VOCAB_SIZE, train

    config = recipe.model.text_config
    if config.tokenizer != TRAINED_ON_DATA:
        return recipe.model
    folder = run / "tokenizer"

    if not (folder / "tokenizer.json").is_file():
        texts: list[str] = []
        kept: Any = None
        if getattr(config, "tokenizer_words", None) is not None:
            kept = parts.find("data", config.tokenizer_words).Words()
        every = [data for stage in recipe.stages for data in stage.data]
        for data in {(d.path, d.format, d.images): d for d in every}.values():
            for row in islice(rows(data.path, data.format, data.images), READ_ROWS):
                if isinstance(row, Sample):
                    for turn in row.turns:
                        # As the template writes them: an answer starts with a blank.
                        texts.append(turn.text if turn.role == "user" else f" {turn.text}")
                    if kept is not None:
                        texts += kept.add(row)
                    if not row.question:  # of a list of captions, the others
                        texts += [f" {text}" for text in row.texts[1:]]
        size = (config.config or {}).get("vocab_size", VOCAB_SIZE)
        names, whole = (kept.names, kept.whole) if kept is not None else ((), ())
        train(texts, folder, vocab_size=size, words=names, whole=whole)
    text = config.model_copy(update={"tokenizer": str(folder.absolute())})
    return recipe.model.model_copy(update={recipe.model.text_part: text})
