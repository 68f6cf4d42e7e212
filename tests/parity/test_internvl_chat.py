"""InternVLChatModel's names lead to the same model; packed by hand here, as its code unpacks them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diptych.convert import layout
from diptych.convert.layouts import internvl_chat
from diptych.data.sample import Image, Sample, Text, Turn
from diptych.errors import CheckpointError, ConfigError
from diptych.model.published import layout_of
from tests.conftest import square
from tests.parity.small_llava import LLAMA, QWEN2
from tests.parity.test_tiled_layouts import INTERN, RMS, internvl, one_thread, tokenizer  # noqa: F401

VISION = {
    "cls_token": "class_embedding",
    "position_embeddings": "position_embedding",
    "patch_embeddings.projection": "patch_embedding",
    "encoder.layer": "encoder.layers",
    "attention.projection_layer": "attn.proj",
    "attention.q_norm": "attn.q_norm",
    "attention.k_norm": "attn.k_norm",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "lambda_1": "ls1",
    "lambda_2": "ls2",
}
INTERNLM = {
    "embed_tokens": "tok_embeddings",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "lm_head": "output",
}


def renamed(name: str, rules: dict[str, str]) -> str:
    for ours, theirs in rules.items():
        name = name.replace(ours, theirs)
    return name


def as_published(model, internlm: bool) -> dict[str, torch.Tensor]:
    """The model's weights as InternVLChatModel saves them."""
    own = {n: t.detach().clone() for n, t in model.state_dict().items()}
    found = {}
    for name in list(own):
        if ".attention.q_proj." in name:
            thirds = [own.pop(name.replace(".q_proj.", f".{k}_proj.")) for k in "qkv"]
            own[name.replace(".q_proj.", ".qkv.")] = torch.cat(thirds)
        elif internlm and ".self_attn.q_proj." in name:
            q, k, v = (own.pop(name.replace(".q_proj.", f".{k}_proj.")) for k in "qkv")
            groups = LLAMA["num_key_value_heads"]
            width = LLAMA["hidden_size"] // LLAMA["num_attention_heads"]
            packed = []
            for group in range(groups):  # its queries, then its key, then its value
                size = len(q) // groups
                packed += [q[group * size : (group + 1) * size]]
                packed += [part[group * width : (group + 1) * width] for part in (k, v)]
            own[name.replace("self_attn.q_proj", "attention.wqkv")] = torch.cat(packed)
    places = {"norm": "mlp1.0", "linear_1": "mlp1.1", "linear_2": "mlp1.3"}
    for name, tensor in own.items():
        if name.startswith("vision_encoder.module."):
            rest = name.removeprefix("vision_encoder.module.").replace("attention.qkv", "attn.qkv")
            name = f"vision_model.{renamed(rest, VISION)}"
        elif name.startswith("connector."):
            layer, _, end = name.removeprefix("connector.").partition(".")
            name = f"{places[layer]}.{end}"
        else:
            rest = name.removeprefix("language_model.module.")
            name = f"language_model.{renamed(rest, INTERNLM) if internlm else rest}"
        found[name] = tensor.contiguous()
    return found


def published(folder: Path, model, internlm: bool, **changes) -> Path:
    vision, text = (p.hf_config for p in (model.vision_encoder, model.language_model))
    values = {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"},
        "downsample_ratio": 0.5, "ps_version": "v2", "select_layer": -1, "force_image_size": 32,
        "dynamic_image_size": True, "use_thumbnail": True, "min_dynamic_patch": 1,
        "max_dynamic_patch": 6, "template": "internlm2-chat" if internlm else "internvl2_5",
        "torch_dtype": "float32",
        "vision_config": {
            "model_type": "intern_vit_6b", "image_size": 32, "patch_size": 8, "num_channels": 3,
            "hidden_act": "gelu", "qkv_bias": vision.attention_bias, "norm_type": vision.norm_type,
            "qk_normalization": vision.use_qk_norm, "layer_norm_eps": vision.layer_norm_eps,
            "hidden_size": vision.hidden_size, "intermediate_size": vision.intermediate_size,
            "num_hidden_layers": vision.num_hidden_layers, "drop_path_rate": 0.1,
            "num_attention_heads": vision.num_attention_heads, "use_flash_attn": True,
        },
        "llm_config": {
            **json.loads(text.to_json_string(use_diff=False)),
            "model_type": "internlm2" if internlm else text.model_type, "bias": False,
            "rope_theta": text.rope_parameters["rope_theta"],
        },
        **changes,
    }  # fmt: skip
    if internlm:
        values["llm_config"].pop("rope_parameters")
    folder.mkdir()
    model.tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(values))
    tensors = as_published(model, internlm)
    names = sorted(tensors)
    for number in range(2):  # in shards, as larger ones are
        share = {n: tensors[n] for n in names[number::2]}
        save_file(share, folder / f"model-{number + 1:05d}-of-00002.safetensors")
    return folder


@pytest.mark.parametrize(
    ("internlm", "settings"),
    [
        (True, {"text": LLAMA, "vision": INTERN}),
        (False, {"text": QWEN2, "vision": INTERN}),
        (False, {"text": LLAMA, "vision": RMS}),
    ],
    ids=["internlm2", "qwen2", "rms norm"],
)
def test_a_model_of_its_names_computes_the_same(tokenizer, tmp_path, internlm, settings):  # noqa: F811
    model = internvl(tokenizer, **settings)
    folder = published(tmp_path / "theirs", model, internlm)
    assert layout_of(folder) == "internvl-chat"
    again, report = layout.load(folder, "internvl-chat")
    assert not report.problems and any("was not run" in note for note in report.notes)
    own, known = model.state_dict(), again.state_dict()
    assert own.keys() == known.keys()
    assert all(torch.equal(own[name], known[name]) for name in own)
    assert again.arrangement == model.arrangement
    turns = (Turn("user", (Image("a", square("red", 40)), Text("What is shown?"))),)
    encoded = again.chat_encoder.encode(Sample("", turns), generation=True)
    text = again.tokenizer.decode([i for i in encoded.ids if i >= 0])
    system = "书生·万象" if not internlm else "商汤科技"
    assert system in text and "<img>" in text and text.endswith("<|im_start|>assistant\n")
    layout.export(again, "hf-internvl", tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"force_image_size": 448}, "positions for 32 pixels"),
        ({"llm_config": {"model_type": "phi3"}}, "language model is a phi3"),
        ({"model_type": "internvl"}, "model_type is 'internvl'"),
    ],
)
def test_what_it_does_not_follow_is_named(tokenizer, tmp_path, changes, says):  # noqa: F811
    folder = published(tmp_path / "theirs", internvl(tokenizer), False, **changes)
    with pytest.raises(CheckpointError, match=says):
        layout.load(folder, "internvl-chat")


def test_weights_that_are_not_there_or_have_no_place(tokenizer, tmp_path):  # noqa: F811
    folder = published(tmp_path / "theirs", internvl(tokenizer), False)
    file = folder / "model-00001-of-00002.safetensors"
    file.unlink()
    with pytest.raises(CheckpointError, match="have no counterpart"):
        internvl_chat.load(folder)
    save_file({"audio.weight": torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match="no place for the weight audio"):
        internvl_chat.load(folder)
    with pytest.raises(ConfigError, match="Diptych writes none"):
        layout.export(internvl(tokenizer), "internvl-chat", tmp_path / "out")
