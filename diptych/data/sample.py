"""Sample: the one shape of a row, whatever file it came from.

A caption pair, a VQA row, a LLaVA conversation, an interleaved page and a text-only
instruction are all Samples. Pictures are references until a worker decodes them, so what
travels between processes is a path or undecoded bytes, never a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

ROLES = ("system", "user", "assistant")
IMAGE_TOKEN = -200
"""Stands among token ids where an image feature goes. Negative, so no tokenizer can produce it
and no text can bind to a picture."""


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of text, exactly as the row has it."""

    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """A picture by reference.

    Attributes:
        path: relative to the data set's image folder, or any URL that fsspec opens.
        data: the encoded bytes themselves (Parquet and tar rows); `path` then only names them.
        span: (offset, length) inside the file at `path` (a member of a tar shard), in bytes.
        size: width and height in pixels as it is decoded, where an index knows them.
    """

    path: str
    data: bytes | None = None
    span: tuple[int, int] | None = None
    size: tuple[int, int] | None = field(default=None, compare=False)


Part = Text | Image


@dataclass(frozen=True, slots=True)
class Turn:
    """What one speaker says: text and pictures in reading order.

    `learn` False marks an answer that is read and not learned (`weight: 0`).
    """

    role: str
    parts: tuple[Part, ...]
    learn: bool = True

    @property
    def text(self) -> str:
        """The turn's text without its pictures."""
        return "".join(p.text for p in self.parts if isinstance(p, Text))


@dataclass(frozen=True, slots=True)
class Sample:
    """One row.

    Attributes:
        id: unique within its data set.
        turns: the conversation; a bare caption is one assistant turn after an image-only user turn.
        source: where the row stands, `file:line` or `file#key`; every message about it says so.
        meta: everything else the row had, so that writing it back loses nothing. Keys that
            other rooms read: `kind` (question kind, for splits), `answers` (list of accepted
            answers), `image_id`, `question_id`.
    """

    id: str
    turns: tuple[Turn, ...]
    source: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    def images(self) -> Iterator[Image]:
        """All pictures in reading order."""
        for turn in self.turns:
            for part in turn.parts:
                if isinstance(part, Image):
                    yield part

    @property
    def answer(self) -> str:
        """Text of the last assistant turn, or the empty string."""
        for turn in reversed(self.turns):
            if turn.role == "assistant":
                return turn.text
        return ""

    @property
    def texts(self) -> list[str]:
        """All texts that are right for it: `meta["answers"]`, else its answer; none is blank."""
        answers = self.meta.get("answers")
        listed = answers if isinstance(answers, list) else []
        said = [t.strip() for t in listed if isinstance(t, str)] or [self.answer.strip()]
        return [t for t in said if t]

    @property
    def question(self) -> str:
        """What the user says, all turns of it."""
        return " ".join(t.text.strip() for t in self.turns if t.role == "user").strip()

    def without_answer(self) -> Sample:
        """The same sample cut before its last assistant turn: what a model is asked."""
        turns = self.turns
        for index in range(len(turns) - 1, -1, -1):
            if turns[index].role == "assistant":
                return replace(self, turns=turns[:index])
        return self

    def without_images(self) -> Sample:
        """The same sample with its pictures withheld: the blind control."""
        turns = tuple(
            replace(t, parts=tuple(p for p in t.parts if not isinstance(p, Image)))
            for t in self.turns
        )
        return replace(self, turns=turns)
