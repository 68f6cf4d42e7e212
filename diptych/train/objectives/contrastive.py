"""Which text belongs to which picture (CLIP); teaches a new encoder to see, too.

A dual encoder is trained by it in its own space. In a vision-language model a from-scratch
encoder can stay at the blind score for hundreds of steps; a short stage that only asks which
description belongs to which picture gives it features worth connecting.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diptych.config import SAME_RESULT
from diptych.data.batching.batch import Batch
from diptych.data.batching.budget import Budget
from diptych.data.batching.collate import Collator
from diptych.data.batching.collate_pairs import PairCollator
from diptych.data.batching.picture_loader import PictureLoader
from diptych.model.architectures.dual_encoder import DualEncoder
from diptych.model.weights import locate
from diptych.staging import replacing
from diptych.train.objective import PAIRS, Objective, ObjectiveConfig
from diptych.train.pair_losses import clip_loss
from diptych.train.pairs import Pairs

log = logging.getLogger(__name__)


class Config(ObjectiveConfig):
    """Symmetric contrastive loss between pictures and texts."""

    budget: ClassVar[tuple[str, ...]] = PAIRS
    learns: ClassVar[bool] = True

    name: str = "contrastive"
    """File stem of the part."""
    text_encoder: str | None = None
    """Frozen sentence-embedding model (BERT-like, mean pooling), such as
    sentence-transformers/all-MiniLM-L6-v2; null learns a bag of the model's own tokens and
    token pairs instead, which needs no download and works in any language."""
    dim: int = Field(default=256, ge=8)
    """Width of the shared space, when the text encoder is learned."""
    token_dim: int = Field(default=64, ge=4)
    """Width to which every image position is reduced before all are joined."""
    temperature: float = Field(default=0.07, gt=0)
    """Initial temperature; learned from there, never below 0.01."""
    max_text_tokens: int = Field(default=128, ge=8)
    """Longer descriptions are cut."""
    chunk_size: int | None = Field(default=None, ge=1, json_schema_extra=SAME_RESULT)
    """Pairs of a dual encoder that are embedded at once (gradient caching): thousands of pairs
    learn from each other in the memory of so many, with the same gradients, at the price of a
    second forward pass; null embeds all at once."""

    def build(self, model: nn.Module) -> Objective:
        if isinstance(model, DualEncoder):
            return Pairs("contrastive", clip_loss_of, self.chunk_size)
        return Contrastive(self, model)


def clip_loss_of(model: DualEncoder, images: Tensor, texts: Tensor) -> Tensor:
    """CLIP's loss in the space of a dual encoder."""
    return clip_loss(images, texts, model.space.scale())


class Contrastive(Objective):
    """Symmetric cross-entropy over a step's pairs, those of every rank; weight is their number.

    For an encoder that is part of a vision-language model, with a head and a text side of its own.

    Positions are kept apart: every position is reduced to a few channels and all of them
    together are projected. With a mean over positions the encoder need not learn where things
    are, which is what questions ask.

    Shapes: features [V, N, C] -> image embeddings [V, dim]; text embeddings [V, dim].
    Source: CLIP, section 2.3 (arXiv:2103.00020).
    """

    splits = False
    gathers = True
    groups_pictures = False

    def __init__(self, config: Config, model: Any):
        super().__init__()
        encoder = model.vision_encoder
        num_positions = math.prod(encoder.grid) + encoder.num_prefix
        if config.text_encoder is None:
            self.texts: _Bag | _Frozen = _Bag(model.tokenizer, config.dim)
        else:
            self.texts = _Frozen(config.text_encoder, config.max_text_tokens)
        self.reduce = nn.Linear(encoder.dim, config.token_dim)
        self.projection = nn.Linear(num_positions * config.token_dim, self.texts.dim)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(config.temperature)))

    def prepare(self, texts: Iterable[str], cache: Path, progress: Any) -> None:
        self.texts.prepare(texts, cache, progress)

    def collator(self, model: Any, budget: Budget, pictures: PictureLoader) -> Collator:
        return PairCollator(pictures, draws=True)

    def forward(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        if batch.features is not None:
            features = batch.features
        else:
            features = model.encode_pixels(batch.pixel_values)
        images = self.projection(self.reduce(features).flatten(1))
        images = F.normalize(images.float(), dim=-1)
        texts = F.normalize(self.texts(batch.texts).float(), dim=-1).to(images.device)
        with torch.no_grad():
            # On the parameter itself: a clamped expression has no gradient that leads back.
            self.log_scale.clamp_(max=math.log(100.0))
        scale = self.log_scale.exp()
        return {"contrastive": clip_loss(images, texts, scale)}

    def weight(self, batch: Batch) -> float:
        return float(len(batch.texts))


class _Bag(nn.Module):
    """Sum of learned embeddings of a text's tokens and of its (hashed) neighbouring pairs."""

    NUM_PAIRS = 8192

    def __init__(self, tokenizer: Any, dim: int):
        super().__init__()
        self.dim = dim
        self._tokenizer = tokenizer
        self._vocab_size = len(tokenizer)
        self.embedding = nn.EmbeddingBag(self._vocab_size + self.NUM_PAIRS, dim, mode="sum")
        nn.init.normal_(self.embedding.weight, std=0.05)
        self._known: dict[str, list[int]] = {}

    def prepare(self, texts: Iterable[str], cache: Path, progress: Any) -> None:
        """Nothing to do ahead: a text's ids depend on nothing else."""

    def forward(self, texts: Sequence[str]) -> Tensor:
        rows = [self._ids(t) for t in texts]
        offsets = torch.tensor([0, *(len(r) for r in rows[:-1])]).cumsum(0)
        ids = torch.tensor([i for r in rows for i in r])
        device = self.embedding.weight.device
        return self.embedding(ids.to(device), offsets.to(device))

    def _ids(self, text: str) -> list[int]:
        if text not in self._known:
            ids = self._tokenizer.encode(text, add_special_tokens=False)
            # Pairs tell 12 and 3 from 1 and 23; their buckets are fixed by the ids alone.
            pairs = [
                self._vocab_size + (a * 1_000_003 + b * 7_919) % self.NUM_PAIRS
                for a, b in itertools.pairwise(ids)
            ]
            self._known[text] = [*ids, *pairs]
        return self._known[text]


class _Frozen(nn.Module):
    """Embeddings of a pretrained sentence encoder, computed once and kept on disk.

    They are computed for all texts in one fixed order, because the padding of a batch changes
    the last bits: a resumed run must see the very same numbers.
    """

    def __init__(self, name: str, max_tokens: int):
        super().__init__()
        from transformers import AutoConfig

        self._folder = locate(name)
        self._max_tokens = max_tokens
        self.dim = AutoConfig.from_pretrained(self._folder).hidden_size
        self._known: dict[str, Tensor] = {}

    def prepare(self, texts: Iterable[str], cache: Path, progress: Any) -> None:
        """Embed every distinct text, shortest first, or read what was kept."""
        wanted = sorted(set(texts), key=lambda t: (len(t), t))
        digest = hashlib.sha256(str(self._folder.name).encode())
        for text in wanted:
            digest.update(text.encode() + b"\0")
        file = cache / f"texts-{digest.hexdigest()[:16]}.safetensors"
        if file.is_file():
            rows = load_file(file)["embeddings"]
        else:
            rows = self._embed(wanted, progress)
            with replacing(file) as temporary:
                save_file({"embeddings": rows}, temporary)
        self._known = dict(zip(wanted, rows, strict=True))

    @torch.no_grad()
    def _embed(self, texts: list[str], progress: Any) -> Tensor:
        from transformers import AutoModel, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self._folder)
        encoder = AutoModel.from_pretrained(
            self._folder, use_safetensors=True, dtype=torch.float32
        ).eval()
        rows = []
        starts = range(0, len(texts), 64)
        for start in progress.track(starts, "embed descriptions"):
            tokens = tokenizer(
                texts[start : start + 64],
                padding=True,
                truncation=True,
                max_length=self._max_tokens,
                return_tensors="pt",
            )
            with torch.autocast("cpu", dtype=torch.bfloat16):
                states = encoder(**tokens).last_hidden_state.float()
            mask = tokens["attention_mask"][..., None].float()
            rows.append((states * mask).sum(1) / mask.sum(1))
        return torch.cat(rows) if rows else torch.zeros(0, self.dim)

    def forward(self, texts: Sequence[str]) -> Tensor:
        return torch.stack([self._known[t] for t in texts])
