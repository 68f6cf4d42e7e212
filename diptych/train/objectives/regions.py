"""What stands where: every token of the picture tells the words it shows.

Teaches a new encoder to read and to tell colours before anything must be said about them, and
gives the tokens that the language model will receive the meaning of its own words. A language
model's answers are a thin signal for that (some ten tokens a picture, all through its attention,
which has to be learned too); here every place of the picture learns for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from diptych.data.batching.batch import Batch
from diptych.data.batching.budget import Budget
from diptych.data.batching.collate import Collator
from diptych.data.batching.picture_loader import PictureLoader
from diptych.data.batching.regions import RegionCollator
from diptych.errors import ConfigError
from diptych.model.connectors.words import SCALE, Words
from diptych.model.tuning import tuned
from diptych.train.objective import Objective, ObjectiveConfig

CHOICE = 0.5
"""Weight of scoring a place that a connector shall pass on or leave out."""
EMPTY_EVERY = 3
"""Of so many places without letters one is asked: scores of a thousand letters cost time."""
CLASSES = 1021
"""Letters are told by code point modulo this prime: enough for the few hundred of a data set to be
told apart, with no list of them to keep."""


class Config(ObjectiveConfig):
    """Predict the words of the regions at every token of the picture."""

    learns: ClassVar[bool] = True
    text_passes: ClassVar[int] = 0  # words are compared with embeddings alone

    name: str = "regions"
    """File stem of the part."""
    empty_weight: float = Field(default=0.1, ge=0)
    """Weight of places that show nothing; there are many of them."""
    letters_weight: float = Field(default=0.0, ge=0)
    """Weight of telling single letters at the encoder's two stages before the last, for
    convolutional encoders: a few hundred letters are learned sooner than thousands of words, and
    words are made of them."""

    def build(self, model: nn.Module) -> Objective:
        return Regions(self, model)


class Regions(Objective):
    """Cross-entropy at every token of the picture with the words it shows.

    The connector's output is compared with the language model's own embeddings, so that what a
    picture's token says and what the language model reads and writes share one space from the
    start; the embeddings learn in this stage when it lets the language model learn. A connector
    that tells words itself (`words`) is taught those instead, by a table of its own. At one place,
    what is written and what else is told of it count half each. Places that no region covers learn
    a class of their own, "nothing". A connector that tells words learns to pass on
    the place under the centre of every region. The weight is the number of covered places plus
    `empty_weight` times that of the others.

    Shapes: features [V, N, C] -> tokens [V, K, D] -> logits [V * K, vocabulary + 1].
    Source: reading all text as pre-training is Donut's (arXiv:2111.15664, section 3.2); telling
    it at its place, instead of in one long sequence, is ours. Letters at earlier stages are deep
    supervision (Lee et al., arXiv:1409.5185).
    """

    def __init__(self, config: Config, model: Any):
        super().__init__()
        encoder = model.vision_encoder
        image = encoder.preprocessing
        if image.resize != "exact" or image.crop is not None or image.pad_to_square:
            raise ConfigError(
                "regions are told in fractions of the whole picture",
                where="model.vision_encoder.image",
                fix="use resize: exact without crop or pad_to_square for this objective",
            )
        connector = model.config.connector
        grid = connector.token_grid(encoder.grid)
        if grid is None:
            raise ConfigError(
                f"the tokens of the connector {connector.name} stand for no place in the picture",
                where="model.connector",
                fix="use linear, mlp, downsample or pixel_shuffle with this objective",
            )
        self.grid: tuple[int, int] = grid
        self.num_prefix = 0
        if not isinstance(model.connector, Words):
            num_tokens = connector.num_tokens(encoder.grid, encoder.num_prefix)
            self.num_prefix = num_tokens - grid[0] * grid[1]
        self.empty_weight = config.empty_weight
        self.letters_weight = config.letters_weight
        self.size = tuned(model.device).size
        table = model.language_model.embeddings
        self.nothing = len(table)
        if not isinstance(model.connector, Words):
            self.empty = nn.Parameter(torch.zeros(table.shape[1]))
            self.bias = nn.Parameter(torch.zeros(self.nothing + 1))
            self.scale = nn.Parameter(torch.tensor(SCALE))
        self.spellers = nn.ModuleList()
        if self.letters_weight:
            if not encoder.is_convolutional:
                raise ConfigError(
                    "single letters are told at the stages of a convolutional encoder",
                    where="objective.letters_weight",
                    fix="set it to 0 for vision transformers",
                )
            widths = encoder.hf_config.hidden_sizes[-3:-1]
            self.spellers.extend(nn.Linear(width, CLASSES + 1) for width in widths)

    def collator(self, model: Any, budget: Budget, pictures: PictureLoader) -> Collator:
        return RegionCollator(model.tokenizer, self.grid, self.num_prefix, pictures)

    def forward(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        losses = {}
        if batch.features is not None:
            features = batch.features
        elif self.spellers:
            *earlier, last = model.vision_encoder.stages(batch.pixel_values)
            features = last.flatten(2).transpose(1, 2)
            losses["letters"] = self.letters_weight * self._letters(earlier[-2:], batch)
        else:
            features = model.encode_pixels(batch.pixel_values)
        if isinstance(model.connector, Words):
            scores, kept = model.connector.told(features, model.vision_encoder.grid)
            wanted = torch.zeros_like(kept).flatten().index_fill_(0, batch.extra["centres"], 1.0)
            losses["kept"] = CHOICE * functional.binary_cross_entropy_with_logits(
                kept.flatten().float(), wanted.float(), reduction="sum"
            )
        else:
            # What all words share tells none of them.
            table = model.language_model.embeddings
            words = torch.cat([table - table.mean(0), self.empty[None]])
            tokens = model.tile_tokens(features)
            scores = tokens @ words.to(tokens).T * self.scale + self.bias
        scores = scores.flatten(0, 1).float().log_softmax(-1)
        shown = torch.bincount(batch.target_positions, minlength=len(scores))
        empty = (shown == 0).nonzero().squeeze(1)
        where = torch.cat([batch.target_positions, empty])
        what = torch.cat([batch.target_ids, torch.full_like(empty, self.nothing)])
        much = batch.extra["target_shares"]
        much = torch.cat([much, much.new_full(empty.shape, self.empty_weight)])
        return {"regions": -(scores[where, what] * much).sum(), **losses}

    def _letters(self, stages: Sequence[Tensor], batch: Batch) -> Tensor:
        """Sum over stages and places of -log p of the letters there, in equal shares.

        Of the places without any, most, one in `EMPTY_EVERY` counts for all.
        """
        picture, x, y, code = batch.extra["letters"].unbind(1)
        total = torch.zeros((), device=picture.device)
        written = torch.bincount(picture.long(), minlength=len(batch.image_keys))
        for stage, speller in zip(stages, self.spellers, strict=True):
            rows, columns = stage.shape[2:]
            place = (picture * rows + (y * rows).clamp(0, rows - 1).floor()) * columns
            place = (place + (x * columns).clamp(0, columns - 1).floor()).long()
            every = torch.arange(len(written) * rows * columns, device=place.device)
            shown = torch.bincount(place, minlength=len(every))
            # Which ones, every picture has its own way, wherever it stands in a step.
            turn = (every + written.repeat_interleave(rows * columns)) % EMPTY_EVERY == 0
            asked = ((shown > 0) | turn).nonzero().squeeze(1)
            padded = nn.functional.pad(asked, (0, self.size(len(asked)) - len(asked)))
            scores = speller(stage.flatten(2).transpose(1, 2).flatten(0, 1)[padded])
            scores = scores[: len(asked)].float().log_softmax(-1)
            picked = scores[torch.searchsorted(asked, place), code.long() % CLASSES]
            nothing = -scores[shown[asked] == 0, CLASSES].sum()
            total = total - (picked / shown[place]).sum()
            total = total + self.empty_weight * EMPTY_EVERY * nothing
        return total

    def weight(self, batch: Batch) -> float:
        covered = len(batch.target_positions.unique())
        empty = len(batch.image_keys) * (self.num_prefix + self.grid[0] * self.grid[1]) - covered
        return covered + self.empty_weight * empty
