"""Conversations -> token ids, with every token's fate known.

The rendered conversation is tokenised as one text, by the tokenizer as it is: ids of training are
those of asking, and those that a server makes of the same conversation, whether the tokenizer works
on bytes, puts a blank before what it is given first (SentencePiece), or splits words otherwise. Two
things are added: pictures are marks that become `IMAGE_TOKEN`, and a reserved word that a person
typed (`<|im_end|>`) is cut in two, so that it is read as the characters that it is.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import cached_property
from typing import Any, Protocol, cast

from diptych.data.sample import IMAGE_TOKEN, Image, Sample, Text, Turn
from diptych.data.text.chat_notes import notes, probe
from diptych.data.text.chat_template import JOINTS_OF_TEMPLATES, TEMPLATES, ChatTemplate
from diptych.data.text.joints import joined
from diptych.data.text.marked_tokenizer import CUT, PICTURE, MarkedTokenizer, Tokens, cut_at
from diptych.data.text.plain_text import cut_words
from diptych.data.text.reserved_words import ReservedWords
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
        tokens_of_images: how many of them each picture has.
        num_tiles: tiles of all pictures, which an encoder looks at.
        num_coarser: pictures that a budget of tiles made coarser.
    """

    ids: tuple[int, ...]
    fates: tuple[Fate, ...]
    images: tuple[Image, ...]
    num_cut_tokens: int = 0
    tokens_of_images: tuple[int, ...] = ()
    num_tiles: int = 0
    num_coarser: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_targets(self) -> int:
        """Supervised tokens; the first token has nothing before it to be predicted from."""
        return sum(1 for f in self.fates[1:] if f is Fate.TARGET)

    def prefix_length(self) -> int:
        """Number of tokens up to and including the last of a picture, marks around it too; 0
        without a picture."""
        for index in range(len(self.ids) - 1, -1, -1):
            if self.fates[index] is Fate.IMAGE:
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
    turn: int


class Arranged(Protocol):
    """Tiles and tokens of a sample's pictures, by their sizes alone (`model/arrangement.py`)."""

    def plans(self, images: Sequence[Image]) -> Sequence[Any]: ...

    def num_tokens(self, tiles: Any) -> int: ...

    def is_coarser(self, tiles: Any) -> bool: ...


@dataclass
class ChatEncoder:
    """Encodes Samples with one tokenizer and one template.

    Args:
        tokenizer: a Hugging Face tokenizer, backed by `tokenizers`.
        template: a name of `TEMPLATES`, a Jinja text, or None for the tokenizer's own
            (`chatml`-like models bring one; without one, `plain` is used).
        arrangement: how many tokens a picture has, known before it is decoded; None gives it none.
        joint: how a picture joins its neighbours (`text/joints.py`); None is the template's way.
        answer_tokens: words that stay single tokens in what the assistant says, such as `<think>`
            or `<loc*>`, besides those that the template itself looks for in answers. In every other
            text they are plain characters.
        picture_marks: tokens before and behind every picture.

    Raises:
        ConfigError: the template is unknown, or `answer_tokens` or `picture_marks` names no token.
    """

    tokenizer: Any
    template: str | None = None
    arrangement: Arranged | None = None
    joint: str | None = None
    answer_tokens: Sequence[str] = ()
    picture_marks: tuple[str, str] | None = None
    _settings: dict[str, Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._settings = {
            "tokenizer": self.tokenizer,
            "template": self.template,
            "arrangement": self.arrangement,
            "joint": self.joint,
            "answer_tokens": tuple(self.answer_tokens),
            "picture_marks": self.picture_marks,
        }
        self._before, self._behind = self._marks_around()
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
        self._words = ReservedWords(self.tokenizer, self.chat_template, self.answer_tokens)

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
            ModelError: a text becomes a special token whatever is done.
        """
        if not sample.turns:
            raise EmptyConversation("the sample has no turns", where=sample.source or sample.id)
        armoured: set[int] = set()
        while not isinstance(found := self._encoded(sample.turns, generation, armoured), Encoded):
            # A normalizer can write a reserved word that was not there (full-width letters): that
            # turn is read character by character.
            token, turn = found
            if turn in armoured:
                name = self.tokenizer.convert_ids_to_tokens(token)
                raise ModelError(
                    f"plain text became the special token {name!r}", where=sample.source
                )
            armoured.add(turn)
        return found

    def stop_ids(self) -> frozenset[int]:
        """Ids that end an answer: the end-of-turn mark of the template and the tokenizer's end."""
        ends = {self._end_mark} - {None}
        if self.tokenizer.eos_token_id is not None:
            ends.add(self.tokenizer.eos_token_id)
        return frozenset(i for i in ends if i is not None)

    def decode(self, ids: Sequence[int]) -> str:
        """The answer that generated ids are: without special tokens, but for those that answers
        may hold, and without what the template itself puts before every answer."""
        lead = self._lead_ids
        if lead and tuple(ids[: len(lead)]) == lead[: len(ids)]:
            ids = ids[len(lead) :]  # half of it, in a stream, is no answer's beginning either
        shown = [i for i in ids if i not in self._words.hidden_ids]
        text = self.tokenizer.decode(shown, skip_special_tokens=False)
        return text.lstrip() if lead else text

    @cached_property
    def lead(self) -> str:
        """What the template writes between its invitation and the last answer, such as an empty
        thinking block: it is learned, and so it is generated."""
        layout = self.chat_template.layout(probe("b"), generation=False)
        span = layout.spans[1]
        return layout.text[layout.starts[1] : span[0]] if span else ""

    @cached_property
    def _lead_ids(self) -> tuple[int, ...]:
        """What is generated before every answer; nothing where the lead is blank."""
        if not self.lead.strip():
            return ()
        layout = self.chat_template.layout(probe("b"), generation=False)
        span, start = layout.spans[1], layout.starts[1]
        tokens = self._marked.tokens(layout.text)
        first = bisect.bisect_right(tokens.ends, start)
        last = bisect.bisect_left(tokens.starts, span[0] if span else start)
        return tuple(tokens.ids[first:last])

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
        return self._begins(self.chat_template.render(probe("b"), generation=False))

    def _begins(self, text: str) -> bool:
        bos = self.tokenizer.bos_token
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
        return self._words.in_text(text)

    # -- how it is done ---------------------------------------------------------------------

    @cached_property
    def _marked(self) -> MarkedTokenizer:
        return MarkedTokenizer(self.tokenizer)

    def _encoded(
        self, turns: Sequence[Turn], generation: bool, armoured: set[int]
    ) -> Encoded | tuple[int, int]:
        """The encoded turns, or a special token that a person's text became, and in which turn."""
        images: list[Image] = []
        messages = [
            {"role": turn.role, "content": self._content(turn, images, number in armoured)}
            for number, turn in enumerate(turns)
        ]
        rendered = self.chat_template.layout(messages, generation=generation)
        tokens = self._marked.tokens(rendered.text)
        is_torn = self._marked.is_torn
        if torn := [s for s in rendered.starts if s > 0 and is_torn(rendered.text, tokens, s)]:
            rendered = cut_at(rendered, torn)
            tokens = self._marked.tokens(rendered.text)
        regions = [
            self._region(number, turns[number], span, start)
            for number, (span, start) in enumerate(
                zip(rendered.spans, rendered.starts, strict=True)
            )
            if span is not None
        ]
        fates = self._fates(tokens, regions)
        if isinstance(fates, tuple):
            return fates
        return self._assembled(tokens, fates, images, begins=self._begins(rendered.text))

    def _content(self, turn: Turn, images: list[Image], armoured: bool) -> str:
        """What a turn says, pictures as marks and reserved words cut in two."""
        pattern = self._words.in_answers if turn.role == "assistant" else self._words.in_questions
        pieces = []
        # Texts that follow each other are one: a reserved word may begin in the first of them.
        for shows, group in itertools.groupby(
            joined(turn.parts, self.joint or "line"), key=lambda part: isinstance(part, Image)
        ):
            if shows:
                for image in group:
                    images.append(cast(Image, image))
                    pieces.append(PICTURE)
                continue
            text = "".join(cast(Text, part).text for part in group)
            pieces.append(CUT.join(text if armoured else cut_words(text, pattern)))
        return "".join(pieces)

    def _marks_around(self) -> tuple[list[int], list[int]]:
        """Ids before and behind every picture."""
        found = []
        for mark in self.picture_marks or ():
            number = self.tokenizer.added_tokens_encoder.get(mark)
            if number is None:
                raise ConfigError(
                    f"the tokenizer has no token '{mark}' to put beside a picture",
                    where="model.language_model.picture_marks",
                    fix="name two of its added tokens, such as <img> and </img>",
                )
            found.append([int(number)])
        return (found[0], found[1]) if found else ([], [])

    def _region(self, number: int, turn: Turn, span: tuple[int, int], start: int) -> _Region:
        learned = turn.role == "assistant"
        fate = Fate.TARGET if learned and turn.learn else Fate.PROMPT
        return _Region(start if learned else span[0], span[1], fate, span, turn.role, number)

    def _fates(self, tokens: Tokens, regions: Sequence[_Region]) -> list[Fate] | tuple[int, int]:
        """One fate per token; a special token that stands inside a person's text, and its turn."""
        ids = tokens.ids
        fates = [Fate.TEMPLATE] * len(ids)
        for number, region in enumerate(regions):
            first = bisect.bisect_right(tokens.ends, region.start)
            last = bisect.bisect_left(tokens.starts, region.end)
            if region.fate is Fate.TARGET and first < last and tokens.starts[first] < region.start:
                first += 1  # an unknown word on both sides of the place where asking ends
            fates[first:last] = [region.fate] * (last - first)
            if not self._words.ids.isdisjoint(ids[first:last]):
                allowed = self._words.allowed_ids if region.role == "assistant" else frozenset()
                for place in range(first, last):
                    # A mark of the template's may take the blanks before it (`lstrip`).
                    inside = (
                        tokens.starts[place] >= region.said[0]
                        and tokens.ends[place] <= region.said[1]
                    )
                    if inside and ids[place] in self._words.ids - allowed:
                        return ids[place], region.turn
            if region.fate is Fate.TARGET:
                following = regions[number + 1].start if number + 1 < len(regions) else None
                end = len(ids) if following is None else bisect.bisect_right(tokens.ends, following)
                ends = self._words.ids - self._words.allowed_ids
                if first < last and tokens.ends[last - 1] > region.end and ids[last - 1] in ends:
                    continue  # the end mark itself, with a blank of the answer's
                mark = next((n for n in range(last, end) if ids[n] in ends), last - 1)
                fates[last : mark + 1] = [Fate.TARGET] * (mark + 1 - last)
        return fates

    def _assembled(
        self, tokens: Tokens, fates: list[Fate], images: list[Image], *, begins: bool
    ) -> Encoded:
        picture = self._marked.picture
        begin = list(self.begin) if begins else []
        ids: list[int] = []
        kept: list[Fate] = []
        if self.joint != "begin":
            ids, begin = begin, []
            kept = [Fate.TEMPLATE] * len(ids)
        end = 0
        arranged = self.arrangement
        plans = arranged.plans(images) if arranged else []
        counts = [arranged.num_tokens(p) for p in plans] if arranged else [0] * len(images)
        shown: list[int] = []
        marks = [n for n, token in enumerate(tokens.ids) if token == picture]
        for place in (*marks, len(tokens.ids)):
            if place > end:
                ids += begin
                kept += [Fate.TEMPLATE] * len(begin)
                begin = []
                ids += tokens.ids[end:place]
                kept += fates[end:place]
            if place < len(tokens.ids):
                own = [*self._before, *[IMAGE_TOKEN] * counts[len(shown)], *self._behind]
                ids += own
                kept += [Fate.IMAGE] * len(own)
                shown.append(place)
            end = place + 1
        ids += begin
        kept += [Fate.TEMPLATE] * len(begin)
        coarser = sum(arranged.is_coarser(p) for p in plans) if arranged else 0
        return Encoded(
            tuple(ids),
            tuple(kept),
            tuple(images),
            tokens_of_images=tuple(counts),
            num_tiles=sum(map(len, plans)),
            num_coarser=coarser,
        )

    @cached_property
    def _end_mark(self) -> int | None:
        """The reserved token that the template ends an answer with."""
        asked = Sample("", (Turn("user", (Text("a"),)), Turn("assistant", (Text("b"),))))
        encoded = self.encode(asked)
        targets = [i for i, f in zip(encoded.ids, encoded.fates, strict=True) if f is Fate.TARGET]
        ends = [i for i in targets[-1:] if i in self._words.ids]
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
    return replace(
        encoded,
        ids=encoded.ids[:limit],
        fates=encoded.fates[:limit],
        num_cut_tokens=len(encoded) - limit,
    )
