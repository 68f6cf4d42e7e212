"""Models composed without weights and filled once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diptych.model import folder as folders
from diptych.model.architectures.vlm import VlmConfig
from diptych.model.folder import build, load_model, save_model
from diptych.model.tensors import fill, save_tensors, unique_tensors, without_weights
from diptych.model.weights import load_pretrained


@pytest.mark.parametrize("vision", ["clip_vision_model", "resnet"])
def test_no_weight_is_real_until_it_is_filled(tiny_model, tmp_path, monkeypatch, vision):
    folder = save_model(tiny_model(vision=vision), tmp_path / "model")
    composed = []

    def watched(*given, **settings):
        composed.append(build(*given, **settings))
        assert all(p.is_meta for p in composed[-1].parameters())
        assert not any(b.is_meta for b in composed[-1].buffers())
        return composed[-1]

    monkeypatch.setattr(folders, "build", watched)
    model = load_model(folder)
    assert model is composed[0] and not any(p.is_meta for p in model.parameters())
    again = tiny_model(vision=vision)
    again.load_state_dict(model.state_dict())
    strides = {n: p.stride() for n, p in again.named_parameters()}
    assert {n: p.stride() for n, p in model.named_parameters()} == strides


def test_filled_weights_are_not_the_files(tiny_model, tmp_path):
    """A file that changes afterwards changes no model."""
    folder = save_model(tiny_model(), tmp_path / "model")
    model = load_model(folder)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    file = folder / "model.safetensors"
    with file.open("r+b") as out:
        out.seek(file.stat().st_size // 2)
        out.write(b"\xff" * (file.stat().st_size // 2))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_pretrained_weights_are_not_the_files(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config = LlamaConfig(**size, num_attention_heads=2, vocab_size=50)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    model = load_pretrained(LlamaForCausalLM, tmp_path, "here", torch.float32)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    file = tmp_path / "model.safetensors"
    with file.open("r+b") as out:
        out.seek(4096)
        out.write(b"\xff" * (file.stat().st_size - 4096))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_tied_weights_stay_one(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(5, 3)
            self.out = nn.Linear(3, 5, bias=False)
            self.out.weight = self.table.weight
            self.register_buffer("places", torch.arange(4), persistent=False)
            self.register_buffer("seen", torch.zeros(2))

    whole = Tied()
    whole.seen += 7
    save_tensors(unique_tensors(whole), tmp_path / "x.safetensors")
    with without_weights():
        empty = Tied()
    fill(empty, tmp_path / "x.safetensors")
    assert empty.out.weight is empty.table.weight
    assert torch.equal(empty.table.weight, whole.table.weight)
    assert empty.places.tolist() == [0, 1, 2, 3] and empty.seen.tolist() == [7, 7]


def test_origins_are_kept_and_shown(tiny_config, tmp_path):
    model = build(VlmConfig.from_dict(tiny_config()))
    assert model.origins == {}
    sha256 = "0" * 64
    model.origins = {
        "language_model": {
            "weights": "some/model", "source": "hub", "revision": "v1", "commit": "c0ffee",
            "pickles": {"pytorch_model.bin": sha256},
        },
        "vision_encoder": {
            "weights": "package:carrier", "source": "package", "of": "other/model",
            "quantisation": "4 bits",
        },
    }  # fmt: skip
    folder = save_model(model, tmp_path / "model")
    assert load_model(folder).origins == model.origins
    card = (folder / "README.md").read_text()
    assert "base_model:\n- other/model\n- some/model\n" in card
    assert "- language_model: `some/model` (source hub, revision v1, commit c0ffee)" in card
    assert f"converted from the pickle `pytorch_model.bin`, sha256 {sha256}" in card
    assert "quantisation 4 bits" in card
