"""The authors' names of LLaVA lead to the same model; renamed by hand here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diptych.convert import layout
from diptych.convert.layouts import llava_original
from diptych.data.sample import Image, Sample, Text, Turn
from diptych.errors import CheckpointError, ConfigError
from diptych.model.published import layout_of
from tests.conftest import square
from tests.parity.small_llava import CLIP, EDGE_CROP, LLAMA, MISTRAL, PADDED, compose
from tests.parity.test_tiled_layouts import LONG, anyres, one_thread, tokenizer  # noqa: F401

PINPOINTS = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]
"""(width, height), as its configs have them."""
GRIDS = [[height // 32, width // 32] for width, height in PINPOINTS]


def encoder(folder: Path, model) -> Path:
    """What `mm_vision_tower` names: an encoder of its own, with its processor."""
    model.vision_encoder.module.save_pretrained(folder)
    values = EDGE_CROP.to_hf("clip")
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    return folder


def published(folder: Path, model, tower: Path, *, tuned: bool = False, **changes) -> Path:
    text = json.loads(model.language_model.hf_config.to_json_string(use_diff=False))
    kind = {"llama": "Llama", "mistral": "Mistral"}[text["model_type"]]
    linear = model.config.connector.name == "linear"
    values = {
        **text, "architectures": [f"Llava{kind}ForCausalLM"], "model_type": "llava",
        "mm_vision_tower": str(tower), "mm_hidden_size": 16, "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch", "torch_dtype": "float32", "use_mm_proj": True,
        "mm_projector_type": "linear" if linear else "mlp2x_gelu", "image_aspect_ratio": None,
        "tokenizer_padding_side": "right", **changes,
    }  # fmt: skip
    folder.mkdir()
    model.tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(values))
    places = {
        "linear_1": "mm_projector.0",
        "linear_2": "mm_projector.2",
        "row_end": "image_newline",
    }
    tensors = {}
    for name, tensor in model.state_dict().items():
        part, _, rest = name.partition(".")
        if part == "connector":
            layer, dot, end = rest.partition(".")
            name = f"model.{places.get(layer, 'mm_projector')}{dot}{end}"
        elif part == "vision_encoder":
            if not tuned:
                continue
            name = "model.vision_tower.vision_tower.vision_model." + rest.removeprefix("module.")
        else:
            name = rest.removeprefix("module.")
        tensors[name] = tensor.clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, folder / "model.safetensors")
    return folder


CASES = {
    "1.0": ({"connector": "linear", "vision": {**CLIP, "hidden_size": 16}}, {}),
    "1.5": ({"image": PADDED}, {"image_aspect_ratio": "pad"}),
    "NeXT": (
        {"image": anyres(grids=GRIDS, rounded=False), "text": {**LLAMA, **LONG}},
        {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad",
         "image_grid_pinpoints": PINPOINTS},
    ),
    "NeXT, mistral, encoder tuned": (
        {"image": anyres(grids=GRIDS, rounded=False), "text": {**MISTRAL, **LONG}},
        {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad",
         "image_grid_pinpoints": PINPOINTS, "tuned": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_model_of_the_authors_names_computes_the_same(tokenizer, tmp_path, case):  # noqa: F811
    settings, changes = CASES[case]
    model = compose(tokenizer, **settings)
    tower = encoder(tmp_path / "tower", model)
    if changes.get("tuned"):  # then what lies at the name is not what is used
        from safetensors.torch import load_file

        file = tower / "model.safetensors"
        save_file({n: t + 1 for n, t in load_file(file).items()}, file, metadata={"format": "pt"})
    folder = published(tmp_path / "theirs", model, tower, **changes)
    assert layout_of(folder) == "llava-original"
    again, report = layout.load(folder, "llava-original")
    assert not report.problems
    own, known = model.state_dict(), again.state_dict()
    assert own.keys() == known.keys()
    assert all(torch.equal(own[name], known[name]) for name in own)
    assert again.arrangement == model.arrangement
    turns = (Turn("user", (Text("What is shown? "), Image("a", square("red", 40)))),)
    encoded = again.chat_encoder.encode(Sample("", turns), generation=True)
    text = again.tokenizer.decode([i for i in encoded.ids if i >= 0])
    if "mistral" in case:
        assert "[INST] \nWhat is shown? [/INST]" in text
    else:
        assert text.startswith("A chat between a curious user") and text.endswith("ASSISTANT:")
        assert "USER: \nWhat is shown? ASSISTANT:" in text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mm_projector_type": "mlp3x_gelu"}, "projector is mlp3x_gelu"),
        ({"image_aspect_ratio": "anyres", "mm_patch_merge_type": "flat"}, "merged as flat"),
        ({"architectures": ["LlavaMptForCausalLM"]}, "architectures are"),
        ({"mm_vision_tower": None}, "names no encoder"),
    ],
)
def test_what_it_does_not_follow_is_named(tokenizer, tmp_path, changes, says):  # noqa: F811
    model = compose(tokenizer)
    folder = published(tmp_path / "theirs", model, encoder(tmp_path / "tower", model), **changes)
    with pytest.raises(CheckpointError, match=says):
        layout.load(folder, "llava-original")


def test_it_is_read_only(tokenizer, tmp_path):  # noqa: F811
    with pytest.raises(ConfigError, match="Diptych writes none"):
        llava_original.export(compose(tokenizer), tmp_path / "out")
