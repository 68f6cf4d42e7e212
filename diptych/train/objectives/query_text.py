"""Stage 1 of BLIP-2: contrast, matching and captioning of queries and texts, in one step."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diptych.data.batching.batch import IGNORE, Batch
from diptych.data.batching.budget import Budget
from diptych.data.batching.collate import Collator
from diptych.data.batching.collate_pairs import PairCollator
from diptych.data.batching.picture_loader import PictureLoader
from diptych.errors import ConfigError
from diptych.model.architectures.query_transformer import QueryTransformer
from diptych.train.chance import ChanceWatch
from diptych.train.objective import PAIRS, Objective, ObjectiveConfig
from diptych.train.pair_losses import draw_negatives, soft_loss
from diptych.train.pairs import numbered, padded
from diptych.train.ranks import gather_padded, gather_rows, total


class Config(ObjectiveConfig):
    """ITC, ITM and ITG of a querying transformer."""

    budget: ClassVar[tuple[str, ...]] = PAIRS
    text_passes: ClassVar[int] = 5  # read, three times checked, written

    name: str = "query_text"
    """File stem of the part."""
    smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Label smoothing of the contrastive and the captioning loss."""
    gathered: Literal["learns", "detached"] = "learns"
    """Whether the contrastive loss reaches both sides of every comparison, as it does on one
    device, or only the side that asks, as when LAVIS trains on several: gathered vectors are
    detached there."""
    chance_steps: int = Field(default=300, ge=1)
    """Warn when a loss has stayed at chance for so many steps."""

    def build(self, model: nn.Module) -> Objective:
        if not isinstance(model, QueryTransformer):
            raise ConfigError(
                "the query_text objective needs a query_transformer",
                where="model",
                fix="set model.name=query_transformer",
            )
        return QueryText(self)


class QueryText(Objective):
    """Losses `itc`, `itm`, `lm`, each a mean over the pairs (or tokens) of every rank.

    - itc: a text belongs to the picture whose closest query is closest to it, and back.
    - itm: does this text belong to this picture; negatives are drawn by likeness.
    - lm: the text is written from what the queries saw.

    Pairs about the same picture (equal content) are never each other's negatives.
    Source: BLIP-2, section 3.1 (arXiv:2301.12597); `blip2_qformer.py` of salesforce/LAVIS.
    Parity: tests/conformance/test_lavis_qformer_stage1.py: losses and gradients; two ranks in
    tests/equivalence/test_training.py.
    """

    splits = False
    gathers = True
    groups_pictures = False

    draws: Tensor

    def __init__(self, config: Config):
        super().__init__()
        self.smoothing = config.smoothing
        self.gathered = config.gathered
        # A part of the state, so that a resumed run draws the negatives it would have drawn.
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))
        self.watches = {
            "itc": ChanceWatch("itc", config.chance_steps),
            "itm": ChanceWatch("itm", config.chance_steps),
        }

    def collator(self, model: Any, budget: Budget, pictures: PictureLoader) -> Collator:
        return PairCollator(
            pictures, model.text_tokens, draws=True, long_samples=budget.long_samples
        )

    def forward(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        former = model.query_former
        ids, mask = batch.input_ids, batch.segment_ids
        states = model.image_states(batch)
        count = former.num_queries

        # One pass for the queries and for the text that is written from them.
        written = ids.clone()
        written[:, 0] = former.decoder_start
        both = former.write(written, mask, states)
        queries = both[:, :count]

        images = model.project_queries(queries)
        texts = model.project_text(former.read_text(ids, mask)[:, 0])
        all_images, start = gather_rows(images)
        all_texts, _ = gather_rows(texts)
        if self.gathered == "detached":
            all_images, all_texts = all_images.detach(), all_texts.detach()
        temperature = model.heads.temperature
        to_text = torch.einsum("iqe,ne->inq", images, all_texts).amax(-1) / temperature
        to_image = torch.einsum("ie,nqe->inq", texts, all_images).amax(-1) / temperature
        keys, _ = gather_rows(numbered(batch.image_keys, ids.device))
        own = keys[start : start + len(ids)]
        same = own[:, None] == keys[None, :]
        itc = (
            soft_loss(to_text, same, self.smoothing) + soft_loss(to_image, same, self.smoothing)
        ) / 2

        itm = self._matching(model, ids, mask, states, to_text, to_image, same, start)
        lm = self._writing(former, both[:, count:], ids, mask)
        return {"itc": itc, "itm": itm, "lm": lm}

    def weight(self, batch: Batch) -> float:
        return float(len(batch.sample_ids))

    def watch(self, losses: dict[str, float], num_samples: int) -> None:
        if num_samples > 1:
            self.watches["itc"].see(losses["itc"], math.log(num_samples))
        # Always saying "one in three" is the best that can be said without looking.
        self.watches["itm"].see(losses["itm"], math.log(3) - 2 / 3 * math.log(2))

    def _matching(
        self, model: Any, ids: Tensor, mask: Tensor, states: Tensor, to_text: Tensor,
        to_image: Tensor, same: Tensor, start: int,
    ) -> Tensor:  # fmt: skip
        if bool(same.all(1).any()):
            return to_text.sum() * 0.0  # a picture whose every pair is its own has no negative
        chosen_images, chosen_texts = self.negatives(to_image, to_text, same, start)
        all_states, _ = gather_rows(states)
        all_ids, _ = gather_padded(ids, int(ids.flatten()[0]))
        all_masks, _ = gather_padded(mask, 0)
        width = max(ids.shape[1], int(all_masks[chosen_texts].sum(1).max()))
        text_rows = torch.cat(
            [padded(ids, width), padded(ids, width), all_ids[chosen_texts, :width]]
        )
        mask_rows = torch.cat(
            [padded(mask, width), padded(mask, width), all_masks[chosen_texts, :width]]
        )
        image_rows = torch.cat([states, all_states[chosen_images], states])
        logits = model.match(text_rows, mask_rows, image_rows)
        labels = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        labels[: len(ids)] = 1
        return F.cross_entropy(logits.float(), labels, reduction="sum") / 3

    def negatives(
        self, to_image: Tensor, to_text: Tensor, same: Tensor, start: int
    ) -> tuple[Tensor, Tensor]:
        """For each own text a picture, for each own picture a text, as numbers among all."""
        learns = torch.is_grad_enabled()
        # Looking at validation pairs changes nothing of the training, and is the same every time.
        generator = torch.Generator().manual_seed(0x5EED + (int(self.draws) if learns else 0))
        self.draws += int(learns)
        size = same.shape[1]
        noise = torch.rand(2, size, size, generator=generator).to(to_image.device)
        noise = noise[:, start : start + len(same)]
        return draw_negatives(to_image, same, noise[0]), draw_negatives(to_text, same, noise[1])

    def _writing(self, former: Any, states: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        labels = ids.masked_fill(mask == 0, IGNORE)[:, 1:]
        kept = labels != IGNORE
        logits = former.logits(states[:, :-1][kept]).float()
        loss = F.cross_entropy(
            logits, labels[kept], reduction="sum", label_smoothing=self.smoothing
        )
        tokens = total(float(kept.sum()), ids.device)
        return loss * (total(float(len(ids)), ids.device) / max(tokens, 1.0))
