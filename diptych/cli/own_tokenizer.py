"""The tokenizer that a run trains on its own data, where its recipe asks for one."""

from __future__ import annotations

import re
from collections import Counter
from itertools import islice
from pathlib import Path

from diptych.data.sample import Sample
from diptych.model.architecture import ArchitectureConfig
from diptych.model.language_model import TRAINED_ON_DATA
from diptych.recipe import Recipe

_NAME = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]+|(19|20)\d\d")
_WORD = re.compile(r"\D*[^\W\d_]\D*|[a-z]\d\d|\d{1,2}[\u4e00-\u9fff]")
"""A word that is no number; also a month in Chinese, and a word for numbers that begin alike."""
READ_ROWS = 8_000
"""Most rows of a data set that its tokenizer is trained on: the first."""

OFTEN = 100
"""Times that a word told of pictures counts when pieces of words are counted: they are the same
few hundred again and again, and would cost most of the time."""


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
        texts, answers, words = [], Counter[str](), Counter[str]()
        every = [data for stage in recipe.stages for data in stage.data]
        for data in {(d.path, d.format, d.images): d for d in every}.values():
            for row in islice(rows(data.path, data.format, data.images), READ_ROWS):
                if isinstance(row, Sample):
                    for turn in row.turns:
                        # As the template writes them: an answer starts with a blank.
                        texts.append(turn.text if turn.role == "user" else f" {turn.text}")
                    answers[row.answer.strip()] += 1
                    for told, written in _told(row):
                        for word in told.split():
                            if words[word] < OFTEN:
                                texts.append(f" {word}")
                            words[word] += 1
                        answers[written] += 1
                    if not row.question:  # of a list of captions, the others
                        texts += [f" {text}" for text in row.texts[1:]]
        size = (config.config or {}).get("vocab_size", VOCAB_SIZE)
        train(texts, folder, vocab_size=size, words=_names(answers), whole=_whole(words))
    text = config.model_copy(update={"tokenizer": str(folder.absolute())})
    return recipe.model.model_copy(update={recipe.model.text_part: text})


def _told(row: Sample) -> list[tuple[str, str]]:
    """What the regions of a row tell, and what of it is written there."""
    regions = row.meta.get("regions")
    if not isinstance(regions, list):
        return []
    return [
        (str(region[0]), str(region[-1] if len(region) > 5 else region[0]))
        for region in regions
        if isinstance(region, list) and region
    ]


def _names(answers: Counter[str]) -> list[str]:
    """Years, and words in a script without blanks, that often are the whole of an answer or of
    what is written in one place.
    """
    return [a for a, n in answers.items() if n >= 5 and len(a) <= 8 and _NAME.fullmatch(a)]


def _whole(words: Counter[str]) -> list[str]:
    """Words that regions often tell, the most frequent first; numbers are spelled."""
    often = [(word, n) for word, n in words.items() if n >= 6 and _WORD.fullmatch(word)]
    return [word for word, _ in sorted(often, key=lambda pair: (-pair[1], pair[0]))]
