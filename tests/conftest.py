"""Tiny models and data that every test can build in a moment, without a network."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pictures

os.environ.setdefault("DIPTYCH_OFFLINE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tiny models on two threads mostly wait for each other, ten times as long on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

WORDS = (
    "What colour is the square? red green blue yellow how many yes no Describe the picture. "
    "a small large left right one two three four the is are of and in <image> USER ASSISTANT "
)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory) -> Path:
    """A byte-level BPE tokenizer with ChatML marks, trained on a few words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS] * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_config(tokenizer_folder):
    """Values of a small model; `text` and `vision` choose the Hugging Face classes."""

    def make(connector="mlp", text="llama", vision="clip_vision_model", template="chatml", **more):
        texts = {
            "llama": {"num_key_value_heads": 2},
            "qwen2": {"num_key_value_heads": 2},
            "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
            "mistral": {"num_key_value_heads": 2},
            "t5": {},
        }
        shared = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 512,
        }
        if text == "t5":
            shared = {
                "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
                "decoder_start_token_id": 0, "eos_token_id": 2, "dropout_rate": 0.0,
            }  # fmt: skip
        visions = {
            "clip_vision_model": {
                "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3,
                "num_attention_heads": 4, "image_size": 28, "patch_size": 7,
            },
            "resnet": {
                "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1],
                "layer_type": "basic",
            },
        }  # fmt: skip
        return {
            "vision_encoder": {
                "config": {"model_type": vision, **visions[vision]},
                "image": {"resize": "exact", "size": [28, 28]},
            },
            "connector": connector,
            "language_model": {
                "config": {"model_type": text, **shared, **texts[text]},
                "tokenizer": str(tokenizer_folder),
                "template": template,
                **more,
            },
        }

    return make


@pytest.fixture(scope="session")
def framing_tokenizer_folder(tokenizer_folder, tmp_path_factory) -> Path:
    """The same tokenizer, which frames every text with a start and an end, as CLIP's does."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    fast = AutoTokenizer.from_pretrained(tokenizer_folder)
    # The end must not have the id 2, see model/text_encoder.py.
    fast.bos_token, fast.eos_token = "<|im_end|>", "<|im_start|>"
    fast.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_end|> $A <|im_start|>",
        special_tokens=[("<|im_end|>", 2), ("<|im_start|>", 1)],
    )
    folder = tmp_path_factory.mktemp("framing_tokenizer")
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_dual(framing_tokenizer_folder):
    """Values of a small dual encoder of CLIP's or SigLIP's kind."""

    def make(kind="clip", **more):
        encoder = {
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2,
        }  # fmt: skip
        model = {
            "name": "dual_encoder",
            "vision_encoder": {
                "config": {
                    "model_type": f"{kind}_vision_model", **encoder, "image_size": 28,
                    "patch_size": 7,
                },
                "image": {"size": [28, 28], "crop": [28, 28]}
                if kind == "clip" else {"resize": "exact", "size": [28, 28]},
            },
            "text_encoder": {
                "config": {
                    "model_type": f"{kind}_text_model", **encoder, "max_position_embeddings": 24,
                },
                "tokenizer": str(framing_tokenizer_folder),
            },
        }  # fmt: skip
        if kind == "clip":
            model["dim"] = 8
        else:
            model |= {"dim": None, "bias": -10.0, "temperature": 0.1, "min_temperature": None}
            model["text_encoder"]["pad_to_max"] = True
        return {**model, **more}

    return make


@pytest.fixture(scope="session")
def tiny_query(tiny_dual, tokenizer_folder):
    """Values of a small querying transformer (BLIP-2, stage 1)."""

    def make(**more):
        former = {
            "config": {
                "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
                "num_attention_heads": 2, "max_position_embeddings": 32,
            },
            "tokenizer": str(tokenizer_folder), "num_queries": 3, "max_tokens": 16, "dropout": 0.0,
        }  # fmt: skip
        return {
            "name": "query_transformer",
            "vision_encoder": tiny_dual("clip")["vision_encoder"],
            "query_former": {**former, **more},
            "dim": 8,
        }

    return make


@pytest.fixture(scope="session")
def tiny_captioner(tiny_dual, tokenizer_folder):
    """Values of a small captioner (BLIP)."""

    def make(**more):
        text = {
            "config": {
                "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
                "num_attention_heads": 2, "max_position_embeddings": 32,
            },
            "tokenizer": str(tokenizer_folder), "max_tokens": 16, "dropout": 0.0,
        }  # fmt: skip
        return {
            "name": "captioner",
            "vision_encoder": {**tiny_dual("clip")["vision_encoder"], "features": "full"},
            "text": {**text, **more},
            "dim": 8,
        }

    return make


@pytest.fixture(scope="session")
def tiny_model(tiny_config):
    """Build a small model from the same arguments as `tiny_config`."""
    from diptych.model.architectures.vlm import VlmConfig
    from diptych.model.folder import build

    def make(*args, seed=0, **kwargs):
        return build(VlmConfig.from_dict(tiny_config(*args, **kwargs)), seed=seed)

    return make


COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220)}


def square(colour: str, size: int = 28, seed: int = 0) -> bytes:
    """A PNG with one coloured square on a noisy ground."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(200, 255, (size, size, 3), dtype=np.uint8)
    x, y = rng.integers(2, size // 2, 2)
    pixels[y : y + size // 2, x : x + size // 2] = COLOURS[colour]
    buffer = io.BytesIO()
    Pictures.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def squares(tmp_path_factory) -> Path:
    """A LLaVA-format set: 24 pictures of a square, two questions each, and captions."""
    folder = tmp_path_factory.mktemp("squares")
    (folder / "images").mkdir()
    rows, captions = [], []
    for number in range(24):
        colour = list(COLOURS)[number % 3]
        name = f"{number:03d}.png"
        (folder / "images" / name).write_bytes(square(colour, seed=number))
        questions = [
            ("What colour is the square?", colour),
            ("Is the square red?", "yes" if colour == "red" else "no"),
        ]
        for which, (question, answer) in enumerate(questions):
            rows.append(
                {
                    "id": f"{number}-{which}",
                    "image": name,
                    "conversations": [
                        {"from": "human", "value": f"<image>\n{question}"},
                        {"from": "gpt", "value": answer},
                    ],
                    "kind": ["colour", "yes_no"][which],
                }
            )
        captions.append({"caption": f"a {colour} square", "image": name, "image_id": str(number)})
    (folder / "train.json").write_text(json.dumps(rows))
    (folder / "captions.json").write_text(json.dumps(captions))
    return folder
