"""BLIP for questions: an image encoder, a reader of questions, a writer of answers.

Shapes: n questions, N image tokens, C encoder width, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from diptych.data.batching.batch import Batch
from diptych.data.batching.chunks import in_chunks
from diptych.data.sample import Image, Sample
from diptych.data.text.plain_text import TextTokens
from diptych.model import text_mixture as text_mixtures
from diptych.model import vision_encoder as vision_encoders
from diptych.model.architecture import ArchitectureConfig, Model
from diptych.model.precision import in_its_precision
from diptych.model.question_text import QuestionText
from diptych.model.text_mixture import TextMixtureConfig
from diptych.model.vision_encoder import VisionEncoder


class AnswererConfig(ArchitectureConfig):
    """What an answerer is composed of."""

    parts: ClassVar[tuple[str, ...]] = ("vision_encoder", "text")
    text_part: ClassVar[str] = "text"

    name: str = "answerer"
    """File stem of the architecture."""
    text: TextMixtureConfig
    """Reader and writer, which start from this and then go their own ways."""

    def compose(self, tokenizer: Any = None) -> Answerer:
        encoder = vision_encoders.build(self.vision_encoder)
        text = QuestionText(text_mixtures.build(self.text, encoder.dim, tokenizer))
        config = self.model_copy(update={"vision_encoder": encoder.config})
        return Answerer(config, encoder, text)


Config = AnswererConfig


class Answerer(Model):
    """Answers to questions about a picture, written or chosen.

    Parity: tests/parity/test_hf_blip_vqa.py, against BlipForQuestionAnswering.
    """

    text: QuestionText
    can = ("answer",)
    represents = ("image", "multimodal")
    card_tag = "visual-question-answering"
    card_usage = (
        'model = diptych.load("path/to/this/folder")\n'
        'print(model.ask(["picture.png"], ["How many birds are there?"]))'
    )

    def __init__(self, config: AnswererConfig, vision_encoder: VisionEncoder, text: QuestionText):
        super().__init__()
        self.config = config
        self.vision_encoder = vision_encoder
        self.text = text

    @cached_property
    def text_tokens(self) -> TextTokens:
        """What turns texts into ids."""
        return self.text.tokens()

    def question_states(self, batch: Batch) -> Tensor:
        """What the reader makes of a batch's questions [n, T, D]."""
        features = batch.features
        if features is None:
            assert batch.pixel_values is not None, "questions have pictures"
            features = self.encode_pixels(batch.pixel_values)
        assert batch.encoder_ids is not None and batch.encoder_mask is not None
        return self.text.understand(batch.encoder_ids, batch.encoder_mask, features)

    def represent(
        self, what: str, batch: Batch, *, space: str, layer: int = -1
    ) -> tuple[Tensor, Tensor | None]:
        """Encoder features, or the reader's states of a text about the picture; see `Model`."""
        del layer
        self._needs_states(what, space)
        assert batch.pixel_values is not None, "pictures are prepared"
        features = self.encode_pixels(batch.pixel_values)
        if what == "image":
            return features, None
        ids, mask = batch.input_ids, batch.segment_ids
        return self.text.understand(ids, mask, features), mask

    # -- asking -----------------------------------------------------------------------------

    @in_its_precision
    def ask(
        self,
        images: Sequence[Any],
        questions: Sequence[str],
        *,
        max_new_tokens: int = 10,
        num_beams: int = 3,
    ) -> list[str]:
        """An answer for each picture (path, bytes or PIL) and its question."""
        found: list[str] = []
        for chunk in in_chunks(list(zip(images, questions, strict=True)), 32):
            shown, asked = zip(*chunk, strict=True)
            states, mask = self._understood(list(shown), asked)
            found += self.text.written(
                states, mask, max_new_tokens=max_new_tokens, num_beams=num_beams
            )
        return found

    @in_its_precision
    def generate(
        self,
        samples: Sequence[Sample],
        *,
        max_new_tokens: int = 10,
        images: Callable[[Image], bytes] | None = None,
        num_beams: int = 3,
    ) -> list[str]:
        """Answers to samples, for evaluation; those without a picture are answered blind."""
        found: dict[int, str] = {}
        for rows, states, mask in self._groups(samples, images):
            texts = self.text.written(
                states, mask, max_new_tokens=max_new_tokens, num_beams=num_beams
            )
            found.update(zip(rows, texts, strict=True))
        return [found[i] for i in range(len(samples))]

    @torch.inference_mode()
    @in_its_precision
    def log_likelihoods(
        self,
        samples: Sequence[Sample],
        continuations: Sequence[Sequence[str]],
        *,
        images: Callable[[Image], bytes] | None = None,
        chat: bool = True,
    ) -> list[list[float]]:
        """Sum of log-probabilities (nats) of each candidate answer to its question, its end
        included; BLIP's ranking of a list of answers."""
        del chat  # there is no conversation here
        found: dict[int, list[float]] = {}
        for rows, states, mask in self._groups(samples, images):
            for place, row in enumerate(rows):
                ids, ids_mask = self.ids_of(continuations[row])
                count = len(ids)
                own, own_mask = (
                    x[place : place + 1].expand(count, *(-1,) * (x.ndim - 1))
                    for x in (states, mask)
                )
                hidden = self.text.answer(ids, ids_mask, own, own_mask)
                found[row] = self.text.token_log_probs(hidden, ids, ids_mask).sum(1).tolist()
        return [found[i] for i in range(len(samples))]

    def _groups(
        self, samples: Sequence[Sample], images: Callable[[Image], bytes] | None
    ) -> list[tuple[list[int], Tensor, Tensor]]:
        """(rows, question states, mask) of samples with a picture, and of those without."""
        shown = [next(s.images(), None) for s in samples]
        groups = []
        for seen in (True, False):
            rows = [i for i, image in enumerate(shown) if (image is not None) == seen]
            if not rows:
                continue
            pictures = [shown[i] for i in rows]
            data = [images(p) if images is not None and p is not None else p for p in pictures]
            asked = [samples[i].question for i in rows]
            groups.append((rows, *self._understood(data if seen else None, asked)))
        return groups

    @torch.inference_mode()
    def _understood(
        self, images: Sequence[Any] | None, questions: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        features = None if images is None else self.encode_pixels(self.pixels_of(images))
        ids, mask = self.ids_of(questions)
        return self.text.understand(ids, mask, features), mask
