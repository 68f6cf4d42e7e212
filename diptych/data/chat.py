"""Conversations -> token ids, with every token's fate known.

The rendered conversation is tokenised as one text, by the tokenizer as it is: ids of training are
those of asking, and those that a server makes of the same conversation, whether the tokenizer works
on bytes, puts a blank before what it is given first (SentencePiece), or splits words otherwise. Two
things are added: pictures are marks that become `IMAGE_TOKEN`, and a reserved word that a person
typed (`<|im_end|>`) is cut in two, so that it is read as the characters that it is.
"""

from __future__ import annotations

import bisect
import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import Any

from diptych.data.batch import IMAGE_TOKEN
from diptych.data.chat_notes import notes, probe
from diptych.data.chat_template import (
    JOINTS_OF_TEMPLATES,
    TEMPLATES,
    ChatTemplate,
)
from diptych.data.joints import joined
from diptych.data.marked_tokenizer import (
    CUT,
    PICTURE,
    MarkedTokenizer,
    Tokens,
    any_of,
    cut_at,
    cut_words,
)
from diptych.data.plain_text import reserved_tokens
from diptych.data.sample import Image, Sample, Text, Turn, Video
from diptych.errors import ConfigError, EmptyConversation, ModelError

__all__ = ["TEMPLATES", "ChatEncoder", "Encoded", "Fate", "truncate"]


class Fate(IntEnum):
    """What becomes of a token."""

    TEMPLATE = 0
    PROMPT = 1
    IMAGE = 2
    TARGET = 3


@dataclass(frozen=True, slots=True)
class Encoded:
    """A sample as token ids.

    Attributes:
        ids: token ids, `IMAGE_TOKEN` for each image position.
        fates: one `Fate` per token; `TARGET` tokens are supervised.
        images: the pictures whose tokens stand in `ids`, in reading order.
        num_cut_tokens: tokens that truncation removed.
    """

    ids: tuple[int, ...]
    fates: tuple[Fate, ...]
    images: tuple[Image, ...]
    num_cut_tokens: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_targets(self) -> int:
        """Supervised tokens; the first token has nothing before it to be predicted from."""
        return sum(1 for f in self.fates[1:] if f is Fate.TARGET)

    def prefix_length(self) -> int:
        """Number of tokens up to and including the last image token; 0 without a picture."""
        for index in range(len(self.ids) - 1, -1, -1):
            if self.ids[index] == IMAGE_TOKEN:
                return index + 1
        return 0


@dataclass(frozen=True, slots=True)
class _Region:
    """Characters with one fate; `said` is where the words themselves begin and end."""

    start: int
    end: int
    fate: Fate
    said: tuple[int, int]
    role: str


@dataclass
class ChatEncoder:
    """Encodes Samples with one tokenizer and one template.

    Args:
        tokenizer: a Hugging Face tokenizer, backed by `tokenizers`.
        template: a name of `TEMPLATES`, a Jinja text, or None for the tokenizer's own
            (`chatml`-like models bring one; without one, `plain` is used).
        tokens_per_image: number of language-model tokens of one picture, known in advance.
        joint: how a picture joins its neighbours (`data/joints.py`); None is the template's way.
        answer_tokens: words that stay single tokens in what the assistant says, such as `<think>`
            or `<loc*>`, besides those that the template itself looks for in answers. In every other
            text they are plain characters.

    Raises:
        ConfigError: the template is unknown, or `answer_tokens` names no token.
    """

    tokenizer: Any
    template: str | None = None
    tokens_per_image: int = 0
    joint: str | None = None
    answer_tokens: Sequence[str] = ()
    _settings: dict[str, Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._settings = {
            "tokenizer": self.tokenizer,
            "template": self.template,
            "tokens_per_image": self.tokens_per_image,
            "joint": self.joint,
            "answer_tokens": tuple(self.answer_tokens),
        }
        if self.template is None:
            own = getattr(self.tokenizer, "chat_template", None)
            self.template = own or TEMPLATES["plain"]
        self.template = TEMPLATES.get(self.template, self.template)
        self.joint = self.joint or JOINTS_OF_TEMPLATES.get(self.template, "line")
        if "{" not in self.template:
            raise ConfigError(
                f"there is no chat template '{self.template}'",
                fix=f"available: {', '.join(TEMPLATES)}, a Jinja text, or null for the "
                "tokenizer's own",
            )
        self.chat_template = ChatTemplate(self.tokenizer, self.template)
        self._reserved = reserved_tokens(self.tokenizer)
        # The unknown token stands for characters, whoever wrote them.
        self._reserved_ids = frozenset(self._reserved.values()) - {self.tokenizer.unk_token_id}
        self._named = self._named_words()

    def __getstate__(self) -> dict[str, Any]:
        # Sent to decode workers; the copy of the tokenizer is made anew there.
        return self._settings

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def encode(self, sample: Sample, *, generation: bool = False) -> Encoded:
        """Token ids and fates of a sample.

        Args:
            sample: turns in order. With `generation`, the last turn is the user's and the
                template's invitation to answer is added.

        Raises:
            EmptyConversation: the sample has no turns.
            ConfigError: the template refuses these roles, or drops or rewrites a part.
            ModelError: a text becomes a special token whatever is done, or the turn shows a video.
        """
        if not sample.turns:
            raise EmptyConversation("the sample has no turns", where=sample.source or sample.id)
        encoded = self._encoded(sample.turns, generation, armoured=False)
        if isinstance(encoded, Encoded):
            return encoded
        # A normalizer can write a reserved word that was not there (full-width letters).
        encoded = self._encoded(sample.turns, generation, armoured=True)
        if isinstance(encoded, Encoded):
            return encoded
        name = self.tokenizer.convert_ids_to_tokens(encoded)
        raise ModelError(f"plain text became the special token {name!r}", where=sample.source)

    def stop_ids(self) -> frozenset[int]:
        """Ids that end an answer: the end-of-turn mark of the template and the tokenizer's end."""
        ends = {self._end_mark} - {None}
        if self.tokenizer.eos_token_id is not None:
            ends.add(self.tokenizer.eos_token_id)
        return frozenset(i for i in ends if i is not None)

    def decode(self, ids: Sequence[int]) -> str:
        """The answer that generated ids are: without special tokens, but for those that answers
        may hold, and without what the template itself puts before every answer."""
        shown = [i for i in ids if i not in self._hidden_ids]
        text = self.tokenizer.decode(shown, skip_special_tokens=False)
        lead, said = self.lead.strip(), text.lstrip()
        if not lead:
            return text
        # Half of it, in a stream, is not the answer's beginning either.
        return "" if lead.startswith(said) else said.removeprefix(lead).lstrip()

    @cached_property
    def lead(self) -> str:
        """What the template writes between its invitation and the last answer, such as an empty
        thinking block: it is learned, and so it is generated."""
        layout = self.chat_template.layout(probe("b"), generation=False)
        span = layout.spans[1]
        return layout.text[layout.starts[1] : span[0]] if span else ""

    @cached_property
    def begin(self) -> tuple[int, ...]:
        """Ids that the tokenizer itself puts before a text, where the template does not."""
        bare = self.tokenizer.encode("a", add_special_tokens=False)
        framed = self.tokenizer.encode("a", add_special_tokens=True)
        for start in range(len(framed) - len(bare) + 1):
            if framed[start : start + len(bare)] == bare:
                return tuple(framed[:start])
        return ()

    @cached_property
    def adds_begin(self) -> bool:
        """Whether `begin` stands before a conversation: not where the template writes it."""
        bos = self.tokenizer.bos_token
        text = self.chat_template.render(probe("b"), generation=False)
        return bool(self.begin) and not (bos and text.startswith(bos))

    @cached_property
    def begin_can_be_written(self) -> bool:
        """Whether the beginning token written in the text gives the same ids as added before it.

        After a token that is written, a SentencePiece tokenizer puts no blank before the first
        word: `<s>USER` is not `<s>` and `USER`.
        """
        text = self.chat_template.render(probe("b"), generation=False)
        bos, ids = self.tokenizer.bos_token, self._marked.ids
        return bos is not None and ids(f"{bos}{text}") == [*self.begin, *ids(text)]

    def notes(self) -> list[str]:
        """Where this template makes training and asking differ, in words; mostly nothing."""
        return notes(self.chat_template, self.lead, ends=self._end_mark is not None)

    def reserved_words(self, text: str) -> list[tuple[str, bool]]:
        """Reserved words in an answer, and whether each stays one token there."""
        found = any_of(self._reserved).findall(text) if self._reserved else []
        return [(word, word in self._allowed) for word in found]

    # -- how it is done ---------------------------------------------------------------------

    @cached_property
    def _marked(self) -> MarkedTokenizer:
        return MarkedTokenizer(self.tokenizer)

    @cached_property
    def _special(self) -> frozenset[str]:
        return frozenset(str(t) for t in self.tokenizer.added_tokens_decoder.values() if t.special)

    @cached_property
    def _hidden_ids(self) -> frozenset[int]:
        """Special tokens that are no part of an answer."""
        special = {i for w, i in self._reserved.items() if w in self._special}
        return frozenset(special.union(self.tokenizer.all_special_ids)) - self._allowed_ids

    def _named_words(self) -> frozenset[str]:
        """Reserved words that the recipe names."""
        named: set[str] = set()
        for pattern in self.answer_tokens:
            matching = {
                w for w in self._reserved if w == pattern or fnmatch.fnmatchcase(w, pattern)
            }
            if not matching:
                raise ConfigError(
                    f"'{pattern}' is no token of the tokenizer",
                    where="model.language_model.answer_tokens",
                    fix="name added tokens of the tokenizer, such as <think> or <loc*>",
                )
            named |= matching
        return frozenset(named)

    @cached_property
    def _allowed(self) -> frozenset[str]:
        """Reserved words that may be tokens in answers: never those that frame a turn."""
        own = set(self.chat_template.words) & self._reserved.keys()
        # A word that is no special token and that the template knows is meant to be said.
        text = self.chat_template.text
        own |= {w for w in self._reserved if w not in self._special and w in text}
        frame = {self.tokenizer.bos_token, self.tokenizer.eos_token, self.tokenizer.pad_token}
        around = self._around_turns
        frame |= {w for w in self._named | own if w in around}
        return (self._named | own) - frame

    @cached_property
    def _around_turns(self) -> str:
        """What the template writes around what is said, without what is learned before answers."""
        layout = self.chat_template.layout(probe("b", "c"), generation=False)
        pieces, end = [], 0
        for span, start in zip(layout.spans, layout.starts, strict=True):
            if span is not None:
                pieces.append(layout.text[end : start if start >= 0 else span[0]])
                end = span[1]
        return "\0".join([*pieces, layout.text[end:]])

    @cached_property
    def _allowed_ids(self) -> frozenset[int]:
        return frozenset(self._reserved[word] for word in self._allowed)

    @cached_property
    def _in_questions(self) -> re.Pattern[str]:
        return any_of({*self._reserved, PICTURE, CUT})

    @cached_property
    def _in_answers(self) -> re.Pattern[str]:
        return any_of({*self._reserved, PICTURE, CUT} - self._allowed)

    def _encoded(self, turns: Sequence[Turn], generation: bool, *, armoured: bool) -> Encoded | int:
        """The encoded turns, or the id of a special token that a person's text became."""
        images: list[Image] = []
        messages = [
            {"role": turn.role, "content": self._content(turn, images, armoured)} for turn in turns
        ]
        rendered = self.chat_template.layout(messages, generation=generation)
        tokens = self._marked.tokens(rendered.text)
        is_torn = self._marked.is_torn
        if torn := [s for s in rendered.starts if s > 0 and is_torn(rendered.text, tokens, s)]:
            rendered = cut_at(rendered, torn)
            tokens = self._marked.tokens(rendered.text)
        regions = [
            self._region(turn, span, start)
            for turn, span, start in zip(turns, rendered.spans, rendered.starts, strict=True)
            if span is not None
        ]
        fates = self._fates(tokens, regions)
        if isinstance(fates, int):
            return fates
        return self._assembled(tokens, fates, images)

    def _content(self, turn: Turn, images: list[Image], armoured: bool) -> str:
        """What a turn says, pictures as marks and reserved words cut in two."""
        pattern = self._in_answers if turn.role == "assistant" else self._in_questions
        for part in turn.parts:
            if isinstance(part, Video):
                raise ModelError(f"the model reads no videos, and this turn shows '{part.path}'")
        pieces = []
        parts = [p for p in turn.parts if isinstance(p, Text | Image)]
        for part in joined(parts, self.joint or "line"):
            if isinstance(part, Image):
                images.append(part)
                pieces.append(PICTURE)
            elif armoured:
                pieces.append(CUT.join(part.text))
            else:
                pieces.append(cut_words(part.text, pattern))
        return "".join(pieces)

    def _region(self, turn: Turn, span: tuple[int, int], start: int) -> _Region:
        learned = turn.role == "assistant"
        fate = Fate.TARGET if learned and turn.learn else Fate.PROMPT
        return _Region(start if learned else span[0], span[1], fate, span, turn.role)

    def _fates(self, tokens: Tokens, regions: Sequence[_Region]) -> list[Fate] | int:
        """One fate per token; the id of a special token that stands inside a person's text."""
        ids = tokens.ids
        fates = [Fate.TEMPLATE] * len(ids)
        for number, region in enumerate(regions):
            first = bisect.bisect_right(tokens.ends, region.start)
            last = bisect.bisect_left(tokens.starts, region.end)
            if region.fate is Fate.TARGET and first < last and tokens.starts[first] < region.start:
                first += 1  # an unknown word on both sides of the place where asking ends
            fates[first:last] = [region.fate] * (last - first)
            if not self._reserved_ids.isdisjoint(ids[first:last]):
                allowed = self._allowed_ids if region.role == "assistant" else frozenset()
                for place in range(first, last):
                    inside = tokens.starts[place] >= region.said[0]
                    if inside and ids[place] in self._reserved_ids - allowed:
                        return ids[place]
            if region.fate is Fate.TARGET:
                following = regions[number + 1].start if number + 1 < len(regions) else None
                end = len(ids) if following is None else bisect.bisect_right(tokens.ends, following)
                mark = next((n for n in range(last, end) if ids[n] in self._reserved_ids), last - 1)
                fates[last : mark + 1] = [Fate.TARGET] * (mark + 1 - last)
        return fates

    def _assembled(self, tokens: Tokens, fates: list[Fate], images: list[Image]) -> Encoded:
        picture, cut = self._marked.picture, self._marked.cut
        begin = list(self.begin) if self.adds_begin else []
        ids: list[int] = []
        kept: list[Fate] = []
        if self.joint != "begin":
            ids, begin = begin, []
            kept = [Fate.TEMPLATE] * len(ids)
        end = 0
        marks = [n for n, token in enumerate(tokens.ids) if token in (picture, cut)]
        for place in (*marks, len(tokens.ids)):
            if place > end:
                ids += begin
                kept += [Fate.TEMPLATE] * len(begin)
                begin = []
                ids += tokens.ids[end:place]
                kept += fates[end:place]
            if place < len(tokens.ids) and tokens.ids[place] == picture:
                ids += [IMAGE_TOKEN] * self.tokens_per_image
                kept += [Fate.IMAGE] * self.tokens_per_image
            end = place + 1
        ids += begin
        kept += [Fate.TEMPLATE] * len(begin)
        return Encoded(tuple(ids), tuple(kept), tuple(images))

    @cached_property
    def _end_mark(self) -> int | None:
        """The reserved token that the template ends an answer with."""
        asked = Sample("", (Turn("user", (Text("a"),)), Turn("assistant", (Text("b"),))))
        encoded = self.encode(asked)
        targets = [i for i, f in zip(encoded.ids, encoded.fates, strict=True) if f is Fate.TARGET]
        ends = [i for i in targets[-1:] if i in self._reserved_ids]
        return ends[0] if ends else None


def truncate(encoded: Encoded, limit: int) -> Encoded:
    """Cut the end so that at most `limit` tokens stay; never through a picture's tokens.

    Raises:
        ModelError: even the part up to the last picture is longer than `limit`.
    """
    if len(encoded) <= limit:
        return encoded
    if encoded.prefix_length() > limit:
        raise ModelError(
            f"the pictures alone need {encoded.prefix_length()} tokens, the context has {limit}"
        )
    return Encoded(encoded.ids[:limit], encoded.fates[:limit], encoded.images, len(encoded) - limit)
