"""BLIP's pretraining: contrast with a slow copy of the model, matching and captioning."""

from __future__ import annotations

import copy
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
from diptych.model.architectures.captioner import Captioner
from diptych.train.chance import ChanceWatch
from diptych.train.objective import PAIRS, Objective, ObjectiveConfig
from diptych.train.pair_losses import draw_negatives
from diptych.train.pairs import numbered, padded
from diptych.train.ranks import gather_padded, gather_rows, total

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.001, 0.5
FLOOR = 1e-4
"""Added to the share of every negative, so that easy ones are drawn now and then."""


class Config(ObjectiveConfig):
    """ITC with momentum and queue, ITM and LM of a captioner."""

    budget: ClassVar[tuple[str, ...]] = PAIRS
    text_passes: ClassVar[int] = 5  # read, three times checked, written

    name: str = "blip"
    """File stem of the part."""
    queue_size: int = Field(default=57_600, ge=1)
    """Pairs of earlier steps that serve as negatives (LAVIS: a multiple of the batch)."""
    momentum: float = Field(default=0.995, gt=0, lt=1)
    """Share of the slow copy that a step keeps."""
    alpha: float = Field(default=0.4, ge=0, le=1)
    """Share of the contrastive target that the slow copy decides, after the ramp."""
    alpha_ramp_steps: int = Field(default=1, ge=1)
    """Steps over which that share grows from zero (BLIP: two epochs)."""
    smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Label smoothing of the captioning loss."""
    losses: tuple[Literal["itc", "itm", "lm"], ...] = Field(
        default=("itc", "itm", "lm"), min_length=1
    )
    """Which of the three are minimised; a captioner is tuned on lm, a filter on itc and itm."""
    chance_steps: int = Field(default=300, ge=1)
    """Warn when a loss has stayed at chance for so many steps."""

    def build(self, model: nn.Module) -> Objective:
        if not isinstance(model, Captioner):
            raise ConfigError(
                "the blip objective needs a captioner",
                where="model",
                fix="set model.name=captioner",
            )
        return Blip(self, model)


class Blip(Objective):
    """Losses `itc`, `itm`, `lm`, each a mean over the pairs (or tokens) of every rank.

    - itc: cross-entropy of the model's similarities with soft targets of its slow copy; candidates
      are the slow vectors of this step and of a queue of earlier ones.
    - itm: does this text belong to this picture; negatives are drawn by likeness.
    - lm: the text is written from the picture.

    Slow copy, queue and counters are the objective's own state and are checkpointed with it.
    Source: BLIP, section 3.2 (arXiv:2201.12086), and ALBEF (arXiv:2107.07651);
    `blip_pretrain.py` of salesforce/LAVIS.
    Parity: tests/conformance/test_lavis_blip_pretrain.py: two steps; two ranks in
    tests/equivalence/test_training.py.
    """

    splits = False
    gathers = True
    groups_pictures = False

    steps: Tensor
    place: Tensor
    image_queue: Tensor
    text_queue: Tensor

    def __init__(self, config: Config, model: Captioner):
        super().__init__()
        self.config = config
        self.slow = nn.ModuleDict(
            {
                "vision_encoder": copy.deepcopy(model.vision_encoder),
                "reader": copy.deepcopy(model.text.reader),
                "image": copy.deepcopy(model.heads.image),
                "text": copy.deepcopy(model.heads.text),
            }
        ).eval()
        self.slow.requires_grad_(False)
        size, dim = config.queue_size, model.config.dim
        generator = torch.Generator().manual_seed(0)
        for name in ("image_queue", "text_queue"):
            rows = F.normalize(torch.randn(size, dim, generator=generator), dim=-1)
            self.register_buffer(name, rows)
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.watches = {name: ChanceWatch(name, config.chance_steps) for name in ("itc", "itm")}

    def collator(self, model: Any, budget: Budget, pictures: PictureLoader) -> Collator:
        return PairCollator(
            pictures, model.text_tokens, draws=True, long_samples=budget.long_samples
        )

    def weight(self, batch: Batch) -> float:
        return float(len(batch.sample_ids))

    def watch(self, losses: dict[str, float], num_samples: int) -> None:
        candidates = num_samples + self.config.queue_size
        chance = {"itc": math.log(candidates), "itm": math.log(3) - 2 / 3 * math.log(2)}
        for name, watch in self.watches.items():
            if name in losses:
                watch.see(losses[name], chance[name])

    def train(self, mode: bool = True) -> Blip:
        """The slow copy is never in training mode: its vectors are targets."""
        super().train(mode)
        self.slow.eval()
        return self

    def forward(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        if batch.pixel_values is None:
            raise ConfigError(
                "the slow copy of the encoder needs pixels, not cached features",
                where="cache_features",
                fix="let the vision encoder learn, or set cache_features to off",
            )
        ids, mask, pixels = batch.input_ids, batch.segment_ids, batch.pixel_values
        learns = torch.is_grad_enabled()
        if learns:
            with torch.no_grad():
                model.heads.temperature.clamp_(MIN_TEMPERATURE, MAX_TEMPERATURE)
        features = model.encode_pixels(pixels)
        wanted, losses = self.config.losses, {}
        if "itc" in wanted or "itm" in wanted:
            losses = self._compared(model, batch, features, learns)
        if "lm" in wanted:
            losses["lm"] = self._writing(model, ids, mask, features)
        if learns:
            self.steps += 1
        return losses

    def _compared(
        self, model: Any, batch: Batch, features: Tensor, learns: bool
    ) -> dict[str, Tensor]:
        """`itc` and `itm`, as far as they are wanted."""
        ids, mask, pixels = batch.input_ids, batch.segment_ids, batch.pixel_values
        assert pixels is not None, "checked by forward"
        images = model.project_images(features)
        texts = model.project_texts(model.text.read(ids, mask))
        slow_images, slow_texts = self._slow_vectors(model, pixels, ids, mask, follow=learns)
        all_slow_images, start = gather_rows(slow_images)
        all_slow_texts, _ = gather_rows(slow_texts)
        keys, _ = gather_rows(numbered(batch.image_keys, ids.device))
        same = keys[start : start + len(ids)][:, None] == keys[None, :]
        losses = {}
        if "itc" in self.config.losses:
            losses["itc"] = self._contrast(
                model, images, texts, slow_images, slow_texts, all_slow_images, all_slow_texts, same
            )
        if "itm" in self.config.losses:
            losses["itm"] = self._matching(
                model, ids, mask, features, images, texts, all_slow_images, all_slow_texts,
                same, start,
            )  # fmt: skip
        if learns:
            self._enqueue(all_slow_images, all_slow_texts)
        return losses

    # -- contrast ---------------------------------------------------------------------------

    @torch.no_grad()
    def _slow_vectors(
        self, model: Any, pixels: Tensor, ids: Tensor, mask: Tensor, *, follow: bool
    ) -> tuple[Tensor, Tensor]:
        """Unit vectors of the slow copy, which first takes a step towards the model."""
        slow: Any = self.slow
        if follow:
            pairs = (
                (slow["vision_encoder"], model.vision_encoder),
                (slow["reader"], model.text.reader),
                (slow["image"], model.heads.image),
                (slow["text"], model.heads.text),
            )
            for its, own in pairs:
                for old, new in zip(its.parameters(), own.parameters(), strict=True):
                    old.lerp_(new.detach().to(old.dtype), 1 - self.config.momentum)
                for old, new in zip(its.buffers(), own.buffers(), strict=True):
                    old.copy_(new)
        features = slow["vision_encoder"](pixels)
        whole = features[:, 0] if model.vision_encoder.num_prefix else features.mean(1)
        states = slow["reader"](input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
        return (
            F.normalize(slow["image"](whole).float(), dim=-1),
            F.normalize(slow["text"](states).float(), dim=-1),
        )

    def _contrast(
        self, model: Any, images: Tensor, texts: Tensor, slow_images: Tensor, slow_texts: Tensor,
        all_slow_images: Tensor, all_slow_texts: Tensor, same: Tensor,
    ) -> Tensor:  # fmt: skip
        temperature = model.heads.temperature
        image_candidates = torch.cat([all_slow_images, self.image_queue.detach().clone()])
        text_candidates = torch.cat([all_slow_texts, self.text_queue.detach().clone()])
        own = F.pad(same.float(), (0, len(self.image_queue)))
        own = own / own.sum(1, keepdim=True)
        alpha = self.config.alpha * min(1.0, int(self.steps) / self.config.alpha_ramp_steps)
        losses = torch.zeros((), device=images.device)
        for vectors, slow, candidates in (
            (images, slow_images, text_candidates),
            (texts, slow_texts, image_candidates),
        ):
            with torch.no_grad():
                soft = (slow @ candidates.T / temperature).softmax(1)
                targets = alpha * soft + (1 - alpha) * own
            logits = vectors @ candidates.T / temperature
            losses = losses - (targets * logits.log_softmax(1)).sum()
        return losses / 2

    @torch.no_grad()
    def _enqueue(self, images: Tensor, texts: Tensor) -> None:
        """The vectors of every rank take the oldest places; each rank has the same queue."""
        size = len(self.image_queue)
        places = (int(self.place) + torch.arange(len(images), device=images.device)) % size
        # Of a batch larger than the queue the last ones stay.
        self.image_queue[places[-size:]] = images[-size:]
        self.text_queue[places[-size:]] = texts[-size:]
        self.place.fill_((int(self.place) + len(images)) % size)

    # -- matching and writing ---------------------------------------------------------------

    def _matching(
        self, model: Any, ids: Tensor, mask: Tensor, features: Tensor, images: Tensor,
        texts: Tensor, slow_images: Tensor, slow_texts: Tensor, same: Tensor, start: int,
    ) -> Tensor:  # fmt: skip
        """Negatives are drawn by likeness to the slow vectors of every rank's pairs."""
        if bool(same.all(1).any()):
            return images.sum() * 0.0  # a picture whose every pair is its own has no negative
        with torch.no_grad():
            temperature = model.heads.temperature
            to_image = texts @ slow_images.T / temperature
            to_text = images @ slow_texts.T / temperature
        chosen_images, chosen_texts = self.negatives(to_image, to_text, same, start)
        all_features, _ = gather_rows(features)
        all_ids, _ = gather_padded(ids, int(ids[0, 0]))
        all_masks, _ = gather_padded(mask, 0)
        width = max(ids.shape[1], int(all_masks[chosen_texts].sum(1).max()))
        own_ids, own_mask = padded(ids, width), padded(mask, width)
        logits = model.match(
            torch.cat([own_ids, own_ids, all_ids[chosen_texts, :width]]),
            torch.cat([own_mask, own_mask, all_masks[chosen_texts, :width]]),
            torch.cat([features, all_features[chosen_images], features]),
        )
        labels = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        labels[: len(ids)] = 1
        return F.cross_entropy(logits.float(), labels, reduction="sum") / 3

    def negatives(
        self, to_image: Tensor, to_text: Tensor, same: Tensor, start: int
    ) -> tuple[Tensor, Tensor]:
        """For each own text a picture, for each own picture a text, as numbers among all."""
        generator = torch.Generator().manual_seed(0xB11B + int(self.steps))
        size = same.shape[1]
        noise = torch.rand(2, size, size, generator=generator).to(to_image.device)
        noise = noise[:, start : start + len(same)]
        shares = [(x.float().softmax(1) + FLOOR).log() for x in (to_image, to_text)]
        return draw_negatives(shares[0], same, noise[0]), draw_negatives(shares[1], same, noise[1])

    def _writing(self, model: Any, ids: Tensor, mask: Tensor, features: Tensor) -> Tensor:
        labels = ids.masked_fill(mask == 0, IGNORE)[:, 1:]
        kept = labels != IGNORE
        states = model.text.write(ids, mask, features)
        logits = model.text.logits(states[:, :-1][kept]).float()
        loss = F.cross_entropy(
            logits, labels[kept], reduction="sum", label_smoothing=self.config.smoothing
        )
        tokens = total(float(kept.sum()), ids.device)
        return loss * (total(float(len(ids)), ids.device) / max(tokens, 1.0))
