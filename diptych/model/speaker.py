"""Speaker: what a model offers to those who ask it for an answer.

Generating, scoring answers and chatting need these and no more, so they work with any model that
has them (`architectures/vlm.py` is one) and do not know its class.

Shapes: R rows, T tokens, D language width, S tiles of all pictures, N encoder tokens,
        C encoder width, I tokens of all pictures, P targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from diptych.data.batching.batch import Batch
from diptych.data.batching.budget import Budget
from diptych.data.batching.collate import TokenCollator
from diptych.data.batching.picture_loader import PictureLoader
from diptych.data.pixels.preprocessing import Preprocessing
from diptych.data.pixels.tiling import Tiles
from diptych.data.text.chat import ChatEncoder
from diptych.model.arrangement import Arrangement
from diptych.model.language_model import LanguageModel


class Speaker(Protocol):
    """A model that reads conversations with pictures and answers them."""

    training: bool
    precision: str | None
    language_model: LanguageModel

    @property
    def device(self) -> torch.device: ...

    @property
    def tokenizer(self) -> Any: ...

    @property
    def chat_encoder(self) -> ChatEncoder: ...

    @property
    def preprocessing(self) -> Preprocessing: ...

    @property
    def answer_after(self) -> str | None:
        """What stands between working and answer in what it says."""
        ...

    @property
    def arrangement(self) -> Arrangement: ...

    def train(self, mode: bool = True) -> Any: ...

    def eval(self) -> Any: ...

    def collator(
        self, budget: Budget = Budget(), pictures: PictureLoader | None = None
    ) -> TokenCollator: ...

    def encode_pixels(self, pixel_values: Tensor) -> Tensor:
        """Tiles [S, 3, H, W] -> encoder features [S, N, C]."""
        ...

    def image_tokens(self, features: Tensor, tiles: Sequence[Tiles]) -> Tensor:
        """Encoder features of all tiles [S, N, C] -> tokens of all pictures, one after the other
        [I, D]."""
        ...

    def embed(
        self, ids: Tensor, image_tokens: Tensor | None, num_placeholders: int | None = None
    ) -> Tensor:
        """Token ids [R, T] -> embeddings [R, T, D] with image tokens [I, D] spliced in."""
        ...

    def target_log_probs(self, batch: Batch, *, chunk_size: int = 2048) -> Tensor:
        """Log-probability of every target, float32 [P]."""
        ...

    def log_probs_at(self, hidden: Tensor, batch: Batch, *, chunk_size: int = 2048) -> Tensor:
        """`target_log_probs` from hidden states [R, T, D] that are known already."""
        ...

    def attention_mask(self, batch: Batch) -> Any:
        """What the language model's layers may see of a batch."""
        ...

    def as_layers_want(self, mask: Tensor) -> Tensor:
        """A mask of visible positions in the form that the language model's layers take."""
        ...
