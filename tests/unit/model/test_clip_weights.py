"""A CLIP from scratch starts with CLIP's own deviations."""

from __future__ import annotations

import math

import pytest
import torch

from diptych.model.architecture import config_from_dict
from diptych.model.folder import build


@pytest.fixture(scope="module")
def model(tiny_dual):
    values = tiny_dual("clip")
    for part in ("vision_encoder", "text_encoder"):
        values[part]["config"] |= {
            "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3,
            "num_attention_heads": 4,
        }  # fmt: skip
    return build(config_from_dict(values), seed=0)


def test_text(model):
    """attn_std, proj_std and fc_std of `initialize_parameters` in openai/CLIP."""
    module = model.text_encoder.module
    layer = module.encoder.layers[1]
    wanted = {
        layer.self_attn.q_proj.weight: 128**-0.5,
        layer.self_attn.out_proj.weight: 128**-0.5 * 6**-0.5,
        layer.mlp.fc1.weight: 256**-0.5,
        layer.mlp.fc2.weight: 128**-0.5 * 6**-0.5,
        module.embeddings.token_embedding.weight: 0.02,
        module.embeddings.position_embedding.weight: 0.01,
    }
    for weight, deviation in wanted.items():
        assert weight.std().item() == pytest.approx(deviation, rel=0.06)
        assert abs(weight.mean().item()) < deviation / 5
    # Biases of the feed-forward stay at PyTorch's default, those of attention are zero.
    assert layer.mlp.fc1.bias.abs().max().item() == pytest.approx(128**-0.5, rel=0.1)
    assert layer.self_attn.q_proj.bias.abs().max() == 0


def test_vision(model):
    """PyTorch's own attention and linear layers, class and positions by width ** -0.5."""
    module = model.vision_encoder.module
    layer = module.encoder.layers[1]
    attention = torch.nn.MultiheadAttention(128, 4)
    torch.manual_seed(0)
    wanted = {
        layer.self_attn.k_proj.weight: attention.in_proj_weight.std().item(),
        layer.self_attn.out_proj.weight: attention.out_proj.weight.std().item(),
        layer.mlp.fc1.weight: 1 / math.sqrt(3 * 128),
        layer.mlp.fc2.weight: 1 / math.sqrt(3 * 512),
        module.embeddings.position_embedding.weight: 128**-0.5,
    }
    for weight, deviation in wanted.items():
        assert weight.std().item() == pytest.approx(deviation, rel=0.06)
    assert layer.self_attn.out_proj.bias.abs().max() == 0


def test_same_seed_same_weights(tiny_dual):
    a, b = (build(config_from_dict(tiny_dual("clip")), seed=4).state_dict() for _ in range(2))
    assert all(torch.equal(a[n], b[n]) for n in a)
