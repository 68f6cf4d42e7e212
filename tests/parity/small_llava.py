"""Small models of LLaVA's kind for the parity of layouts, and a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from diptych.data.pixels.preprocessing import Preprocessing
from diptych.data.text.chat import TEMPLATES
from diptych.model.architectures.vlm import Vlm, VlmConfig
from diptych.model.folder import build
from diptych.model.language_model import LanguageModelConfig
from diptych.model.vision_encoder import VisionEncoderConfig

CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
SIGLIP = {**CLIP, "model_type": "siglip_vision_model"}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "pad_token_id": None,
}
QWEN2 = {**LLAMA, "model_type": "qwen2", "tie_word_embeddings": True, "rope_theta": 1e6}
MISTRAL = {**LLAMA, "model_type": "mistral"}
EDGE_CROP = Preprocessing(
    resize="shortest_edge", size=(32, 32), crop=(32, 32), mean=(0.48, 0.46, 0.41)
)
PADDED = EDGE_CROP.model_copy(update={"pad_to_square": True})
EXACT = Preprocessing(size=(32, 32))


def save_tokenizer(folder: Path) -> Path:
    """A byte-level tokenizer with ChatML's template."""
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    )
    inner.train_from_iterator(["What is shown here? A small picture of three colours."], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = TEMPLATES["chatml"]
    tokenizer.save_pretrained(folder)
    return folder


def compose(
    tokenizer: Path,
    vision: dict = CLIP,
    text: dict = LLAMA,
    *,
    connector: str | dict = "mlp",
    layer: int | None = -2,
    image: Preprocessing = EDGE_CROP,
    features: str = "patch",
    dtype: str = "float32",
    template: str | None = None,
    **language: Any,
) -> Vlm:
    model = build(
        VlmConfig(
            vision_encoder=VisionEncoderConfig(
                config=vision, layer=layer, features=features, image=image
            ),
            connector={"name": connector} if isinstance(connector, str) else connector,
            language_model=LanguageModelConfig(
                config=text, tokenizer=str(tokenizer), dtype=dtype, template=template, **language
            ),
        ),
        seed=3,
    )
    with torch.no_grad():
        # Default initialisation is near zero: every weight shall matter to the logits.
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model
