"""Reserved words: single tokens of a tokenizer, and who may say them.

In what a person wrote they are plain characters, always. In answers that are learned some may
stay tokens: those that the recipe names, those that the chat template looks for in answers
(`</think>`), and ordinary added tokens that it writes. Never those that frame a turn.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from diptych.data.text.chat_notes import probe
from diptych.data.text.chat_template import ChatTemplate
from diptych.data.text.marked_tokenizer import CUT, PICTURE
from diptych.data.text.plain_text import any_of, reserved_tokens, unknown_token
from diptych.errors import ConfigError


class ReservedWords:
    """The reserved words of one tokenizer under one template.

    Args:
        named: words, or patterns such as `<loc*>`, that answers may hold as tokens.

    Attributes:
        ids: of all of them, without the unknown token, which stands for characters.

    Raises:
        ConfigError: `named` has something that is no token of the tokenizer.
    """

    def __init__(self, tokenizer: Any, template: ChatTemplate, named: Sequence[str]):
        self._tokenizer = tokenizer
        self._template = template
        self._all = reserved_tokens(tokenizer)
        self._special = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
        self.ids = frozenset(self._all.values()) - set(unknown_token(tokenizer).values())
        self._patterns = tuple(named)
        self._named: set[str] = set()
        for pattern in named:
            matching = {w for w in self._all if w == pattern or fnmatch.fnmatchcase(w, pattern)}
            if not matching:
                raise ConfigError(
                    f"'{pattern}' is no token of the tokenizer",
                    where="model.language_model.answer_tokens",
                    fix="name added tokens of the tokenizer, such as <think> or <loc*>",
                )
            self._named |= matching

    @cached_property
    def allowed(self) -> frozenset[str]:
        """Those that may be tokens in answers.

        Raises:
            ConfigError: one that is named frames every turn.
        """
        own = set(self._template.words) & self._all.keys()
        # A word that is no special token and that the template knows is meant to be said.
        own |= {w for w in self._all if w not in self._special and w in self._template.text}
        tokenizer, around = self._tokenizer, self._around_turns
        frame = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token}
        frame |= {w for w in self._named | own if w in around}
        if said := [w for w in self._patterns if w in frame]:
            raise ConfigError(
                f"'{said[0]}' frames every turn, so it cannot be said",
                where="model.language_model.answer_tokens",
                fix="leave it out",
            )
        return frozenset((self._named | own) - frame)

    @cached_property
    def _around_turns(self) -> str:
        """What the template writes around what is said, without what is learned before answers."""
        layout = self._template.layout(probe("b", "c"), generation=False)
        pieces, end = [], 0
        for span, start in zip(layout.spans, layout.starts, strict=True):
            if span is not None:
                pieces.append(layout.text[end : start if start >= 0 else span[0]])
                end = span[1]
        return "\0".join([*pieces, layout.text[end:]])

    @cached_property
    def allowed_ids(self) -> frozenset[int]:
        """Ids of `allowed`."""
        return frozenset(self._all[word] for word in self.allowed)

    @cached_property
    def hidden_ids(self) -> frozenset[int]:
        """Special tokens that are no part of an answer."""
        special = {i for w, i in self._all.items() if w in self._special}
        return frozenset(special.union(self._tokenizer.all_special_ids)) - self.allowed_ids

    @cached_property
    def in_questions(self) -> re.Pattern[str]:
        """Finds what is cut in questions: all of them, and the encoder's own marks."""
        return any_of({*self._all, PICTURE, CUT})

    @cached_property
    def in_answers(self) -> re.Pattern[str]:
        """Finds what is cut in answers."""
        return any_of({*self._all, PICTURE, CUT} - self.allowed)

    def in_text(self, text: str) -> list[tuple[str, bool]]:
        """Those in an answer, and whether each is a token there."""
        found = any_of(self._all).findall(text) if self._all else []
        return [(word, word in self.allowed) for word in found]
