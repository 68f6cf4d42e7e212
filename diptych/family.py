"""What recipes of several families share: fine-tuning a published model, and miniatures."""

from __future__ import annotations

from typing import Any

from diptych.data.pixels.preprocessing import Preprocessing
from diptych.model.adapters import LoraConfig
from diptych.model.architectures.vlm import VlmConfig
from diptych.model.language_model import LanguageModelConfig
from diptych.model.trainable import Learn
from diptych.model.vision_encoder import VisionEncoderConfig
from diptych.recipe import EvaluationConfig, Recipe, going_on_from
from diptych.train.stage import DataConfig, Schedule, Stage

SIDE = 28
"""Of a miniature's pictures or tiles, in pixels; 4 x 4 patches."""


def instruct_with_lora(
    name: str,
    weights: str,
    *,
    rank: int,
    alpha: float,
    rate: float,
    batch: int,
    context_tokens: int,
    connector: float | None = None,
    weight_decay: float = 0.0,
) -> Recipe:
    """A published model on rows of one's own: `train.json` and `test.json` with `images`.

    Args:
        rate: of the adapters on the language model.
        connector: its rate; None lets it rest.
    """
    lora = LoraConfig(rank=rank, alpha=alpha, dropout=0.05)
    learn = {"language_model": Learn(how="lora", learning_rate=rate, lora=lora)}
    if connector is not None:
        learn["connector"] = Learn(learning_rate=connector)
    stage = Stage(
        name="instruct",
        data=(DataConfig(path="train.json", images="images"),),
        learn=learn,
        global_batch_size=batch,
        schedule=Schedule(shape="cosine", warmup_share=0.03),
        weight_decay=weight_decay,
        precision="bf16",
        gradient_checkpointing=True,
        context_tokens=context_tokens,
        long_samples="truncate",
    )
    return Recipe(
        name=name,
        model=going_on_from(weights),
        stages=(stage,),
        evaluation=EvaluationConfig(data=DataConfig(path="test.json", images="images")),
    )


def small_vlm(
    connector: str,
    image: Preprocessing,
    *,
    template: str,
    layer: int | None = None,
    marks: tuple[str, str] | None = None,
) -> VlmConfig:
    """A vision-language model of a few thousand weights, from scratch."""
    encoder: dict[str, Any] = {
        "model_type": "clip_vision_model",
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": SIDE // 4,
    }
    text: dict[str, Any] = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
    }
    return VlmConfig(
        vision_encoder=VisionEncoderConfig(config=encoder, layer=layer, image=image),
        connector={"name": connector},
        language_model=LanguageModelConfig(
            config=text, tokenizer="tokenizer", template=template, picture_marks=marks
        ),
    )


def small_stages(*, learn_encoder: bool = False) -> tuple[Stage, Stage]:
    """Connector first, then everything, in sixteen steps."""
    shared: dict[str, Any] = {
        "data": (DataConfig(path="train.json", images="images"),),
        "global_batch_size": 16,
        "num_workers": 0,
    }
    align = Stage(
        name="align", learn={"connector": Learn()}, num_steps=4, learning_rate=1e-3, **shared
    )
    learn = {"connector": Learn(), "language_model": Learn()}
    if learn_encoder:
        learn["vision_encoder"] = Learn()
    return align, Stage(name="instruct", learn=learn, num_steps=16, learning_rate=5e-3, **shared)
