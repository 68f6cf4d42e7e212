"""InternVL 2 and later: tiles of 448 pixels by the picture's proportions, pixel shuffle.

Papers: How Far Are We to GPT-4V? (arXiv:2404.16821); Expanding Performance Boundaries of
Open-Source Multimodal Models (arXiv:2412.05271).
Source of the settings: internvl_chat/shell of OpenGVLab/InternVL. From parts: stage 1 the connector
at 2e-4, stage 2 everything at 4e-5, 512 packed rows of 16,384 tokens a step, weight decay 0.01, on
512 GPUs (internvl2.5/stage1 and stage2). Fine-tuning: LoRA of rank 16 on the language model at
4e-5, at most six tiles, 16 samples a step, on two GPUs (internvl2.0/2nd_finetune).
Published score of InternVL2-2B: ChartQA 76.2, DocVQA 86.9, TextVQA 73.4; 8B: ChartQA 83.3,
TextVQA 77.4 (model cards).
The published encoders and InternLM 2 bodies lie on the hub as code of their own, which is not run
here; the `-hf` repositories hold the same models as transformers' classes, and those are starting
points by name. `internvl-debug` has both stages in miniature and is trained by the tests; the
full-size recipes were not trained here.
"""

from __future__ import annotations

from diptych.data.pixels.preprocessing import Preprocessing
from diptych.data.pixels.tilings.dynamic import Config as Dynamic
from diptych.family import instruct_with_lora, small_stages, small_vlm
from diptych.recipe import Recipe, of_a_hub


@of_a_hub("OpenGVLab/InternVL3-1B-hf")
def internvl3_1b_finetune() -> Recipe:
    """The published InternVL3-1B on rows of your own (train.json, test.json) with LoRA.

    The settings of InternVL's own second fine-tuning, but for the tiles, of which the published
    model has twelve: `--set model.vision_encoder.image.tiling.max_tiles=6` takes six. Of other
    sizes a recipe file with `base: internvl3-1b-finetune` and `model: {weights: NAME}` goes on.
    """
    return _finetune("internvl3-1b-finetune", "OpenGVLab/InternVL3-1B-hf")


@of_a_hub("OpenGVLab/InternVL3-2B-hf")
def internvl3_2b_finetune() -> Recipe:
    """The published InternVL3-2B on rows of your own, with LoRA; see internvl3-1b-finetune."""
    return _finetune("internvl3-2b-finetune", "OpenGVLab/InternVL3-2B-hf")


@of_a_hub("OpenGVLab/InternVL3-8B-hf")
def internvl3_8b_finetune() -> Recipe:
    """The published InternVL3-8B on rows of your own, with LoRA; see internvl3-1b-finetune."""
    return _finetune("internvl3-8b-finetune", "OpenGVLab/InternVL3-8B-hf")


def internvl_debug() -> Recipe:
    """InternVL's two stages in miniature, from scratch; trained by the tests in seconds.

    Needs `--set model.language_model.tokenizer=FOLDER` and data, as in tests/recipes.
    """
    image = Preprocessing(size=(28, 28), tiling=Dynamic(tile=28, max_tiles=4))
    model = small_vlm("pixel_shuffle", image, template="chatml", marks=("<img>", "</img>"))
    stages = small_stages(learn_encoder=True)
    return Recipe(name="internvl-debug", model=model, stages=stages, trackers=())


def _finetune(name: str, weights: str) -> Recipe:
    return instruct_with_lora(
        name, weights, rank=16, alpha=32.0, rate=4e-5, batch=16, context_tokens=4096,
        weight_decay=0.01,
    )  # fmt: skip
