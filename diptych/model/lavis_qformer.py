"""A Q-Former's weights in LAVIS: their names, and the sizes that they tell.

Source: salesforce/LAVIS, models/blip2_models (Qformer.py, blip2_qformer.py).
Parity: tests/conformance/test_lavis_qformer_stage1.py, tests/parity/test_lavis_blip2.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from diptych.errors import CheckpointError

_HEAD = {
    "bias": "output_bias",
    "transform.dense.weight": "transform.weight",
    "transform.dense.bias": "transform.bias",
    "transform.LayerNorm.weight": "transform_norm.weight",
    "transform.LayerNorm.bias": "transform_norm.bias",
    # Tied to the word embeddings and to `bias`.
    "decoder.weight": "",
    "decoder.bias": "",
}


def own_name(name: str) -> str | None:
    """LAVIS's name of a weight -> its name in a QueryFormer.

    "" for a tied copy or a buffer, None for what belongs to something else.
    """
    if name == "query_tokens":
        return "queries"
    part, _, rest = name.partition(".")
    if part == "ln_vision":
        return f"image_norm.{rest}"
    if part != "Qformer":
        return None
    if rest.startswith("cls.predictions."):
        return _HEAD.get(rest.removeprefix("cls.predictions."))
    if not rest.startswith("bert."):
        return None
    rest = rest.removeprefix("bert.")
    if rest.startswith("embeddings.LayerNorm."):
        return f"module.layernorm.{rest.rsplit('.', 1)[-1]}"
    if rest.startswith("embeddings."):
        return "" if rest.endswith("position_ids") else rest
    rest = rest.replace(".attention.self.", ".attention.attention.")
    return f"module.{rest.replace('.crossattention.self.', '.crossattention.attention.')}"


_PROJECTIONS = ("opt_proj.", "t5_proj.", "llm_proj.")
HEAD_DIM = 64
"""Width of an attention head in every published Q-Former."""


def read(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors -> those of its Q-Former in float32, by their names here.

    The layer to the language model (stage 2) is `projection`.
    """
    found = {}
    for name, tensor in tensors.items():
        ours = own_name(name)
        if name.startswith(_PROJECTIONS):
            ours = f"projection.{name.partition('.')[2]}"
        if ours:
            found[ours] = tensor.float()
    if "queries" in found:
        found["queries"] = found["queries"].reshape(found["queries"].shape[-2:])
    return found


def is_stage_2(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the checkpoint has a layer to a language model."""
    return any(name.startswith(_PROJECTIONS) for name in tensors)


def sizes(found: Mapping[str, Tensor], file: Path) -> dict[str, Any]:
    """Sizes of a Blip2QFormerConfig from what `read` gives.

    Raises:
        CheckpointError: a weight that tells a size is missing.
    """
    layers = "module.encoder.layer."
    numbers = {int(n[len(layers) :].split(".")[0]) for n in found if n.startswith(layers)}
    crossing = sorted(
        n for n in numbers if f"{layers}{n}.crossattention.output.dense.weight" in found
    )
    needed = ("queries", f"{layers}0.intermediate_query.dense.weight", "image_norm.weight")
    missing = [name for name in needed if name not in found]
    if missing or not crossing:
        raise CheckpointError(
            f"there is no Q-Former in it ({missing[0] if missing else 'cross-attention'} is "
            "missing)",
            where=str(file),
            fix="name a BLIP-2 checkpoint of LAVIS",
        )
    width = found["queries"].shape[1]
    return {
        "hidden_size": width,
        "intermediate_size": found[needed[1]].shape[0],
        "num_hidden_layers": len(numbers),
        "num_attention_heads": max(1, width // HEAD_DIM),
        "layer_norm_eps": 1e-12,
        "encoder_hidden_size": len(found["image_norm.weight"]),
        "cross_attention_frequency": (
            crossing[1] - crossing[0] if len(crossing) > 1 else len(numbers)
        ),
    }
