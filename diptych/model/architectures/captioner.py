"""BLIP: an image encoder and a text model that reads, checks and writes captions.

Shapes: I pictures, N image tokens, C encoder width, n texts, T tokens, D width, E shared space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from diptych.data.batching.batch import Batch
from diptych.data.batching.chunks import in_chunks
from diptych.data.sample import Image, Sample
from diptych.data.text.plain_text import TextTokens
from diptych.errors import ModelError, SampleTooLong
from diptych.model import text_mixture as text_mixtures
from diptych.model import vision_encoder as vision_encoders
from diptych.model.architecture import ArchitectureConfig, Model
from diptych.model.matching import Heads, match_logits
from diptych.model.precision import in_its_precision
from diptych.model.text_mixture import TextMixture, TextMixtureConfig
from diptych.model.vision_encoder import VisionEncoder


class CaptionerConfig(ArchitectureConfig):
    """What a captioner is composed of."""

    parts: ClassVar[tuple[str, ...]] = ("vision_encoder", "text", "heads")
    text_part: ClassVar[str] = "text"

    name: str = "captioner"
    """File stem of the architecture."""
    text: TextMixtureConfig
    """Reader and writer."""
    dim: int = Field(default=256, ge=2)
    """Width of the space in which pictures and texts are compared."""
    temperature: float = Field(default=0.07, gt=0)
    """Temperature of the contrastive logits to begin with; learned."""

    def compose(self, tokenizer: Any = None) -> Captioner:
        encoder = vision_encoders.build(self.vision_encoder)
        text = text_mixtures.build(self.text, encoder.dim, tokenizer)
        config = self.model_copy(update={"vision_encoder": encoder.config})
        return Captioner(
            config, encoder, text, Heads(encoder.dim, text.dim, self.dim, self.temperature)
        )


Config = CaptionerConfig


class Captioner(Model):
    """Image encoder, text mixture and heads.

    The first token of the encoder's features stands for the picture where there is one class token
    (`features: full`); otherwise their mean.
    Parity: tests/conformance/test_lavis_blip_pretrain.py.
    """

    text: TextMixture
    heads: Heads
    can = ("answer", "compare", "match")
    represents = ("image", "text", "multimodal")
    command = "diptych eval {} --image PICTURE --text WORDS"
    card_tag = "image-to-text"
    card_usage = (
        'model = diptych.load("path/to/this/folder")\nprint(model.caption(["picture.png"]))'
    )

    def __init__(
        self,
        config: CaptionerConfig,
        vision_encoder: VisionEncoder,
        text: TextMixture,
        heads: Heads,
    ):
        super().__init__()
        self.config = config
        self.vision_encoder = vision_encoder
        self.text = text
        self.heads = heads

    @cached_property
    def text_tokens(self) -> TextTokens:
        """What turns texts into ids."""
        return self.text.tokens()

    # -- computing --------------------------------------------------------------------------

    def project_images(self, features: Tensor) -> Tensor:
        """Encoder features [I, N, C] -> unit vectors float32 [I, E]."""
        whole = features[:, 0] if self.vision_encoder.num_prefix else features.mean(1)
        return F.normalize(self.heads.image(whole).float(), dim=-1)

    def project_texts(self, states: Tensor) -> Tensor:
        """Text states [n, T, D] -> unit vectors float32 [n, E]."""
        return F.normalize(self.heads.text(states[:, 0]).float(), dim=-1)

    def match(self, ids: Tensor, mask: Tensor, features: Tensor) -> Tensor:
        """Whether texts belong to pictures, in pairs: logits [n, 2], the second for yes."""
        return self.heads.matching(self.text.ground(ids, mask, features)[:, 0])

    def represent(
        self, what: str, batch: Batch, *, space: str, layer: int = -1
    ) -> tuple[Tensor, Tensor | None]:
        """Vectors of the contrastive space, or states of encoder and reader; see `Model`."""
        del layer
        ids, mask = batch.input_ids, batch.segment_ids
        if what == "text":
            states = self.text.read(ids, mask)
            return (self.project_texts(states), None) if space == "shared" else (states, mask)
        assert batch.pixel_values is not None, "pictures are prepared"
        features = self.encode_pixels(batch.pixel_values)
        if what == "image":
            return self.project_images(features) if space == "shared" else features, None
        self._needs_states(what, space)
        return self.text.ground(ids, mask, features), mask

    # -- asking -----------------------------------------------------------------------------

    @torch.inference_mode()
    @in_its_precision
    def encode_images(self, images: Iterable[Any], *, batch_size: int = 32) -> Tensor:
        """Paths, bytes or PIL pictures -> unit vectors [I, E], on the CPU."""
        chunks = in_chunks(list(images), batch_size)
        return torch.cat([self.project_images(self._encoded(c)).cpu() for c in chunks])

    @torch.inference_mode()
    @in_its_precision
    def encode_texts(self, texts: Iterable[str], *, batch_size: int = 128) -> Tensor:
        """Texts -> unit vectors [n, E], on the CPU. What is too long loses its end."""
        chunks = in_chunks(list(texts), batch_size)
        return torch.cat(
            [self.project_texts(self.text.read(*self.ids_of(c))).cpu() for c in chunks]
        )

    def similarity(self, images: Iterable[Any], texts: Iterable[str]) -> Tensor:
        """Cosines float32 [I, n]."""
        return self.compare(self.encode_images(images), self.encode_texts(texts))

    def scale(self) -> Tensor:
        """Inverse temperature of the contrastive logits, a scalar."""
        return 1 / self.heads.temperature

    @staticmethod
    def compare(images: Tensor, texts: Tensor) -> Tensor:
        """Unit vectors [I, E] and [n, E] -> cosines [I, n]."""
        return images @ texts.T

    @torch.inference_mode()
    @in_its_precision
    def match_scores(
        self,
        images: Sequence[Any],
        texts: Sequence[str],
        pairs: Sequence[tuple[int, int]],
        *,
        batch_size: int = 32,
        logits: bool = False,
    ) -> Tensor:
        """Probability float32 [P] that picture and text of each pair belong together.

        Args:
            logits: give the logit of "they do" instead, as LAVIS puts finds in order by.
        """
        both = match_logits(self, self._encoded, images, texts, pairs, batch_size)
        return both[:, 1] if logits else both.softmax(1)[:, 1]

    @in_its_precision
    def caption(
        self,
        images: Sequence[Any],
        *,
        prompts: Sequence[str] | None = None,
        max_new_tokens: int = 30,
        num_beams: int = 3,
        top_p: float | None = None,
        seed: int = 0,
    ) -> list[str]:
        """A caption for each picture (path, bytes or PIL).

        Args:
            prompts: how each caption begins; it is not repeated in what comes back.
            max_new_tokens: at most; fewer where the model's positions end.
            num_beams: width of the beam search; 1 is greedy.
            top_p: draw from the likeliest tokens that hold so much probability instead (nucleus
                sampling); the same `seed` draws the same.
        """
        features = self._encoded(images) if len(images) else None
        prompts = prompts or [""] * len(images)
        if len(prompts) != len(images):
            raise ModelError(f"{len(images)} pictures, but {len(prompts)} beginnings of captions")
        return self._written(features, prompts, max_new_tokens, num_beams, top_p, seed)

    @in_its_precision
    def generate(
        self,
        samples: Sequence[Sample],
        *,
        max_new_tokens: int = 30,
        images: Callable[[Image], bytes] | None = None,
        num_beams: int = 3,
    ) -> list[str]:
        """Captions of samples, for evaluation; the user's text is how a caption begins.

        A sample without a picture is captioned blind: the writer looks at nothing.
        """
        prompts = [s.question for s in samples]
        shown = [next(s.images(), None) for s in samples]
        found: dict[int, str] = {}
        for seen in (True, False):
            rows = [i for i, image in enumerate(shown) if (image is not None) == seen]
            features = None
            if seen and rows:
                pictures = [shown[i] for i in rows]
                data = [images(p) if images is not None and p is not None else p for p in pictures]
                features = self._encoded(data)
            texts = self._written(
                features, [prompts[i] for i in rows], max_new_tokens, num_beams, None, 0
            )
            found.update(zip(rows, texts, strict=True))
        return [found[i] for i in range(len(samples))]

    @torch.inference_mode()
    def _written(
        self,
        features: Tensor | None,
        prompts: Sequence[str],
        max_new_tokens: int,
        num_beams: int,
        top_p: float | None,
        seed: int,
    ) -> list[str]:
        tokenizer = self.tokenizer
        starts = [self.text_tokens.plain(p) if p else () for p in prompts]
        found: dict[int, str] = {}
        # Rows whose beginnings have one length are written together; nothing has to be padded.
        for length in sorted({len(s) for s in starts}):
            rows = [i for i, s in enumerate(starts) if len(s) == length]
            ids = torch.tensor([[self.text.decoder_start, *starts[i]] for i in rows])
            settings: dict[str, Any] = {"num_beams": num_beams, "do_sample": False}
            positions = int(self.text.hf_config.max_position_embeddings)
            room = positions - ids.shape[1]
            if room < 1:
                raise SampleTooLong(
                    f"a caption that begins with {length} tokens has no room left: the model has "
                    f"{positions} positions",
                    fix="begin with fewer words",
                )
            if top_p is not None:
                torch.manual_seed(seed)
                settings = {"do_sample": True, "top_p": top_p, "num_beams": 1}
            written = self.text.writer.generate(
                input_ids=ids.to(self.device),
                attention_mask=torch.ones_like(ids).to(self.device),
                encoder_hidden_states=None if features is None else features[rows],
                max_new_tokens=min(max_new_tokens, room),
                eos_token_id=tokenizer.sep_token_id,
                pad_token_id=tokenizer.pad_token_id,
                **settings,
            )
            texts = tokenizer.batch_decode(written[:, ids.shape[1] :], skip_special_tokens=True)
            found.update(zip(rows, (t.strip() for t in texts), strict=True))
        return [found[i] for i in range(len(prompts))]

    def _encoded(self, images: Iterable[Any]) -> Tensor:
        """Paths, bytes or PIL pictures -> encoder features [I, N, C]."""
        return self.encode_pixels(self.pixels_of(images))
