"""Words that the charts' tokenizer keeps whole: years, names, and what regions often tell.

A small model spells what it reads; a name or an often-told word that is one token is read and said
at once. `LanguageModelConfig.tokenizer_words` names this module.
"""

from __future__ import annotations

import re
from collections import Counter

from diptych.data.sample import Sample

_NAME = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]+|(19|20)\d\d")
_WORD = re.compile(r"\D*[^\W\d_]\D*|[a-z]\d\d|\d{1,2}[\u4e00-\u9fff]")
"""A word that is no number; also a month in Chinese, and a word for numbers that begin alike."""
OFTEN = 100
"""Times that a word told of pictures counts when pieces of words are counted: they are the same
few hundred again and again, and would cost most of the time."""


class Words:
    """Counts answers and told words, row by row."""

    def __init__(self) -> None:
        self._answers: Counter[str] = Counter()
        self._words: Counter[str] = Counter()

    def add(self, row: Sample) -> list[str]:
        """Count a row; texts that the tokenizer is to be trained on besides its turns."""
        texts = []
        self._answers[row.answer.strip()] += 1
        for told, written in _told(row):
            for word in told.split():
                if self._words[word] < OFTEN:
                    texts.append(f" {word}")
                self._words[word] += 1
            self._answers[written] += 1
        return texts

    @property
    def names(self) -> list[str]:
        """Years, and words in a script without blanks, that often are the whole of an answer or of
        what is written in one place.
        """
        return [
            a for a, n in self._answers.items() if n >= 5 and len(a) <= 8 and _NAME.fullmatch(a)
        ]

    @property
    def whole(self) -> list[str]:
        """Words that regions often tell, the most frequent first; numbers are spelled."""
        often = [(word, n) for word, n in self._words.items() if n >= 6 and _WORD.fullmatch(word)]
        return [word for word, _ in sorted(often, key=lambda pair: (-pair[1], pair[0]))]


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
