"""How many tokens a sample takes, for checks before training."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from diptych.data.chat import ChatEncoder
from diptych.data.sample import Sample
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

    def key(self) -> str:
        """Changes with the tokenizer, the template, its joints, or the tokens of a picture."""
        backend = getattr(self.encoder.tokenizer, "backend_tokenizer", None)
        vocabulary = backend.to_str() if backend else repr(self.encoder.tokenizer.get_vocab())
        encoder = self.encoder
        words = " ".join(encoder.answer_tokens)
        about = "\0".join(
            ("2", encoder.template or "", encoder.joint or "", words,
             str(encoder.tokens_per_image), vocabulary)
        )  # fmt: skip
        return hashlib.sha256(about.encode()).hexdigest()[:16]
