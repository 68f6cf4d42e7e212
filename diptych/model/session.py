"""A chat about pictures that keeps its cache between turns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from diptych.data.pixels.image import decode, given
from diptych.data.sample import IMAGE_TOKEN, Image, Sample, Text, Turn
from diptych.data.text.working import split_working
from diptych.errors import SampleTooLong
from diptych.model import generate as generation
from diptych.model.speaker import Speaker


class ChatSession:
    """Turns of one conversation; pictures are encoded once, past tokens are never recomputed.

    Args:
        model: the model to talk to.
        image: a picture for the next question: path, bytes or PIL image.
        max_new_tokens, temperature, top_p, seed: how answers are drawn; greedy by default.
    """

    def __init__(
        self,
        model: Speaker,
        image: Any = None,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ):
        self.model = model
        self.settings = (temperature, top_p, seed)
        self.max_new_tokens = max_new_tokens
        self.reset()
        if image is not None:
            self.show(image)

    def reset(self) -> None:
        """Forget the conversation and its pictures."""
        self.working = ""
        self.turns: list[Turn] = []
        self._pending: list[Image] = []
        self._cache: Any = None
        self._cached_ids: list[int] = []
        self._picture_tokens: list[torch.Tensor] = []

    def show(self, image: Any) -> None:
        """Add a picture to the next question.

        Raises:
            ImageError: no such file, or no picture that can be read.
        """
        shown = given(image)
        # A bad picture is refused here, or every later question would fail because of it.
        decode(shown.data or b"", where=shown.path)
        self._pending.append(shown)

    def ask(self, question: str) -> str:
        """The whole answer; what the model wrote before it, where it works something out, is kept
        in `working`."""
        return "".join(self.stream(question))

    def stream(self, question: str) -> Iterator[str]:
        """The answer piece by piece, as it is generated; of a model that works something out before
        it, in one piece at the end.

        Raises:
            SampleTooLong: the conversation fills the language model's context.
        """
        mark = self.model.answer_after
        self.working = ""
        if mark is None:
            begun = False
            for piece in self._stream(question):
                piece = piece if begun else piece.lstrip()  # templates begin answers with a blank
                begun = begun or bool(piece)
                if piece:
                    yield piece
            return
        # Only the end tells which mark is the last.
        self.working, answer = split_working("".join(self._stream(question)), mark)
        if answer.strip():
            yield answer.strip()

    def _stream(self, question: str) -> Iterator[str]:
        model = self.model
        turn = Turn("user", (*self._pending, Text(question)))
        turns = [*self.turns, turn]
        encoded = model.chat_encoder.encode(Sample("chat", tuple(turns)), generation=True)
        self._encode_new(encoded)
        tokens: list[int] = []
        shown = ""
        for token in self._run(encoded):
            tokens.append(token)
            text = model.chat_encoder.decode(tokens)
            # Half of a multi-byte character decodes to the replacement mark: wait for the rest.
            if not text.endswith("�"):
                yield text[len(shown) :]
                shown = text
        text = model.chat_encoder.decode(tokens)
        if text[len(shown) :]:
            yield text[len(shown) :]
        self._pending = []
        self.turns = [*turns, Turn("assistant", (Text(text.strip()),))]

    def _encode_new(self, encoded: Any) -> None:
        new = encoded.images[len(self._picture_tokens) :]
        if new and self.model.preprocessing.tiles.share(len(encoded.images)) is not None:
            # One more shares the tiles of those before, which are cut anew.
            self._picture_tokens, new = [], encoded.images
            self._cache, self._cached_ids = None, []
        if new:
            from dataclasses import replace

            only_new = replace(encoded, images=new)
            self._picture_tokens += generation.encode_images(
                self.model, [only_new], lambda image: image.data or b""
            )

    @torch.no_grad()
    def _run(self, encoded: Any) -> Iterator[int]:
        model = self.model
        if model.language_model.is_encoder_decoder:
            for step in generation.steps(
                model, [encoded], self._picture_tokens, self.max_new_tokens, *self.settings
            ):
                if step[0] is not None:
                    yield step[0]
            return
        ids = list(encoded.ids)
        room = model.language_model.context_tokens - len(ids)
        if room < 1:
            raise SampleTooLong(
                f"the conversation has {len(ids)} tokens, the context "
                f"{model.language_model.context_tokens}",
                fix="start over (/reset)",
            )
        shared = 0
        for a, b in zip(ids, self._cached_ids, strict=False):
            if a != b:
                break
            shared += 1
        # At least one token must be read anew to have logits to draw from.
        shared = min(shared, len(ids) - 1)
        shared, before = _whole_pictures(ids, shared, encoded.tokens_of_images)
        if self._cache is None or shared == 0:
            from transformers import DynamicCache

            self._cache = DynamicCache(config=model.language_model.hf_config)
            shared = before = 0
        elif surplus := self._cache.get_seq_length() - shared:
            self._cache.crop(-surplus)
        decoder = generation.continue_causal(
            model, ids, self._picture_tokens[before:], self._cache, shared
        )
        self._cached_ids = ids
        chooser = generation.Chooser(*self.settings, model.device)
        drawn: list[int] = []
        for step in generation.run(model, decoder, chooser, min(self.max_new_tokens, room)):
            if step[0] is not None:
                drawn.append(step[0])
                yield step[0]
        self._cached_ids = (ids + drawn)[: self._cache.get_seq_length()]


def _whole_pictures(
    ids: Sequence[int], shared: int, tokens_of_images: Sequence[int]
) -> tuple[int, int]:
    """How much of `shared` first tokens can be kept without half a picture, and how many pictures
    stand in it."""
    places = [n for n, token in enumerate(ids) if token == IMAGE_TOKEN]
    end = 0
    for number, count in enumerate(tokens_of_images):
        first, end = places[end] if count else 0, end + count
        if count and places[end - 1] >= shared:
            return min(first, shared), number
    return shared, len(tokens_of_images)
