"""LLaVA and LLaVA 1.5: CLIP ViT-L/14, a projection, Vicuna.

Papers: Visual Instruction Tuning (arXiv:2304.08485); Improved Baselines with Visual
Instruction Tuning (arXiv:2310.03744).
Command: `diptych train llava15-7b --set stages.align.data.0.path=... --set ...`.
Published cost on 8 A100: 7B align 3.5 h, instruct 10 h; 13B 5.5 h and 20 h.
Published score of 1.5-7B: VQAv2 78.5, GQA 62.0, TextVQA 58.2, POPE 85.9 (model zoo).
The language model is kept in bfloat16 and learns in float32, as LLaVA's under DeepSpeed does: with
gradients and moments 16 bytes a weight, 112 GB for 7B (`diptych show llava15-7b --plan`).
The full-size recipes were not trained here; `llava-debug` has the same shape in miniature
and is trained by the tests.
"""

from __future__ import annotations

from diptych.data.pixels.preprocessing import Preprocessing
from diptych.data.pixels.tilings.split import Config as Split
from diptych.family import small_stages, small_vlm
from diptych.model.adapters import LoraConfig
from diptych.model.architectures.vlm import VlmConfig
from diptych.model.language_model import LanguageModelConfig
from diptych.model.trainable import Learn
from diptych.model.vision_encoder import VisionEncoderConfig
from diptych.recipe import Recipe
from diptych.train.stage import DataConfig, Schedule, Stage


def llava15_7b() -> Recipe:
    """LLaVA 1.5 with Vicuna 7B: MLP connector, pictures padded to 336 squares."""
    return _llava15("llava15-7b", "lmsys/vicuna-7b-v1.5")


def llava_7b() -> Recipe:
    """The first LLaVA with Vicuna 7B: a linear connector, 224 pixels, 595k and 158k rows.

    As its readme says: the connector at 2e-3 over 128 samples a step, one pass; then with the
    language model at 2e-5 over 32, three passes over the 158k conversations.
    """
    recipe = _llava15("llava-7b", "lmsys/vicuna-7b-v1.5")
    align, instruct = recipe.stages
    encoder = VisionEncoderConfig(
        weights="openai/clip-vit-large-patch14", layer=-2, image=_clip(224)
    )
    return recipe.model_copy(
        update={
            "model": VlmConfig(
                vision_encoder=encoder,
                connector={"name": "linear"},
                language_model=recipe.model.language_model,
            ),
            "stages": (
                align.model_copy(
                    update={
                        "data": (DataConfig(path="chat.json", images="images"),),
                        "learning_rate": 2e-3, "global_batch_size": 128,
                    }
                ),
                instruct.model_copy(
                    update={
                        "data": (DataConfig(path="llava_instruct_158k.json", images="images"),),
                        "num_epochs": 3.0, "global_batch_size": 32,
                    }
                ),
            ),
        }
    )  # fmt: skip


def llava15_hd_7b() -> Recipe:
    """LLaVA 1.5-HD with Vicuna 7B: up to six tiles of 224 pixels, merged, the whole picture behind.

    As it stands, both stages see tiles. The paper aligns on whole pictures and says that no more
    pretraining is needed: a recipe file with this tiling and the instruct stage alone, going on
    from the aligned model (`model: {weights: RUN}`), does that.
    """
    recipe = _llava15("llava15-hd-7b", "lmsys/vicuna-7b-v1.5")
    align, instruct = recipe.stages
    encoder = VisionEncoderConfig(
        weights="openai/clip-vit-large-patch14",
        layer=-2,
        image=_clip(224).model_copy(update={"tiling": Split()}),
    )
    longer = {"context_tokens": 4096, "tokens_per_row": 4096}
    return recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update={"vision_encoder": encoder}),
            "stages": tuple(stage.model_copy(update=longer) for stage in (align, instruct)),
        }
    )


def llava15_13b() -> Recipe:
    """LLaVA 1.5 with Vicuna 13B."""
    return _llava15("llava15-13b", "lmsys/vicuna-13b-v1.5")


def llava15_7b_lora() -> Recipe:
    """LLaVA 1.5 7B with LoRA (r 128, alpha 256), connector rate 2e-5, LoRA rate 2e-4."""
    recipe = _llava15("llava15-7b-lora", "lmsys/vicuna-7b-v1.5")
    align, instruct = recipe.stages
    learn = {
        "connector": Learn(learning_rate=2e-5),
        "language_model": Learn(
            how="lora", learning_rate=2e-4, lora=LoraConfig(rank=128, alpha=256.0, dropout=0.05)
        ),
    }
    return recipe.model_copy(
        update={"stages": (align, instruct.model_copy(update={"learn": learn}))}
    )


def llava_debug() -> Recipe:
    """LLaVA's two stages in miniature, from scratch; trained by the tests in seconds.

    Needs `--set model.language_model.tokenizer=FOLDER` and data, as in tests/recipes.
    """
    image = Preprocessing(resize="exact", size=(28, 28), pad_to_square=True)
    model = small_vlm("mlp", image, template="vicuna", layer=-2)
    return Recipe(name="llava-debug", model=model, stages=small_stages(), trackers=())


def llava15_hd_debug() -> Recipe:
    """LLaVA 1.5-HD's tiles in miniature, from scratch; trained by the tests in seconds.

    Needs `--set model.language_model.tokenizer=FOLDER` and data, as in tests/recipes.
    """
    image = Preprocessing(size=(28, 28), tiling=Split(tile=28))
    model = small_vlm("mlp", image, template="vicuna", layer=-2)
    return Recipe(name="llava15-hd-debug", model=model, stages=small_stages(), trackers=())


def _llava15(name: str, language_model: str) -> Recipe:
    model = VlmConfig(
        vision_encoder=VisionEncoderConfig(
            weights="openai/clip-vit-large-patch14-336",
            layer=-2,
            image=_clip(336).model_copy(update={"pad_to_square": True}),
        ),
        connector="mlp",
        language_model=LanguageModelConfig(
            weights=language_model, template="vicuna", dtype="bfloat16"
        ),
    )
    schedule = Schedule(shape="cosine", warmup_share=0.03)
    align = Stage(
        name="align",
        data=(DataConfig(path="blip_laion_cc_sbu_558k.json", images="images"),),
        learn={"connector": Learn()},
        learning_rate=1e-3,
        global_batch_size=256,
        schedule=schedule,
        precision="bf16",
        context_tokens=2048,
        tokens_per_row=2048,
        long_samples="truncate",
    )
    instruct = Stage(
        name="instruct",
        data=(DataConfig(path="llava_v1_5_mix665k.json", images="images"),),
        learn={"connector": Learn(), "language_model": Learn()},
        learning_rate=2e-5,
        global_batch_size=128,
        schedule=schedule,
        precision="bf16",
        gradient_checkpointing=True,
        context_tokens=2048,
        tokens_per_row=2048,
        long_samples="truncate",
    )
    return Recipe(name=name, model=model, stages=(align, instruct))


def _clip(side: int) -> Preprocessing:
    """CLIP's own preprocessing for pictures of that side."""
    return Preprocessing.from_hf(
        {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": side},
            "crop_size": {"height": side, "width": side},
        }
    )
