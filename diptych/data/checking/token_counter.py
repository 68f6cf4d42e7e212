"""How many tokens a sample takes, and what a tokenizer makes of its words, before training."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from diptych.data.sample import Sample
from diptych.data.text.chat import ChatEncoder
from diptych.data.text.plain_text import TextTokens
from diptych.errors import ConversationError, DataError, DiptychError


@dataclass
class TokenCounter:
    """Sample -> (tokens, supervised tokens); picklable, so that workers can count."""

    encoder: ChatEncoder

    def __call__(self, sample: Sample) -> tuple[int, int]:
        try:
            encoded = self.encoder.encode(sample)
        except DataError:
            raise
        except DiptychError as error:
            # A template that refuses the roles, a video: this row cannot be learned from.
            raise ConversationError(error.what, where=error.where, fix=error.fix) from error
        return len(encoded), encoded.num_targets

    def reserved(self, sample: Sample) -> list[tuple[str, bool]]:
        """Reserved words in its answers, and whether each stays one token there."""
        said = (t for t in sample.turns if t.role == "assistant")
        return [found for turn in said for found in self.encoder.reserved_words(turn.text)]

    def notes(self) -> list[str]:
        """Where the chat template makes training and asking differ."""
        return self.encoder.notes()

    def key(self) -> str:
        """Changes with the tokenizer, the template, its joints, or the tokens of a picture."""
        backend = getattr(self.encoder.tokenizer, "backend_tokenizer", None)
        vocabulary = backend.to_str() if backend else repr(self.encoder.tokenizer.get_vocab())
        encoder = self.encoder
        words = " ".join(encoder.answer_tokens)
        about = "\0".join(
            ("3", encoder.template or "", encoder.joint or "", words,
             repr(encoder.arrangement), vocabulary)
        )  # fmt: skip
        return hashlib.sha256(about.encode()).hexdigest()[:16]


@dataclass
class TextCounter:
    """Sample -> (tokens, 0, tokens cut off), for models that read one text and learn no answers."""

    texts: TextTokens

    def __call__(self, sample: Sample) -> tuple[int, int, int]:
        ids, num_cut = self.texts.ids(sample.answer.strip())
        return len(ids), 0, num_cut

    def reserved(self, sample: Sample) -> list[tuple[str, bool]]:
        """None: every text is plain."""
        return []

    def notes(self) -> list[str]:
        """None: there is no template."""
        return []
