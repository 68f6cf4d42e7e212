"""CLIP and SigLIP: one space for pictures and texts.

CLIP: Radford et al. 2021 (arXiv:2103.00020): an image and a causal text transformer, learned
together on 400 M pairs in batches of 32,768, symmetric cross-entropy, a learned temperature.
Published cost (section 2.5): 12 days on 256 V100 for the largest of its transformers. Published
score (table 11, ImageNet without a label seen): ViT-B/32 63.2 %, ViT-L/14 at 336 pixels 76.2 %.
SigLIP: Zhai et al. 2023 (arXiv:2303.15343): every picture with every text is a question of its
own, so no sum over the batch is needed. Published: with a locked image tower 84.5 % on ImageNet
after two days on four TPUv4 chips (abstract).

Command: `diptych train clip-b32` (or siglip-b16) on your own pairs; `diptych train clip-small` on
the picture corpus (`diptych data pictures pictures`) on two cores; docs/clip.md has its scores.
"""

from __future__ import annotations

from typing import Any

from diptych.data.pixels.augment import Augment
from diptych.data.pixels.preprocessing import Preprocessing
from diptych.model.architectures.dual_encoder import DualEncoderConfig
from diptych.model.text_encoder import TextEncoderConfig
from diptych.model.trainable import Learn
from diptych.model.vision_encoder import VisionEncoderConfig
from diptych.recipe import EvaluationConfig, Recipe
from diptych.train.stage import DataConfig, Schedule, Stage

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
EVERYTHING = {"vision_encoder": Learn(), "text_encoder": Learn(), "space": Learn()}


def clip_b32() -> Recipe:
    """CLIP ViT-B/32 at paper size, on pairs of your own (pairs/train.jsonl)."""
    vision = {"model_type": "clip_vision_model", **_BASE, "image_size": 224, "patch_size": 32}
    image = Preprocessing(
        resize="shortest_edge", size=(224, 224), crop=(224, 224), mean=_MEAN, std=_STD
    )
    model = DualEncoderConfig(
        vision_encoder=VisionEncoderConfig(config=vision, image=image),
        text_encoder=TextEncoderConfig(
            config={"model_type": "clip_text_model", "vocab_size": 49408},
            tokenizer="openai/clip-vit-base-patch32",
        ),
        dim=512,
    )
    # 32,768 pairs learn from each other in the memory of 1,024.
    stage = _pretrain(
        {"name": "contrastive", "chunk_size": 1024},
        learning_rate=5e-4,
        betas=(0.9, 0.98),
        epsilon=1e-6,
        weight_decay=0.2,
        schedule=Schedule(warmup_share=0.005),
    )
    return _recipe("clip-b32", model, stage, "pairs")


def siglip_b16() -> Recipe:
    """SigLIP B/16 at paper size, on pairs of your own (pairs/train.jsonl)."""
    vision = {"model_type": "siglip_vision_model", **_BASE, "image_size": 224, "patch_size": 16}
    model = DualEncoderConfig(
        vision_encoder=VisionEncoderConfig(
            config=vision, image=Preprocessing(resize="exact", size=(224, 224))
        ),
        text_encoder=TextEncoderConfig(
            config={"model_type": "siglip_text_model", **_BASE, "vocab_size": 32000},
            tokenizer="google/siglip-base-patch16-224",
            pad_to_max=True,
        ),
        dim=None,
        temperature=0.1,
        bias=-10.0,
        min_temperature=None,
    )
    stage = _pretrain(
        {"name": "sigmoid", "chunk_size": 1024},
        learning_rate=1e-3,
        betas=(0.9, 0.95),
        weight_decay=1e-4,
        schedule=Schedule(warmup_share=0.05),
    )
    return _recipe("siglip-b16", model, stage, "pairs")


def clip_small() -> Recipe:
    """A small CLIP from scratch on the picture corpus, in minutes on two cores."""
    model = DualEncoderConfig(
        vision_encoder=VisionEncoderConfig(
            config={
                "model_type": "diptych_conv",
                "fold": 2,
                "hidden_sizes": [48, 96, 192, 256],
                "depths": [1, 1, 2, 2],
            },
            image=Preprocessing(resize="exact", size=(96, 96)),
        ),
        text_encoder=TextEncoderConfig(
            config={
                "model_type": "bert",
                "hidden_size": 256,
                "intermediate_size": 512,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "max_position_embeddings": 64,
                "vocab_size": 4096,
            },
            tokenizer="data",
            pool="mean",
        ),
        image_pool="mean",
        dim=256,
    )
    stage = Stage(
        name="pretrain",
        objective="contrastive",
        data=(DataConfig(path="pictures/train.jsonl"),),
        learn=EVERYTHING,
        num_epochs=16,
        global_batch_size=256,
        learning_rate=1e-3,
        betas=(0.9, 0.98),
        weight_decay=0.2,
        schedule=Schedule(warmup_share=0.05),
        augment=Augment(min_area=0.6, flip=0.5),
        precision="bf16",
        long_samples="truncate",
    )
    return _recipe("clip-small", model, stage, "pictures")


def clip_debug() -> Recipe:
    """A CLIP of a few thousand weights on two dozen pairs, for tests."""
    size = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    recipe = clip_small()
    model = DualEncoderConfig(
        vision_encoder=VisionEncoderConfig(
            config={"model_type": "clip_vision_model", **size, "image_size": 32, "patch_size": 8},
            image=Preprocessing(resize="exact", size=(32, 32)),
        ),
        text_encoder=TextEncoderConfig(
            config={
                "model_type": "clip_text_model",
                **size,
                "max_position_embeddings": 32,
                "vocab_size": 512,
            },
            tokenizer="data",
        ),
        dim=16,
    )
    (stage,) = recipe.stages
    stage = stage.model_copy(
        update={
            "num_steps": 12,
            "learning_rate": 1e-2,
            "augment": None,
            "global_batch_size": 8,
            "num_workers": 0,
            "precision": "float32",
        }
    )
    return recipe.model_copy(update={"name": "clip-debug", "model": model, "stages": (stage,)})


_BASE: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
"""Sizes of a base transformer."""


def _pretrain(objective: dict[str, Any], **settings: Any) -> Stage:
    """What CLIP and SigLIP have in common at paper size."""
    return Stage(
        name="pretrain",
        objective=objective,
        data=(DataConfig(path="pairs/train.jsonl"),),
        learn=EVERYTHING,
        num_epochs=32,
        global_batch_size=32_768,
        augment=Augment(min_area=0.9),
        precision="bf16",
        long_samples="truncate",
        **settings,
    )


def _recipe(name: str, model: DualEncoderConfig, stage: Stage, folder: str) -> Recipe:
    data = DataConfig(path=f"{folder}/test.jsonl")
    evaluation = EvaluationConfig(data=data, metric="exact", how="retrieval")
    return Recipe(name=name, model=model, stages=(stage,), evaluation=evaluation)
