"""Features are those of the Hugging Face class; shapes are known before any weights."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from transformers import AutoModel, CLIPConfig, CLIPModel

from diptych.data.pixels.preprocessing import Preprocessing
from diptych.errors import CheckpointError, ConfigError, UnsafeFile
from diptych.model.vision_encoder import VisionEncoderConfig, build, probe, resolve

VIT = {
    "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "image_size": 28, "patch_size": 7,
}  # fmt: skip
MODELS = {
    "clip_vision_model": (VIT, 1),
    "siglip_vision_model": (VIT, 0),
    "vit": (VIT, 1),
    "dinov2": ({**VIT, "mlp_ratio": 2}, 1),
    "dinov2_with_registers": ({**VIT, "mlp_ratio": 2, "num_register_tokens": 3}, 4),
}
CONVOLUTIONAL = {
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
}  # fmt: skip


def config(kind, values, size=(28, 28), **more):
    return VisionEncoderConfig.from_dict(
        {"config": {"model_type": kind, **values}, "image": {"size": list(size)}, **more}
    )


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("layer", [None, -2, 1])
@pytest.mark.parametrize("features", ["patch", "full"])
def test_transformers(kind, layer, features):
    values, num_prefix = MODELS[kind]
    encoder = build(config(kind, values, layer=layer, features=features)).eval()
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        ours = encoder(pixels)
        output = encoder.module(pixel_values=pixels, output_hidden_states=True)
    states = output.last_hidden_state if layer is None else output.hidden_states[layer]
    expected = states if features == "full" else states[:, num_prefix:]
    assert torch.equal(ours, expected)
    assert (encoder.grid, encoder.dim) == ((4, 4), 24)
    assert encoder.num_prefix == (num_prefix if features == "full" else 0)
    assert ours.shape == (2, 16 + encoder.num_prefix, 24)


@pytest.mark.parametrize("kind", CONVOLUTIONAL)
@pytest.mark.parametrize("size", [(28, 28), (32, 64), (33, 47)])
def test_convolutions(kind, size):
    encoder = build(config(kind, CONVOLUTIONAL[kind], size)).eval()
    pixels = torch.randn(1, 3, *size)
    with torch.no_grad():
        features = encoder(pixels)
        expected = encoder.module(pixel_values=pixels).last_hidden_state
    rows, columns = encoder.grid
    assert features.shape == (1, rows * columns, encoder.dim)
    assert torch.equal(features.transpose(1, 2).reshape(1, -1, rows, columns), expected)


def test_probe_uses_no_memory_and_agrees():
    big = {**VIT, "hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 40}
    values, hf_config = resolve(config("clip_vision_model", big))
    assert probe(values, hf_config)[:3] == ((4, 4), 0, 4096)


def test_dropped_layers():
    whole = build(config("vit", VIT))
    short = build(config("vit", VIT, drop_last_layers=3))
    count = [sum(p.numel() for p in e.parameters()) for e in (whole, short)]
    assert count[1] < count[0] and short.hf_config.num_hidden_layers == 1
    with pytest.raises(ConfigError, match="4 layers, 4 cannot"):
        build(config("vit", VIT, drop_last_layers=4))


@pytest.mark.parametrize(
    ("kind", "values", "more", "says"),
    [
        ("clip_vision_model", VIT, {"size": (56, 56)}, "cannot read pictures of 56 x 56"),
        ("clip_vision_model", VIT, {"layer": 9}, "hidden states 0 to 4"),
        ("clip", {}, {}, "cannot read pictures"),
        ("swin", {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 7,
                  "image_size": 56}, {"size": (56, 56)}, "no grid of patches"),
        ("clop", {}, {}, "no model type"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named(kind, values, more, says):
    with pytest.raises(ConfigError, match=says):
        build(config(kind, values, **more))


def pretrained(folder, drop=()):
    torch.manual_seed(0)
    clip = CLIPModel(
        CLIPConfig(
            text_config={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
                         "num_attention_heads": 2, "vocab_size": 50, "bos_token_id": 0,
                         "eos_token_id": 1},
            vision_config=VIT,
        )
    )  # fmt: skip
    state = {n: t for n, t in clip.state_dict().items() if not any(d in n for d in drop)}
    clip.save_pretrained(folder, state_dict=state)
    processor = {
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 28},
        "crop_size": {"height": 28, "width": 28},
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return clip


def test_the_vision_part_of_a_saved_clip(tmp_path):
    clip = pretrained(tmp_path).eval()
    encoder = build(VisionEncoderConfig(weights=str(tmp_path), layer=-2)).eval()
    assert encoder.preprocessing.crop == (28, 28)
    pixels = torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        expected = clip.vision_model(pixel_values=pixels, output_hidden_states=True)
        assert torch.equal(encoder(pixels), expected.hidden_states[-2][:, 1:])
    alone = tmp_path / "alone"
    AutoModel.from_pretrained(tmp_path, config=clip.config.vision_config).save_pretrained(alone)
    again = build(VisionEncoderConfig(weights=str(alone), layer=-2, image=encoder.preprocessing))
    with torch.no_grad():
        assert torch.equal(again.eval()(pixels), encoder(pixels))


def test_missing_weights_are_never_made_up(tmp_path):
    pretrained(tmp_path, drop=("vision_model.encoder.layers.1",))
    with pytest.raises(CheckpointError, match="not in the folder"):
        build(VisionEncoderConfig(weights=str(tmp_path)))


def test_pickles_compute_what_safetensors_do(tmp_path, monkeypatch):
    """A published checkpoint of pickles is the same model; in another precision rounded once."""
    from safetensors.torch import load_file

    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "vision"
    pretrained(folder)
    settings = {"weights": str(folder), "image": Preprocessing(size=(28, 28), resize="exact")}
    known = build(VisionEncoderConfig(**settings)).state_dict()
    file = folder / "model.safetensors"
    torch.save(load_file(file), folder / "pytorch_model.bin")
    file.unlink()
    for dtype in ("float32", "bfloat16"):
        found = build(VisionEncoderConfig(**settings, dtype=dtype)).state_dict()
        assert found.keys() == known.keys()
        for name, tensor in found.items():
            assert torch.equal(tensor, known[name].to(tensor.dtype)), name


def test_broken_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be used"):
        build(VisionEncoderConfig(weights=str(tmp_path)))
    weights.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="no PyTorch checkpoint"):
        build(VisionEncoderConfig(weights=str(tmp_path)))
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"a": print}, protocol=2))
    with pytest.raises(UnsafeFile, match="print"):
        build(VisionEncoderConfig(weights=str(tmp_path)))
    (tmp_path / "config.json").unlink()
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match="cannot be used"):
        build(VisionEncoderConfig(weights=str(tmp_path)))
