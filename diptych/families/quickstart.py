"""Quickstart: a small model that learns to read charts on a laptop.

Command: `diptych quickstart`.
An image encoder and a language model from scratch, joined by a two-layer connector: first the
encoder learns to see against sentence embeddings of descriptions (`align`), then everything
learns to answer (`instruct`). docs/quickstart.md has the compositions that were tried, with
their scores and times.
"""

from __future__ import annotations

from diptych.data.image import Preprocessing
from diptych.model.language_model import LanguageModelConfig
from diptych.model.trainable import Learn
from diptych.model.vision_encoder import VisionEncoderConfig
from diptych.model.vlm import LoraConfig, VlmConfig
from diptych.recipe import EvaluationConfig, Recipe
from diptych.train.stage import DataConfig, Schedule, Stage

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
VOCAB_SIZE = 2048
"""Tokens of the tokenizer that is trained on the data: a small model's work is mostly its output
layer, and SmolLM2's vocabulary is twenty-four times as large."""


def quickstart() -> Recipe:
    """Learn charts from scratch in minutes: ResNet, MLP, small Llama."""
    return on_data(
        "quickstart",
        train=DataConfig(path="charts/train.json", images="charts/images"),
        captions=DataConfig(path="charts/captions_train.json", images="charts/images"),
        test=DataConfig(path="charts/test.json", images="charts/images"),
    )


def quickstart_smollm2() -> Recipe:
    """The same encoder in front of SmolLM2-135M with LoRA: knows language, learns slower."""
    recipe = quickstart()
    model = recipe.model.model_copy(
        update={"language_model": LanguageModelConfig(weights=SMOLLM2, dtype="bfloat16")}
    )
    align, instruct = recipe.stages
    learn = {
        "vision_encoder": Learn(learning_rate=5e-4),
        "connector": Learn(learning_rate=1e-3),
        "language_model": Learn(how="lora", learning_rate=1e-3, lora=LoraConfig(rank=16)),
    }
    return recipe.model_copy(
        update={
            "name": "quickstart-smollm2",
            "model": model,
            "stages": (align, instruct.model_copy(update={"learn": learn})),
        }
    )


def on_data(
    name: str,
    *,
    train: DataConfig,
    captions: DataConfig | None,
    test: DataConfig | None,
    seed: int = 0,
) -> Recipe:
    """The quickstart recipe on any data; without captions there is no `align` stage."""
    model = VlmConfig(
        vision_encoder=VisionEncoderConfig(
            config={
                "model_type": "diptych_conv",
                "hidden_sizes": [24, 48, 96, 160, 192],
                "depths": [1, 1, 1, 1, 1],
            },
            image=Preprocessing(resize="exact", size=(192, 192)),
        ),
        connector="mlp",
        language_model=LanguageModelConfig(
            config={
                "model_type": "llama",
                "hidden_size": 192,
                "intermediate_size": 512,
                "num_hidden_layers": 3,
                "num_attention_heads": 6,
                "num_key_value_heads": 6,
                "initializer_range": 0.06,
                "max_position_embeddings": 2048,
                "tie_word_embeddings": True,
                "vocab_size": VOCAB_SIZE,
            },
            tokenizer="data",
            template="compact",
        ),
    )
    stages = []
    if captions is not None:
        stages.append(
            Stage(
                name="align",
                objective="contrastive",
                data=(captions,),
                learn={"vision_encoder": Learn()},
                num_epochs=3,
                global_batch_size=48,
                learning_rate=1.5e-3,
                weight_decay=0.05,
                precision="bf16",
            )
        )
    stages.append(
        Stage(
            name="instruct",
            data=(train,),
            learn={"vision_encoder": Learn(), "connector": Learn(), "language_model": Learn()},
            num_epochs=3.5,
            global_batch_size=104,
            learning_rate=1.5e-3,
            betas=(0.9, 0.95),
            schedule=Schedule(warmup_share=0.05),
            weight_decay=0.05,
            precision="bf16",
        )
    )
    evaluation = None
    if test is not None:
        evaluation = EvaluationConfig(
            data=test, metric="relaxed", max_new_tokens=16, batch_size=64, limit=600
        )
    return Recipe(name=name, model=model, stages=tuple(stages), evaluation=evaluation, seed=seed)
