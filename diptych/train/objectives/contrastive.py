"""Pictures against sentence embeddings of their descriptions: teaches a new encoder to see.

A from-scratch encoder behind a language model can stay at the blind score for hundreds of
steps; a short stage against a frozen text encoder gives it features worth connecting.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diptych.data.batch import Batch
from diptych.data.collate import Collator, PairCollator, Pictures
from diptych.model.weights import locate
from diptych.train.objective import Objective, ObjectiveConfig

log = logging.getLogger(__name__)


class Config(ObjectiveConfig):
    """Symmetric contrastive loss with a frozen text encoder."""

    name: str = "contrastive"
    """File stem of the part."""
    text_encoder: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Sentence-embedding model (BERT-like, mean pooling), frozen."""
    temperature: float = Field(default=0.07, gt=0)
    """Initial temperature; learned from there, never below 0.01."""
    max_text_tokens: int = Field(default=128, ge=8)
    """Longer descriptions are cut."""

    def build(self, model: nn.Module) -> Objective:
        return Contrastive(self, model)


class Contrastive(Objective):
    """Symmetric cross-entropy over a step's pairs.

    The image embedding is the mean of the patch features, projected and normalised; the text
    embedding comes from the frozen sentence encoder and is computed once per distinct text.
    Weight is the number of pairs.

    Source: CLIP, section 2.3 (arXiv:2103.00020).
    """

    splits = False

    def __init__(self, config: Config, model: Any):
        super().__init__()
        from transformers import AutoModel, AutoTokenizer

        folder = locate(config.text_encoder)
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        text_encoder = AutoModel.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32
        ).eval()
        # Not a submodule: frozen, never saved with the stage, never moved by the optimizer.
        self._text_encoder = [text_encoder.requires_grad_(False)]
        self._max_text_tokens = config.max_text_tokens
        dim = text_encoder.config.hidden_size
        self.norm = nn.LayerNorm(model.vision_encoder.dim)
        self.projection = nn.Linear(model.vision_encoder.dim, dim)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(config.temperature)))
        self._known: dict[str, Tensor] = {}

    def collator(self, model: Any, **budgets: Any) -> Collator:
        return PairCollator(Pictures(model.vision_encoder.preprocessing, budgets.get("features")))

    def forward(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        if batch.features is not None:
            features = batch.features
        else:
            features = model.encode_pixels(batch.pixel_values)
        pooled = features.float().mean(1)
        images = F.normalize(self.projection(self.norm(pooled)), dim=-1)
        texts = self.embed_texts(batch.texts).to(images.device)
        logits = self.log_scale.clamp(max=math.log(100.0)).exp() * images @ texts.T
        labels = torch.arange(len(images), device=images.device)
        loss = F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)
        return {"contrastive": loss / 2 * len(images)}

    def weight(self, batch: Batch) -> float:
        return float(len(batch.texts))

    @torch.no_grad()
    def embed_texts(self, texts: tuple[str, ...]) -> Tensor:
        """Normalised sentence embeddings [number of texts, width], float32."""
        new = sorted({t for t in texts if t not in self._known}, key=len)
        encoder = self._text_encoder[0]
        for start in range(0, len(new), 32):
            chunk = new[start : start + 32]
            tokens = self._tokenizer(
                chunk,
                padding=True,
                truncation=True,
                max_length=self._max_text_tokens,
                return_tensors="pt",
            )
            with torch.autocast("cpu", dtype=torch.bfloat16):
                states = encoder(**tokens).last_hidden_state.float()
            mask = tokens["attention_mask"][..., None].float()
            pooled = (states * mask).sum(1) / mask.sum(1)
            self._known.update(zip(chunk, F.normalize(pooled, dim=-1), strict=True))
        return torch.stack([self._known[t] for t in texts])
