"""`diptych show RECIPE --plan`: what a run will take, before any weights are downloaded.

Everything is built on the meta device, so shapes and counts are exact and no memory is used.
Estimates say what they assume.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from diptych.cli.sketch import meta_model
from diptych.data.sample import Image
from diptych.errors import DiptychError
from diptych.model import trainable
from diptych.model.architecture import Model
from diptych.recipe import Recipe
from diptych.train.stage import Stage

_BYTES = {"float32": 4, "bfloat16": 2}
_QUESTION = 64
"""Tokens of text that a sample of a vision-language model is taken to have beside its picture."""

TYPICAL = (1000, 800)
"""Width and height of the picture that is planned with, where pictures are cut by their size."""


def plan(recipe: Recipe) -> dict[str, Any]:
    """Parameters, tokens, steps, memory and floating-point work of every stage.

    Memory: weights (float32 where they learn in full, else as the recipe keeps them), gradients and
    AdamW moments of what learns, activations of what is computed
    at once, and the logits of one chunk of targets. Activations of text: 64 bytes per token, width
    unit and layer (4 with checkpointing; Korthikanti et al., arXiv:2205.05198, section 4.1, without
    dropout, scores not kept); of pictures, where the encoder learns: what its forward pass keeps;
    bf16 halves both. Work: the encoder's operations as counted, three times where it
    learns; of text 6 per parameter and token, each time that the objective reads it.
    Copies that an objective keeps of the model (BLIP's momentum) and cached features are left out.
    """
    model = meta_model(recipe).eval()
    names = recipe.model.parts
    parts = {name: sum(p.numel() for p in model.part(name).parameters()) for name in names}
    configs = {name: getattr(recipe.model, name, None) for name in names}
    kept_bytes = {n: _BYTES[getattr(configs[n], "dtype", "float32")] for n in names}
    work_of_picture, kept_of_picture = _one_picture(model)
    reader: Any = model.part(recipe.model.text_part)
    text = reader.hf_config.get_text_config()
    tiles, picture_tokens = 1, model.tokens_per_image
    arrangement = getattr(model, "arrangement", None)
    if arrangement is not None and not arrangement.is_fixed:
        typical = arrangement.plans([Image("", size=TYPICAL)])[0]
        tiles, picture_tokens = len(typical), arrangement.num_tokens(typical)
    tokens = model.context_tokens if picture_tokens is None else picture_tokens + _QUESTION
    stages = []
    for stage in recipe.stages:
        groups = trainable.apply(model, stage.learn, stage.learning_rate)
        learning = {g.name: g.num_trainable for g in groups}
        # As `trainable.hold_precision`: what learns in full is float32 while it does.
        full = {name for name, how in stage.learn.items() if how.how == "full"}
        weight_bytes = sum(parts[n] * (4 if n in full else kept_bytes[n]) for n in names)
        adapters = {n: learning[n] for n, how in stage.learn.items() if how.how == "lora"}
        weight_bytes += 4 * sum(adapters.values())
        num_samples = _num_samples(stage)
        steps = stage.num_steps
        if steps is None and num_samples is not None:
            steps = math.ceil(num_samples * (stage.num_epochs or 1) / stage.global_batch_size)
        at_once = _at_once(stage, tokens)
        passes = stage.objective.text_passes
        texts = at_once * tokens * passes * text.hidden_size * text.num_hidden_layers
        kept = texts * (4 if stage.gradient_checkpointing else 64)
        if "vision_encoder" in learning:
            kept += at_once * tiles * kept_of_picture // (16 if stage.gradient_checkpointing else 1)
        kept = kept // 2 if stage.precision == "bf16" else kept
        logits = 3 * 2048 * text.vocab_size * 4 if hasattr(reader, "logits") else 0
        optimizer = sum(learning.values()) * (4 + 8)
        work = None
        if steps is not None:
            pictures = tiles * work_of_picture * (3 if "vision_encoder" in learning else 1)
            others = sum(n for name, n in parts.items() if name != "vision_encoder")
            read = 6 * others * tokens * passes
            work = steps * stage.global_batch_size * (pictures + read)
        stages.append(
            {
                "stage": stage.name,
                "objective": stage.objective.name,
                "trainable": learning,
                "samples": num_samples,
                "steps": steps,
                "memory_bytes": int(weight_bytes + optimizer + kept + logits),
                "floating_point_operations": work,
            }
        )
    return {
        "recipe": recipe.name,
        "fingerprint": recipe.fingerprint(),
        "parameters": {**parts, "total": sum(parts.values())},
        "tokens_per_image": picture_tokens,
        "tokens_per_tile": model.tokens_per_image,
        "tiles_per_image": tiles,
        "picture": list(TYPICAL),
        "tokens_per_text": model.context_tokens if model.tokens_per_image is None else None,
        "image_grid": list(model.vision_encoder.grid),
        "stages": stages,
    }


def _one_picture(model: Model) -> tuple[int, int]:
    """Of the encoder's forward pass: operations, and bytes (float32) kept for the way back."""
    weights = {id(p) for p in model.parameters()}
    kept = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        if id(tensor if tensor._base is None else tensor._base) not in weights:
            kept += tensor.numel() * tensor.element_size()
        return tensor

    height, width = model.preprocessing.image_size
    pixels = torch.zeros(1, 3, height, width, device="meta")
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, FlopCounterMode(display=False) as counter:
        model.encode_pixels(pixels)
    return counter.get_total_flops(), kept


def _at_once(stage: Stage, tokens: int) -> int:
    """Samples whose activations are kept at a time."""
    if stage.objective.packs:
        row = stage.tokens_per_row or 2 * (tokens + _QUESTION)
        return max(1, row * stage.rows_per_batch // tokens)
    return getattr(stage.objective, "chunk_size", None) or stage.global_batch_size


def _num_samples(stage: Stage) -> int | None:
    """Rows of the stage's data where they are local; None where they are not there yet."""
    from diptych.data.format import Reject, read

    total = 0
    for config in stage.data:
        try:
            total += sum(not isinstance(r, Reject) for r in read(config.path, config.format))
        except (DiptychError, OSError):
            return None
    return total
