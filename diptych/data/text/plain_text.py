"""Text as plain text: what a person wrote never becomes a model's special token.

Every reader of text goes through here: conversations, captions, queries.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from diptych.errors import ModelError


def reserved_tokens(tokenizer: Any) -> dict[str, int]:
    """The words that a tokenizer has as single tokens of their own, and their ids.

    One plain character that is an added token (a tab, say) can be had no other way, and words
    that a tokenizer trained on data keeps whole are no marks: those have brackets.
    """
    return {
        str(t): i
        for i, t in tokenizer.added_tokens_decoder.items()
        if t.special or (len(str(t)) > 1 and not str(t).strip().isalnum())
    }


def unknown_token(tokenizer: Any) -> dict[str, int]:
    """The token that stands for characters that are not known, where it means nothing else.

    It is an added token as well, and stands wherever such a character does. Tokenizers of the GPT-2
    kind know every byte, and name their end so.
    """
    frame = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
    word = tokenizer.unk_token
    return {} if word is None or word in frame else {word: tokenizer.unk_token_id}


def any_of(words: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds any of the words, the longest first."""
    return re.compile("|".join(re.escape(w) for w in sorted(words, key=len, reverse=True)))


def cut_words(text: str, pattern: re.Pattern[str]) -> list[str]:
    """The text cut behind the first character of every word that the pattern finds.

    Together the pieces are the text, and none holds such a word, unless it is one character.
    """
    cuts, position = [0], 0
    while match := pattern.search(text, position):
        position = match.start() + 1
        cuts.append(position)
    return [text[a:b] for a, b in itertools.pairwise([*cuts, len(text)])]


class PlainText:
    """text -> token ids, special tokens impossible.

    Args:
        tokenizer: a Hugging Face tokenizer.

    Raises:
        ModelError: when called with a text that its normalizer turns into a special token.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        added = reserved_tokens(tokenizer)
        self.reserved_ids = frozenset(added.values())
        self._unwanted = self.reserved_ids - set(unknown_token(tokenizer).values())
        self._pattern = any_of(added) if added else None

    def __call__(self, text: str) -> tuple[int, ...]:
        ids = self._encode([text] if self._pattern is None else cut_words(text, self._pattern))
        if self._special(ids) is not None:
            # A normalizer can write a reserved string that was not there (full-width letters).
            ids = self._encode(text)
        if (found := self._special(ids)) is not None:
            name = self.tokenizer.convert_ids_to_tokens(found)
            raise ModelError(f"plain text became the special token {name!r}")
        return tuple(ids)

    def _encode(self, pieces: Iterable[str]) -> list[int]:
        ids: list[int] = []
        for piece in pieces:
            ids += self.tokenizer.encode(piece, add_special_tokens=False)
        return ids

    def _special(self, ids: Iterable[int]) -> int | None:
        return next((i for i in ids if i in self._unwanted), None)


@dataclass
class TextTokens:
    """Whole texts as one text encoder reads them, framed by its start and end tokens.

    The frame is the tokenizer's own; one that frames nothing gets its end token behind the text,
    where causal encoders pool. A text that is too long loses its end, never its frame.

    Args:
        tokenizer: a Hugging Face tokenizer.
        max_tokens: longest text, frame included.
        pad_to_max: fill every text up to that length, for encoders that read their padding.
        frame: ids before and after a text instead of the tokenizer's own.
    """

    tokenizer: Any
    max_tokens: int
    pad_to_max: bool = False
    frame: tuple[int, int] | None = None
    _frame: tuple[tuple[int, ...], tuple[int, ...]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._plain = lru_cache(maxsize=200_000)(PlainText(self.tokenizer))
        if self.frame is not None:
            self._frame = ((self.frame[0],), (self.frame[1],))
            return
        bare = self.tokenizer.encode("a", add_special_tokens=False)
        framed = self.tokenizer.encode("a", add_special_tokens=True)
        start = next(
            i for i in range(len(framed)) if framed[i : i + len(bare)] == bare
        )  # the frame stands around what was framed
        before, after = framed[:start], framed[start + len(bare) :]
        if not before and not after and self.tokenizer.eos_token_id is not None:
            after = [self.tokenizer.eos_token_id]
        self._frame = (tuple(before), tuple(after))

    def __getstate__(self) -> dict[str, Any]:
        # Sent to decode workers; the cache is rebuilt there.
        return {k: getattr(self, k) for k in ("tokenizer", "max_tokens", "pad_to_max", "frame")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def plain(self, text: str) -> tuple[int, ...]:
        """Ids of the text alone, no frame."""
        return self._plain(text)

    def ids(self, text: str) -> tuple[list[int], int]:
        """(ids with frame, number of tokens that were cut off), which the caller has to report."""
        before, after = self._frame
        room = max(0, self.max_tokens - len(before) - len(after))
        plain = self._plain(text)
        return [*before, *plain[:room], *after], max(0, len(plain) - room)

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Rows of ids -> (ids, mask), int64 [n, T], padded on the right."""
        length = self.max_tokens if self.pad_to_max else max((len(r) for r in rows), default=0)
        pad = self.tokenizer.pad_token_id
        ids = np.full((len(rows), length), 0 if pad is None else pad, np.int64)
        mask = np.zeros((len(rows), length), np.int64)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = row
            mask[number, : len(row)] = 1
        return ids, mask
