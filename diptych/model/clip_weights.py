"""Initial weights of a CLIP that learns from scratch.

transformers' classes are made for pretrained weights. Where they initialise CLIP themselves, the
projections into attention get the small deviation that CLIP gives to those out of it, and the other
way round, and training starts slowly. These are the deviations of CLIP itself.

Source: `initialize_parameters` of openai/CLIP (`clip/model.py`); its vision transformer is left at
PyTorch's defaults, class and position embeddings aside.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

VISION, TEXT = "clip_vision_model", "clip_text_model"


@torch.no_grad()
def initialise(module: Any, kind: str) -> None:
    """Draw the weights of a CLIPVisionModel or CLIPTextModel anew; other kinds stay as they are."""
    if kind == VISION:
        _vision(module)
    elif kind == TEXT:
        _text(module)


def _vision(module: Any) -> None:
    width = module.config.hidden_size
    embeddings = module.embeddings
    for weight in (embeddings.class_embedding, embeddings.position_embedding.weight):
        nn.init.normal_(weight, std=width**-0.5)
    embeddings.patch_embedding.reset_parameters()
    for layer in module.encoder.layers:
        attention = layer.self_attn
        for part in (attention.q_proj, attention.k_proj, attention.v_proj):
            # As one matrix of [3 * width, width], which is what PyTorch's attention holds.
            bound = math.sqrt(6 / (4 * width))
            nn.init.uniform_(part.weight, -bound, bound)
            nn.init.zeros_(part.bias)
        attention.out_proj.reset_parameters()
        nn.init.zeros_(attention.out_proj.bias)
        layer.mlp.fc1.reset_parameters()
        layer.mlp.fc2.reset_parameters()


def _text(module: Any) -> None:
    config = module.config
    width, deep = config.hidden_size, (2 * config.num_hidden_layers) ** -0.5
    nn.init.normal_(module.embeddings.token_embedding.weight, std=0.02)
    nn.init.normal_(module.embeddings.position_embedding.weight, std=0.01)
    for layer in module.encoder.layers:
        attention = layer.self_attn
        for part in (attention.q_proj, attention.k_proj, attention.v_proj):
            nn.init.normal_(part.weight, std=width**-0.5)
            nn.init.zeros_(part.bias)
        nn.init.normal_(attention.out_proj.weight, std=width**-0.5 * deep)
        nn.init.zeros_(attention.out_proj.bias)
        # The biases of these stay at PyTorch's defaults.
        layer.mlp.fc1.reset_parameters()
        layer.mlp.fc2.reset_parameters()
        nn.init.normal_(layer.mlp.fc1.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(layer.mlp.fc2.weight, std=width**-0.5 * deep)
