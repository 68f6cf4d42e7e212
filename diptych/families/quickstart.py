"""Quickstart: a small model that learns to read charts on a laptop.

Command: `diptych quickstart`.
An image encoder and a language model from scratch, joined by a connector that merges 2x2
positions: first every position of the encoder learns which words and colours it shows
(`align`), then everything learns to answer (`instruct`). docs/quickstart.md has the
compositions that were tried, with their scores and times.
"""

from __future__ import annotations

from diptych.data.preprocessing import Preprocessing
from diptych.model.adapters import LoraConfig
from diptych.model.architectures.vlm import VlmConfig
from diptych.model.language_model import LanguageModelConfig
from diptych.model.trainable import Learn
from diptych.model.vision_encoder import VisionEncoderConfig
from diptych.recipe import EvaluationConfig, Recipe
from diptych.train.stage import DataConfig, Schedule, Stage

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
VOCAB_SIZE = 2048
"""Tokens of the tokenizer that is trained on the data: a small model's work is mostly its output
layer, and SmolLM2's vocabulary is twenty-four times as large."""

EPOCHS = 1.5
"""Passes over the questions of the drawn charts: what eleven minutes allow; more is better."""


def quickstart() -> Recipe:
    """Learn charts from scratch in minutes: convolutions, 2x2 downsample, small GPT-NeoX."""
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
            "stages": (
                align.model_copy(update={"learn": {"vision_encoder": Learn()}}),
                instruct.model_copy(update={"learn": learn, "optimizer": "adamw"}),
            ),
        }
    )


def on_data(
    name: str,
    *,
    train: DataConfig,
    captions: DataConfig | None,
    test: DataConfig | None,
    num_rows: int | None = None,
    seed: int = 0,
) -> Recipe:
    """The quickstart recipe on any data; without captions there is no `align` stage.

    Few rows are visited more often and in smaller steps: some 100,000 answers in all, or
    twelve epochs.
    """
    many = num_rows is None or num_rows > 70_000
    epochs = EPOCHS if many else min(12.0, 100_000 / (num_rows or 1))
    model = VlmConfig(
        vision_encoder=VisionEncoderConfig(
            config={
                "model_type": "diptych_conv",
                "fold": 2,
                "hidden_sizes": [48, 96, 160, 192],
                "depths": [1, 1, 1, 4],
            },
            image=Preprocessing(resize="exact", size=(192, 192)),
        ),
        connector="downsample",
        language_model=LanguageModelConfig(
            config={
                "model_type": "gpt_neox",
                "hidden_size": 192,
                "intermediate_size": 768,
                "num_hidden_layers": 3,
                "num_attention_heads": 3,
                "use_parallel_residual": False,
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
    learn = {"connector": Learn(), "language_model": Learn()}
    if captions is None:
        learn["vision_encoder"] = Learn(learning_rate=7.5e-4)
    else:
        # What the first stage taught the encoder is kept: its features are computed once, and
        # as many answers can be seen again in the time that its gradients would take.
        stages.append(
            Stage(
                name="align",
                objective="regions",
                data=(captions,),
                learn={"vision_encoder": Learn(learning_rate=1e-2), "language_model": Learn()},
                num_epochs=1.6,
                global_batch_size=12,
                optimizer="muon",
                learning_rate=4e-3,
                betas=(0.9, 0.95),
                weight_decay=0.05,
                precision="bf16",
            )
        )
    stages.append(
        Stage(
            name="instruct",
            objective={"name": "next_token", "average": "sqrt"},
            data=(train,),
            learn=learn,
            num_epochs=epochs,
            global_batch_size=144 if many or (num_rows or 0) > 20_000 else 48,
            optimizer="muon",
            learning_rate=2.5e-3 if captions is None else 6e-3,
            betas=(0.9, 0.95),
            schedule=Schedule(warmup_share=0.05),
            weight_decay=0.05,
            precision="bf16",
        )
    )
    evaluation = None
    if test is not None:
        evaluation = EvaluationConfig(
            data=test, metric="relaxed", max_new_tokens=16, batch_size=200, limit=600
        )
    return Recipe(name=name, model=model, stages=tuple(stages), evaluation=evaluation, seed=seed)
