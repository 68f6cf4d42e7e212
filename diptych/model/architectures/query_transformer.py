"""Stage 1 of BLIP-2: queries learn to take from a frozen encoder what texts are about.

Shapes: B pictures, N image tokens, Q queries, n texts, T tokens, D width, E shared space.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from diptych.data.batching.batch import Batch
from diptych.data.batching.chunks import in_chunks
from diptych.data.text.plain_text import TextTokens
from diptych.model import query_former as query_formers
from diptych.model import vision_encoder as vision_encoders
from diptych.model.architecture import ArchitectureConfig, Model
from diptych.model.matching import Heads, match_logits
from diptych.model.precision import in_its_precision
from diptych.model.query_former import QueryFormer, QueryFormerConfig
from diptych.model.vision_encoder import VisionEncoder


class QueryTransformerConfig(ArchitectureConfig):
    """What a querying transformer is composed of."""

    parts: ClassVar[tuple[str, ...]] = ("vision_encoder", "query_former", "heads")
    text_part: ClassVar[str] = "query_former"

    name: str = "query_transformer"
    """File stem of the architecture."""
    query_former: QueryFormerConfig
    """Queries and text."""
    dim: int = Field(default=256, ge=2)
    """Width of the space in which queries and texts are compared."""
    temperature: float = Field(default=0.07, gt=0)
    """Temperature of the contrastive logits to begin with; learned."""

    def compose(self, tokenizer: Any = None) -> QueryTransformer:
        encoder = vision_encoders.build(self.vision_encoder)
        former = query_formers.build(self.query_former, encoder.dim, tokenizer)
        config = self.model_copy(update={"vision_encoder": encoder.config})
        return QueryTransformer(
            config, encoder, former, Heads(former.dim, former.dim, self.dim, self.temperature)
        )


Config = QueryTransformerConfig


class QueryTransformer(Model):
    """A frozen image encoder and a query former with its three tasks' heads.

    Parity: tests/conformance/test_lavis_qformer_stage1.py.
    """

    query_former: QueryFormer
    heads: Heads
    can = ("compare", "match")
    represents = ("image", "text", "multimodal")
    command = "diptych eval {} --image PICTURE --text WORDS"
    card_tag = "image-feature-extraction"
    card_usage = (
        'model = diptych.load("path/to/this/folder")\n'
        'print(model.similarity(["picture.png"], ["a red umbrella", "a cat"]))'
    )

    def __init__(
        self,
        config: QueryTransformerConfig,
        vision_encoder: VisionEncoder,
        query_former: QueryFormer,
        heads: Heads,
    ):
        super().__init__()
        self.config = config
        self.vision_encoder = vision_encoder
        self.query_former = query_former
        self.heads = heads

    @cached_property
    def text_tokens(self) -> TextTokens:
        """What turns texts into ids."""
        return self.query_former.tokens()

    # -- computing --------------------------------------------------------------------------

    def image_states(self, batch: Batch) -> Tensor:
        """What the queries look at [B, N, C], from pixels or cached features."""
        if batch.features is not None:
            return self.query_former.image_states(batch.features)
        assert batch.pixel_values is not None, "pairs have pictures"
        return self.query_former.image_states(self.encode_pixels(batch.pixel_values))

    def project_queries(self, queries: Tensor) -> Tensor:
        """Query states [B, Q, D] -> unit vectors float32 [B, Q, E]."""
        return F.normalize(self.heads.image(queries).float(), dim=-1)

    def project_text(self, states: Tensor) -> Tensor:
        """Text states [..., D] -> unit vectors float32 [..., E]."""
        return F.normalize(self.heads.text(states).float(), dim=-1)

    def match(self, ids: Tensor, mask: Tensor, image_states: Tensor) -> Tensor:
        """Whether pictures and texts belong together: logits [B, 2], the second for yes."""
        both = self.query_former.read_both(ids, mask, image_states)
        return self.heads.matching(both[:, : self.query_former.num_queries]).mean(1)

    def represent(
        self, what: str, batch: Batch, *, space: str, layer: int = -1
    ) -> tuple[Tensor, Tensor | None]:
        """LAVIS's `image`, `text` and `multimodal` features, or their projections; see `Model`."""
        del layer
        ids, mask, former = batch.input_ids, batch.segment_ids, self.query_former
        if what == "text":
            states = former.read_text(ids, mask)
            if space == "shared":
                return self.project_text(states[:, 0]), None
            return states, mask
        image_states = self.image_states(batch)
        if what == "image":
            queries = former.read_image(image_states)
            return self.project_queries(queries) if space == "shared" else queries, None
        self._needs_states(what, space)
        return former.read_both(ids, mask, image_states)[:, : former.num_queries], None

    # -- asking -----------------------------------------------------------------------------

    @torch.inference_mode()
    @in_its_precision
    def features(
        self, images: Iterable[Any] | None = None, texts: Iterable[str] | None = None
    ) -> Tensor:
        """States before any projection, as representations for other work.

        Images alone: queries [B, Q, D]. Texts alone: states [n, T, D]. Both, in pairs: queries
        that have seen picture and text [B, Q, D] (`multimodal` of LAVIS).
        """
        former = self.query_former
        ids = mask = None
        if texts is not None:
            ids, mask = self.ids_of(list(texts))
        if images is None:
            assert ids is not None and mask is not None, "nothing is given"
            return former.read_text(ids, mask)
        states = former.image_states(self.encode_pixels(self.pixels_of(list(images))))
        if ids is None or mask is None:
            return former.read_image(states)
        return former.read_both(ids, mask, states)[:, : former.num_queries]

    @torch.inference_mode()
    @in_its_precision
    def encode_images(self, images: Iterable[Any], *, batch_size: int = 32) -> Tensor:
        """Paths, bytes or PIL pictures -> unit vectors of their queries [I, Q, E], on the CPU."""
        rows = [
            self.project_queries(self.features(images=c)).cpu()
            for c in in_chunks(images, batch_size)
        ]
        return torch.cat(rows)

    @torch.inference_mode()
    @in_its_precision
    def encode_texts(self, texts: Iterable[str], *, batch_size: int = 128) -> Tensor:
        """Texts -> unit vectors [n, E], on the CPU. What is too long loses its end."""
        rows = [
            self.project_text(self.features(texts=c)[:, 0]).cpu()
            for c in in_chunks(texts, batch_size)
        ]
        return torch.cat(rows)

    def similarity(self, images: Iterable[Any], texts: Iterable[str]) -> Tensor:
        """Cosines float32 [I, n]: of a text and the query that is closest to it."""
        return self.compare(self.encode_images(images), self.encode_texts(texts))

    def scale(self) -> Tensor:
        """Inverse temperature of the contrastive logits, a scalar."""
        return 1 / self.heads.temperature

    @staticmethod
    def compare(images: Tensor, texts: Tensor) -> Tensor:
        """Unit vectors [I, Q, E] and [n, E] -> [I, n], the maximum over queries."""
        return torch.einsum("iqe,ne->inq", images, texts).amax(-1)

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
            pairs: (number of a picture, number of a text); each picture is encoded once.
            logits: give the logit of "they do" instead, as LAVIS puts finds in order by.
        """
        both = match_logits(self, self._seen, images, texts, pairs, batch_size)
        return both[:, 1] if logits else both.softmax(1)[:, 1]

    def _seen(self, images: Iterable[Any]) -> Tensor:
        """Pictures -> what the queries look at [I, N, C]."""
        return self.query_former.image_states(self.encode_pixels(self.pixels_of(images)))
