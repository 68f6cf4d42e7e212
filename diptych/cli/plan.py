"""`diptych show RECIPE --plan`: what a run will take, before anything is downloaded.

Everything is built on the meta device, so shapes and counts are exact and no memory is used.
Estimates say what they assume.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch

from diptych.errors import ConfigError, DiptychError
from diptych.model import trainable, vision_encoder
from diptych.model.architectures.vlm import Vlm
from diptych.model.language_model import LanguageModel, LanguageModelConfig
from diptych.model.vision_encoder import VisionEncoder, config_from_dict
from diptych.model.weights import PACKAGES
from diptych.recipe import Recipe

_BYTES = {"float32": 4, "bfloat16": 2}


class _NoTokenizer:
    """Stands where a tokenizer would be; a plan never encodes text."""


def meta_model(recipe: Recipe) -> Vlm:
    """The recipe's model on the meta device.

    Raises:
        WeightsNotFound: the config of pretrained weights is neither local nor reachable.
    """
    config = recipe.model
    if config.name != "vlm":
        raise ConfigError(
            f"plans are made for vision-language models, this is a {config.name}",
            where=f"recipe {recipe.name}",
            fix="leave out --plan, or try a few steps: --set stages.NAME.num_steps=10",
        )
    encoder_config, encoder_hf = vision_encoder.resolve(config.vision_encoder)
    with torch.device("meta"), _quiet():
        from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

        module = vision_encoder.class_of(encoder_hf)._from_config(encoder_hf)
        encoder = VisionEncoder(encoder_config, encoder_hf, module)
        text_hf = _text_config(config.language_model)
        kind = AutoModelForSeq2SeqLM if text_hf.is_encoder_decoder else AutoModelForCausalLM
        module = kind.from_config(text_hf)
        language_model = LanguageModel(module, _NoTokenizer())
        connector = config.connector.build(encoder.dim, language_model.dim)
    return Vlm(config, encoder, connector, language_model)


def _text_config(config: LanguageModelConfig) -> Any:
    from transformers import AutoConfig

    from diptych.model.weights import locate

    source = config.weights or config.tokenizer
    known = PACKAGES.get(source or "")
    if config.config is not None and config.weights is None:
        values = dict(config.config)
        if "vocab_size" not in values:
            # A tokenizer's size decides; a known package says it without a download.
            if known is not None and known.config:
                values["vocab_size"] = known.config["vocab_size"]
            else:
                from diptych.model.language_model import resolve

                return resolve(config)[0]
        return config_from_dict(values, "model.language_model.config")
    if known is not None and known.config:
        return config_from_dict(known.config, "model.language_model.weights")
    return AutoConfig.from_pretrained(locate(str(config.weights)))


def plan(recipe: Recipe) -> dict[str, Any]:
    """Parameters, tokens, steps, memory and floating-point work of every stage.

    Memory: weights, gradients and AdamW moments of what learns, plus activations of one
    micro-batch (34 bytes per token, width unit and layer without checkpointing, 2 with it),
    plus the logits of one chunk of targets. Work: 2 operations per parameter and token forward,
    4 backward through everything above the lowest part that learns.
    """
    model = meta_model(recipe)
    names = recipe.model.parts
    parts = {name: sum(p.numel() for p in model.part(name).parameters()) for name in names}
    dtypes = {
        "vision_encoder": recipe.model.vision_encoder.dtype,
        "connector": "float32",
        "language_model": recipe.model.language_model.dtype,
    }
    weight_bytes = sum(parts[n] * _BYTES[dtypes[n]] for n in names)
    encoder_tokens = math.prod(model.vision_encoder.grid) + model.vision_encoder.num_prefix
    text = model.language_model.hf_config.get_text_config()
    width, layers = text.hidden_size, text.num_hidden_layers
    stages = []
    for stage in recipe.stages:
        groups = trainable.apply(model, stage.learn, stage.learning_rate)
        learning = {g.name: g.num_trainable for g in groups}
        num_samples = _num_samples(stage)
        steps = stage.num_steps
        if steps is None and num_samples is not None:
            steps = math.ceil(num_samples * (stage.num_epochs or 1) / stage.global_batch_size)
        row_tokens = stage.tokens_per_row or 2 * (model.tokens_per_image + 128)
        batch_tokens = row_tokens * stage.rows_per_batch
        per_token = 2 if stage.gradient_checkpointing else 34
        halved = 2 if stage.precision == "bf16" else 1
        activations = batch_tokens * width * layers * per_token // halved
        logits = 3 * 2048 * text.vocab_size * 4
        optimizer = sum(learning.values()) * (4 + 8)
        tokens_per_sample = model.tokens_per_image + 64
        work = None
        if steps is not None:
            samples = steps * stage.global_batch_size
            text_work = (2 + 4) * (parts["language_model"] + parts["connector"] / 1)
            image_work = (6 if "vision_encoder" in learning else 2) * parts["vision_encoder"]
            work = samples * (text_work * tokens_per_sample + image_work * encoder_tokens)
        stages.append(
            {
                "stage": stage.name,
                "objective": stage.objective.name,
                "trainable": learning,
                "samples": num_samples,
                "steps": steps,
                "memory_bytes": int(weight_bytes + optimizer + activations + logits),
                "floating_point_operations": work,
            }
        )
    return {
        "recipe": recipe.name,
        "fingerprint": recipe.fingerprint(),
        "parameters": {**parts, "total": sum(parts.values())},
        "tokens_per_image": model.tokens_per_image,
        "image_grid": list(model.vision_encoder.grid),
        "stages": stages,
    }


def _num_samples(stage: Any) -> int | None:
    """Rows of the stage's data where they are local; None where they are not there yet."""
    from diptych.data.format import Reject, read

    total = 0
    for config in stage.data:
        try:
            total += sum(not isinstance(r, Reject) for r in read(config.path, config.format))
        except (DiptychError, OSError):
            return None
    return total


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    import logging

    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
