"""A tokenizer that knows two marks more: where a picture stands, and where a text is cut.

Both are special tokens of a copy, so the tokenizer itself splits the text at them before anything
else, as it does at `<image>` in an exported model, and every other token is what it always is.

Source: tokenizers, `AddedToken` (special, not normalized).
Parity: tests/field/test_chat_ids.py.
"""

from __future__ import annotations

import bisect
import copy
import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

from diptych.data.text.chat_template import Rendered
from diptych.data.text.plain_text import unknown_token
from diptych.errors import ConfigError

PICTURE = "\ue000picture\ue001"
CUT = "\ue000cut\ue001"
"""`CUT` becomes nothing; it keeps what stands on both sides of it apart."""
_SOFT = "\U0010fffd"
"""A character that stands in for `CUT` where a tokenizer puts a blank behind every added token."""


class Tokens(NamedTuple):
    """The tokens of a text: ids, and the characters that each stands for, from and to."""

    ids: list[int]
    starts: list[int]
    ends: list[int]


class MarkedTokenizer:
    """A Hugging Face tokenizer's own copy with `PICTURE` and `CUT`.

    Attributes:
        picture: id of the mark.

    Raises:
        ConfigError: the tokenizer is not backed by the tokenizers library.
    """

    def __init__(self, tokenizer: Any):
        from tokenizers import AddedToken, processors

        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ConfigError(
                f"the tokenizer ({type(tokenizer).__name__}) is not one of the tokenizers "
                "library, and tells no places of its tokens",
                where="model.language_model.tokenizer",
                fix="use a folder with tokenizer.json, or one that transformers can convert",
            )
        self._backend = copy.deepcopy(backend)
        self._backend.no_padding()
        self._backend.no_truncation()
        # What a text begins with is added elsewhere; and blanks belong to their tokens.
        self._backend.post_processor = processors.ByteLevel(trim_offsets=False)
        marks = [AddedToken(m, special=True, normalized=False) for m in (PICTURE, CUT)]
        self._backend.add_special_tokens(marks)
        self.picture: int = self._backend.token_to_id(PICTURE)
        unknown = unknown_token(tokenizer).values()
        self._splitting = frozenset({*tokenizer.added_tokens_decoder, self.picture} - set(unknown))
        hard, soft = self._cut(["", "a"], CUT), self._cut(["", "a"], _SOFT)
        self._soft = soft is not None and hard is not None and hard.ids != soft.ids
        self._local_ids = lru_cache(maxsize=10_000)(self.ids)

    def tokens(self, text: str) -> Tokens:
        """The tokens of a text with their places; cuts have none."""
        if CUT not in text:
            encoding = self._backend.encode(text, add_special_tokens=False)
            offsets = encoding.offsets
            return Tokens(encoding.ids, [o[0] for o in offsets], [o[1] for o in offsets])
        pieces = text.split(CUT)
        found = self._cut(pieces, _SOFT) if self._soft and _SOFT not in text else None
        found = found or self._cut(pieces, CUT)
        assert found is not None, "the mark is a token of its own"
        return found

    def _cut(self, pieces: Sequence[str], mark: str) -> Tokens | None:
        """The tokens of pieces with a cut between them, their places as if `CUT` stood there.

        None where `mark` melts into its neighbours.
        """
        encoding = self._backend.encode(mark.join(pieces), add_special_tokens=False)
        ends = list(itertools.accumulate(len(p) for p in pieces))
        places = [end + n * len(mark) for n, end in enumerate(ends[:-1])]
        tokens = Tokens([], [], [])
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            number = bisect.bisect_right(places, start) - 1
            behind = places[number] + len(mark) if number >= 0 else 0
            if start < behind:
                if end > behind:
                    return None
                continue
            if number + 1 < len(places) and end > places[number + 1]:
                return None
            moved = (number + 1) * (len(CUT) - len(mark))
            tokens.ids.append(token)
            tokens.starts.append(start + moved)
            tokens.ends.append(end + moved)
        return tokens

    def ids(self, text: str) -> list[int]:
        """The ids of a text."""
        return self.tokens(text).ids

    def is_torn(self, text: str, tokens: Tokens, place: int) -> bool:
        """Whether the ids before `place` are not those that `text` has when it ends there."""
        last = bisect.bisect_right(tokens.ends, place)
        if last < len(tokens.ids) and tokens.starts[last] < place:
            last += 1  # it stands for characters on both sides
        first = last
        # Added tokens split a text before anything else, so what lies before one has no say.
        while first > 0:
            first -= 1
            if tokens.ids[first] in self._splitting:
                break
        if first == last:
            return False
        local = text[tokens.starts[first] if first else 0 : place]
        return self._local_ids(local) != tokens.ids[first:last]


def cut_at(rendered: Rendered, places: Sequence[int]) -> Rendered:
    """The same conversation with cuts at these places, everything moved along."""

    def moved(position: int, *, starts: bool) -> int:
        before = sum(p < position or (starts and p == position) for p in places)
        return position + before * len(CUT)

    pieces = [rendered.text[a:b] for a, b in itertools.pairwise([0, *places, len(rendered.text)])]
    return replace(
        rendered,
        text=CUT.join(pieces),
        spans=tuple(
            None if s is None else (moved(s[0], starts=True), moved(s[1], starts=False))
            for s in rendered.spans
        ),
        starts=tuple(s if s < 0 else moved(s, starts=True) for s in rendered.starts),
    )
