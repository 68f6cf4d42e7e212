"""BLIP: one model that compares, checks and writes captions.

Li et al. 2022 (arXiv:2201.12086). A vision transformer and a BERT-base used in three ways that
share all but self-attention; contrast with a momentum copy and a queue of 57,600, matching with
hard negatives, captioning. Published (section 4.1): two nodes of sixteen GPUs, 20 epochs, batches
of 2,880 (ViT-B) or 2,400 (ViT-L), weight decay 0.05, rate 3e-4 or 2e-4, then down by 0.85 an
epoch; 224 x 224 pixels. Published scores (LAVIS, fine-tuned on COCO): text retrieval at 1 82.0,
image retrieval at 1 64.5.

Command: `diptych train blip-small` on the picture corpus (`diptych data pictures pictures`);
`diptych train blip-base` at paper size on pairs of your own (pairs/train.jsonl).
"""

from __future__ import annotations

from typing import Any

from diptych.data.pixels.augment import Augment
from diptych.data.pixels.preprocessing import Preprocessing
from diptych.model.architectures.answerer import AnswererConfig
from diptych.model.architectures.captioner import CaptionerConfig
from diptych.model.text_mixture import TextMixtureConfig
from diptych.model.trainable import Learn
from diptych.model.vision_encoder import VisionEncoderConfig
from diptych.recipe import CHAINED, EvaluationConfig, Recipe
from diptych.train.stage import DataConfig, Schedule, Stage

EVERYTHING = {"vision_encoder": Learn(), "text": Learn(), "heads": Learn()}


def blip_base() -> Recipe:
    """BLIP ViT-B/16 at paper size, on pairs of your own (pairs/train.jsonl)."""
    model = CaptionerConfig(
        vision_encoder=VisionEncoderConfig(
            weights="google/vit-base-patch16-224-in21k",
            features="full",
            image=Preprocessing(
                resize="exact",
                size=(224, 224),
                mean=(0.48145466, 0.4578275, 0.40821073),
                std=(0.26862954, 0.26130258, 0.27577711),
            ),
        ),
        text=TextMixtureConfig(weights="google-bert/bert-base-uncased"),
    )
    stage = _pretrain(
        "pairs",
        {"name": "blip", "queue_size": 57_600, "alpha_ramp_steps": 10_000},
        num_epochs=20,
        global_batch_size=2880,
        learning_rate=3e-4,
    )
    # The paper re-ranks 256 on COCO.
    return _recipe("blip-base", model, stage, "pairs", rerank=256)


def blip_vqa() -> Recipe:
    """Questions (VQA v2 in vqa/), behind blip-base: ten epochs at 480 pixels in the paper.

    Published (section 5.3, table 8): VQAv2 test-dev 77.54 with 14 M pretraining images, 78.25 with
    129 M and CapFilt.
    """
    model = AnswererConfig(
        vision_encoder=VisionEncoderConfig(weights=f"{CHAINED}blip-base", features="full"),
        text=TextMixtureConfig(weights=f"{CHAINED}blip-base", max_tokens=35),
    )
    stage = _answering("vqa", num_epochs=10, global_batch_size=256, learning_rate=2e-5)
    evaluation = EvaluationConfig(
        data=DataConfig(path="vqa/test.jsonl"), metric="vqa_official", max_new_tokens=10
    )
    return Recipe(name="blip-vqa", model=model, stages=(stage,), evaluation=evaluation)


def blip_vqa_debug() -> Recipe:
    """An answerer of a few thousand weights, for tests."""
    stage = _answering(
        "vqa",
        num_steps=30,
        global_batch_size=8,
        learning_rate=1e-2,
        num_workers=0,
        precision="float32",
    )
    return Recipe(
        name="blip-vqa-debug",
        model=AnswererConfig(**_debug_parts()),
        stages=(stage,),
        evaluation=EvaluationConfig(data=DataConfig(path="vqa/test.jsonl"), max_new_tokens=10),
    )


def _debug_parts() -> dict[str, Any]:
    size = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    vision = {"model_type": "clip_vision_model", **size, "image_size": 32, "patch_size": 8}
    return {
        "vision_encoder": VisionEncoderConfig(
            config=vision,
            features="full",
            image=Preprocessing(resize="exact", size=(32, 32)),
        ),
        "text": TextMixtureConfig(
            config={**size, "vocab_size": 512, "max_position_embeddings": 40},
            tokenizer="data",
            dropout=0.0,
        ),
    }


def _answering(folder: str, **settings: Any) -> Stage:
    return Stage(
        **{
            "name": "answer",
            "objective": "answer",
            "data": (DataConfig(path=f"{folder}/train.jsonl"),),
            "learn": {"vision_encoder": Learn(), "text": Learn()},
            "weight_decay": 0.05,
            "schedule": Schedule(warmup_share=0.02),
            "precision": "bf16",
            "long_samples": "truncate",
            **settings,
        }
    )


def blip_small() -> Recipe:
    """BLIP on the picture corpus in minutes: clip-small's encoder, MiniLM's layers."""
    model = CaptionerConfig(
        vision_encoder=VisionEncoderConfig(weights=f"{CHAINED}clip-small"),
        text=TextMixtureConfig(
            weights="sentence-transformers/all-MiniLM-L6-v2", max_tokens=20, dropout=0.0
        ),
    )
    stage = _pretrain(
        "pictures",
        {"name": "blip", "queue_size": 1024, "alpha_ramp_steps": 280},
        num_epochs=2,
        global_batch_size=64,
        learning_rate=3e-4,
        learn={**EVERYTHING, "vision_encoder": Learn(learning_rate=1e-4)},
    )
    # No re-ranking: matching has learned too little in minutes to know better than likeness.
    return _recipe("blip-small", model, stage, "pictures")


def blip_debug() -> Recipe:
    """A BLIP of a few thousand weights, for tests."""
    model = CaptionerConfig(**_debug_parts(), dim=16)
    stage = _pretrain(
        "pictures",
        {"name": "blip", "queue_size": 16, "alpha_ramp_steps": 4},
        num_steps=12,
        global_batch_size=8,
        learning_rate=1e-2,
        num_workers=0,
        precision="float32",
        augment=None,
    )
    return _recipe("blip-debug", model, stage, "pictures", rerank=16)


def _pretrain(folder: str, objective: dict[str, Any], **settings: Any) -> Stage:
    return Stage(
        **{
            "name": "pretrain",
            "objective": objective,
            "data": (DataConfig(path=f"{folder}/train.jsonl"),),
            "learn": EVERYTHING,
            "betas": (0.9, 0.98),
            "weight_decay": 0.05,
            "schedule": Schedule(warmup_share=0.02),
            "augment": Augment(min_area=0.5, flip=0.0),
            "precision": "bf16",
            "long_samples": "truncate",
            **settings,
        }
    )


def _recipe(
    name: str, model: CaptionerConfig, stage: Stage, folder: str, rerank: int | None = None
) -> Recipe:
    data = DataConfig(path=f"{folder}/test.jsonl")
    evaluation = EvaluationConfig(data=data, how="retrieval", rerank=rerank)
    return Recipe(name=name, model=model, stages=(stage,), evaluation=evaluation)
