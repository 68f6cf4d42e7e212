"""Every picture with every text, a yes-or-no question each (SigLIP)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from diptych.config import SAME_RESULT
from diptych.errors import ConfigError
from diptych.model.architectures.dual_encoder import DualEncoder
from diptych.train.objective import PAIRS, Objective, ObjectiveConfig
from diptych.train.pair_losses import sigmoid_loss
from diptych.train.pairs import Pairs


class Config(ObjectiveConfig):
    """Pairwise sigmoid loss of a dual encoder with a bias.

    Source: SigLIP, section 3.2 (arXiv:2303.15343).
    """

    budget: ClassVar[tuple[str, ...]] = PAIRS

    name: str = "sigmoid"
    """File stem of the part."""
    chunk_size: int | None = Field(default=None, ge=1, json_schema_extra=SAME_RESULT)
    """Pairs that are embedded at once (gradient caching), as for `contrastive`."""

    def build(self, model: nn.Module) -> Objective:
        if not isinstance(model, DualEncoder) or model.space.bias is None:
            raise ConfigError(
                "the sigmoid objective needs a dual encoder with a bias",
                where="model",
                fix="set model.name=dual_encoder and model.bias=-10",
            )
        return Pairs("sigmoid", sigmoid_loss_of, self.chunk_size)


def sigmoid_loss_of(model: DualEncoder, images: Tensor, texts: Tensor) -> Tensor:
    """SigLIP's loss in the space of a dual encoder."""
    assert model.space.bias is not None, "checked when the objective was built"
    return sigmoid_loss(images, texts, model.space.scale(), model.space.bias)
