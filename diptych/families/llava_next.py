"""LLaVA-NeXT: LLaVA 1.5 whose pictures are cut into tiles of 336 pixels, all parts learning.

Blog: LLaVA-NeXT: Improved reasoning, OCR, and world knowledge (January 2024). The instruction data
of the first models were not published whole; lmms-lab/LLaVA-NeXT-Data (779k rows) is what there is.
Command: `diptych train llava-next-7b --set stages.align.data.0.path=... --set ...`.
Source of the settings: scripts/train and the model cards of LLaVA-VL/LLaVA-NeXT: the connector
alone at 1e-3, then everything at 1e-5 and the image encoder at 2e-6, one pass each.
Published score of the 7B with Vicuna: VQAv2 81.8, GQA 64.2, TextVQA 64.9, MMBench 67.4 (blog).
Published weights are a starting point by their names: `model: {weights:
llava-hf/llava-v1.6-mistral-7b-hf}`; `llava-next-finetune` is such a recipe.
The full-size recipes were not trained here; `llava-next-debug` has the same shape in miniature and
is trained by the tests.
"""

from __future__ import annotations

from diptych.data.pixels.preprocessing import Preprocessing
from diptych.data.pixels.tilings.anyres import Config as Anyres
from diptych.family import instruct_with_lora, small_stages, small_vlm
from diptych.model.architectures.vlm import VlmConfig
from diptych.model.language_model import LanguageModelConfig
from diptych.model.trainable import Learn
from diptych.model.vision_encoder import VisionEncoderConfig
from diptych.recipe import Recipe, of_a_hub
from diptych.train.stage import DataConfig, Schedule, Stage

PUBLISHED = "llava-hf/llava-v1.6-mistral-7b-hf"


def llava_next_7b() -> Recipe:
    """LLaVA-NeXT with Vicuna 7B, from its parts."""
    model = VlmConfig(
        vision_encoder=VisionEncoderConfig(
            weights="openai/clip-vit-large-patch14-336",
            layer=-2,
            image=Preprocessing.from_hf(
                {
                    "image_processor_type": "LlavaNextImageProcessor",
                    "size": {"shortest_edge": 336},
                    "crop_size": {"height": 336, "width": 336},
                }
            ),
        ),
        connector="mlp",
        language_model=LanguageModelConfig(
            weights="lmsys/vicuna-7b-v1.5", template="vicuna", dtype="bfloat16"
        ),
    )
    schedule = Schedule(shape="cosine", warmup_share=0.03)
    shared = {
        "schedule": schedule, "precision": "bf16", "gradient_checkpointing": True,
        "context_tokens": 4096, "tokens_per_row": 8192, "long_samples": "truncate",
    }  # fmt: skip
    align = Stage(
        name="align",
        data=(DataConfig(path="blip_laion_cc_sbu_558k.json", images="images"),),
        learn={"connector": Learn()},
        learning_rate=1e-3,
        global_batch_size=256,
        **shared,  # type: ignore[arg-type]
    )
    instruct = Stage(
        name="instruct",
        data=(DataConfig(path="llava_next_data.json", images="images"),),
        learn={
            "vision_encoder": Learn(learning_rate=2e-6),
            "connector": Learn(),
            "language_model": Learn(),
        },
        learning_rate=1e-5,
        global_batch_size=128,
        **shared,  # type: ignore[arg-type]
    )
    return Recipe(name="llava-next-7b", model=model, stages=(align, instruct))


@of_a_hub(PUBLISHED)
def llava_next_finetune() -> Recipe:
    """The published LLaVA-NeXT (Mistral 7B) on rows of your own (train.json, test.json) with LoRA.

    Rank 128 and the rates of LLaVA's own LoRA script; the image encoder rests. Of the others
    (Vicuna, Llama 3) a recipe file with `base: llava-next-finetune` and `model: {weights: NAME}`
    goes on.
    """
    return instruct_with_lora(
        "llava-next-finetune", PUBLISHED, rank=128, alpha=256.0, rate=2e-4, connector=2e-5,
        batch=16, context_tokens=4096,
    )  # fmt: skip


def llava_next_debug() -> Recipe:
    """LLaVA-NeXT's two stages in miniature, from scratch; trained by the tests in seconds.

    Needs `--set model.language_model.tokenizer=FOLDER` and data, as in tests/recipes.
    """
    image = Preprocessing(size=(28, 28), tiling=Anyres(tile=28))
    model = small_vlm("mlp", image, template="vicuna", layer=-2)
    return Recipe(name="llava-next-debug", model=model, stages=small_stages(), trackers=())
