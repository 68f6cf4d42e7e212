"""What the BLIP-2 layouts share: the image encoder, and the queries that read it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from diptych.convert.probes import matched
from diptych.errors import ConfigError


def refuse_other_encoders(model: Any) -> None:
    """The classes hold one kind of encoder, read before its last norm.

    Raises:
        ConfigError: the model has another.
    """
    encoder = model.vision_encoder
    reads = (encoder.config.layer, encoder.config.features)
    if encoder.hf_config.model_type != "blip_2_vision_model" or reads != (-1, "full"):
        raise ConfigError(
            "the layout holds a blip_2_vision_model read before its last norm (layer: -1, "
            f"features: full), this model has a {encoder.hf_config.model_type} with {reads}",
            where="model.vision_encoder",
            fix="compose it so, or keep the Diptych folder",
        )


def pairs_of_queries(model: Any, former: Any, theirs: Any) -> list[tuple[Tensor, Tensor]]:
    """Tensors of encoder, norm, queries and layers with those of `theirs` that they are.

    LAVIS's norm of image features is the last norm of the class's encoder.

    Args:
        former: the part that has queries, a query former or a connector.
    """
    vision = model.vision_encoder.module
    found = [
        (own, its)
        for (name, own), (_, its) in zip(
            vision.named_parameters(), theirs.vision_model.named_parameters(), strict=True
        )
        if not name.startswith("post_layernorm.")
    ]
    found += matched(former.image_norm, theirs.vision_model.post_layernorm)
    found.append((former.queries[None], theirs.query_tokens))
    return found + matched(former.module, theirs.qformer)
