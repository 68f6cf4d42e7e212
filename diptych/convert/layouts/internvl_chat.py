"""`InternVLChatModel`: InternVL as first published, with code of its own; read, never written.

None of that code is run. Weights are renamed to the classes of transformers: fused queries, keys
and values are taken apart, and an InternLM 2 body becomes a Llama one. What leaves is
`hf-internvl`.

Source: OpenGVLab/InternVL, internvl_chat/internvl (modeling_internvl_chat.py,
modeling_intern_vit.py, conversation.py) and InternLM 2's modeling_internlm2.py. Parity:
tests/parity/test_internvl_chat.py.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from diptych.convert.comparison import ExportReport
from diptych.convert.internvl_layout import MARKS, HfInternVl
from diptych.convert.probes import read_json
from diptych.data.pixels.preprocessing import Preprocessing
from diptych.data.pixels.tilings.dynamic import Config as Dynamic
from diptych.errors import CheckpointError, ConfigError
from diptych.model.architectures.vlm import Vlm, VlmConfig
from diptych.model.folder import build
from diptych.model.language_model import LanguageModelConfig
from diptych.model.tensors import adopt, read, without_weights
from diptych.model.vision_encoder import VisionEncoderConfig

CLASSES = ("InternVLChatModel",)
MODEL_TYPES = ("internvl_chat",)
ARCHITECTURE = "vlm"
TILINGS = ("dynamic", "single")

_HF = HfInternVl()
outputs = _HF.outputs
_VISION, _TEXT = "vision_encoder.module.", "language_model.module."
_VISION_NAMES = (
    (r"class_embedding$", "cls_token"),
    (r"position_embedding$", "position_embeddings"),
    (r"patch_embedding\.", "patch_embeddings.projection."),
    (r"encoder\.layers\.", "encoder.layer."),
    (r"\.attn\.proj\.", ".attention.projection_layer."),
    (r"\.attn\.", ".attention."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.ls([12])$", r".lambda_\1"),
)
_INTERNLM_NAMES = (
    (r"tok_embeddings\.", "embed_tokens."),
    (r"attention\.wo\.", "self_attn.o_proj."),
    (r"feed_forward\.w1\.", "mlp.gate_proj."),
    (r"feed_forward\.w2\.", "mlp.down_proj."),
    (r"feed_forward\.w3\.", "mlp.up_proj."),
    (r"attention_norm\.", "input_layernorm."),
    (r"ffn_norm\.", "post_attention_layernorm."),
    (r"^output\.", "lm_head."),
)
_PROJECTOR = {"0": "norm", "1": "linear_1", "3": "linear_2"}
_OLD = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, "
    "是一个有用无害的人工智能助手。"
)
_NEW = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及"
    "多家合作单位联合开发的多模态大语言模型。"
)


def _chatml(system: str, end: str) -> str:
    return (
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n"
        f"{system}{end}"
        "{% endif %}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
        f"{end}"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


TEMPLATES = {
    "internlm2-chat": _chatml(_OLD, "<|im_end|>"),
    "Hermes-2": _chatml(_OLD, "<|im_end|>"),
    "internvl2_5": _chatml(_NEW, "<|im_end|>\n"),
}
"""Chat templates by the name in a config's `template`."""


def export(model: Vlm, out: Path) -> ExportReport:
    """Refused: it needs code beside the weights, and Diptych writes none."""
    raise ConfigError(
        "internvl-chat is a layout with code of its own, and Diptych writes none",
        fix="export to hf-internvl, which transformers, vLLM and SGLang read",
    )


def compare(model: Vlm, path: Path) -> ExportReport:
    """Hold a float32 model against transformers' class, given the same weights by its names.

    The original code is not run, so what is compared is Diptych and `hf-internvl`.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = _HF.export(model, Path(folder))
    report.notes.append("compared as hf-internvl: the code beside the weights was not run")
    return report


def described(path: Path) -> VlmConfig:
    """What it is composed of, from its config alone."""
    values = _config(path)
    vision, text = values["vision_config"], values["llm_config"]
    side, patch = vision["image_size"], vision["patch_size"]
    forced = values.get("force_image_size") or side
    if forced != side:
        _refuse(f"its encoder has positions for {side} pixels and is forced to {forced}", path)
    layer = values.get("select_layer", -1)
    tiling = None
    if values.get("dynamic_image_size", True):
        tiling = Dynamic(
            tile=side,
            min_tiles=values.get("min_dynamic_patch", 1),
            max_tiles=values.get("max_dynamic_patch", 12),
            thumbnail=bool(values.get("use_thumbnail", True)),
        )
    return VlmConfig(
        vision_encoder=VisionEncoderConfig(
            config={
                "model_type": "internvl_vision",
                "image_size": [side, side],
                "patch_size": [patch, patch],
                "attention_bias": bool(vision.get("qkv_bias", False)),
                "use_qk_norm": bool(vision.get("qk_normalization", False)),
                "norm_type": vision.get("norm_type", "rms_norm"),
                **{k: vision[k] for k in _SAME if k in vision},
            },
            layer=None if layer == -1 else layer,
            dtype=_dtype(values),
            image=Preprocessing(
                size=(side, side),
                mean=(0.485, 0.456, 0.406),
                std=(0.229, 0.224, 0.225),
                tiling=tiling,
            ),
        ),
        connector={
            "name": "pixel_shuffle",
            "scale": values.get("downsample_ratio", 0.5),
            "order": values.get("ps_version", "v1"),
        },
        language_model=LanguageModelConfig(
            config=_text_config(text, path),
            tokenizer=str(path),
            template=TEMPLATES.get(values.get("template") or ""),
            picture_joint="front",
            picture_marks=MARKS,
            dtype=_dtype(values),
        ),
    )


_SAME = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels",
    "hidden_act", "layer_norm_eps",
)  # fmt: skip


def load(path: Path) -> Vlm:
    """The model of a folder.

    Raises:
        CheckpointError: a body, a setting or a weight that Diptych does not follow.
    """
    own = described(path)
    files = sorted(path.glob("*.safetensors"))
    if not files:
        _refuse("it has no safetensors", path)
    tensors = renamed({k: v for f in files for k, v in read(f).items()}, _config(path), path)
    with without_weights():
        model = build(own)
    named = model.state_dict()
    if differ := sorted(set(named) ^ set(tensors)):
        _refuse(f"{len(differ)} weights have no counterpart, for example {differ[0]}", path)
    adopt(model, tensors)
    return model


def renamed(tensors: dict[str, Tensor], values: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """Weights under Diptych's names.

    Raises:
        CheckpointError: one belongs to none of the three parts.
    """
    text = values["llm_config"]
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part == "vision_model":
            found |= _vision(rest, tensor)
        elif part == "mlp1":
            layer, _, end = rest.partition(".")
            found[f"connector.{_PROJECTOR[layer]}.{end}"] = tensor
        elif part == "language_model":
            is_internlm = text.get("model_type") == "internlm2"
            found |= _internlm(rest, tensor, text) if is_internlm else {_TEXT + rest: tensor}
        else:
            _refuse(f"there is no place for the weight {name}", path)
    if text.get("tie_word_embeddings"):
        found.setdefault(f"{_TEXT}lm_head.weight", found[f"{_TEXT}model.embed_tokens.weight"])
    return found


def _vision(name: str, tensor: Tensor) -> dict[str, Tensor]:
    for pattern, target in _VISION_NAMES:
        name = re.sub(pattern, target, name)
    if ".attention.qkv." in name:
        thirds = zip("qkv", tensor.chunk(3), strict=True)
        return {_VISION + name.replace(".qkv.", f".{k}_proj."): third for k, third in thirds}
    return {_VISION + name: tensor}


def _internlm(name: str, tensor: Tensor, config: dict[str, Any]) -> dict[str, Tensor]:
    """InternLM 2 keeps the heads of one group together: its queries, then its key and value."""
    for pattern, target in _INTERNLM_NAMES:
        name = re.sub(pattern, target, name)
    if ".attention.wqkv." not in name:
        return {_TEXT + name: tensor}
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    width = config["hidden_size"] // heads
    grouped = tensor.view(groups, heads // groups + 2, width, -1)
    parts = {"q": grouped[:, :-2], "k": grouped[:, -2:-1], "v": grouped[:, -1:]}
    return {
        _TEXT + name.replace(".attention.wqkv.", f".self_attn.{k}_proj."): (
            part.reshape(-1, *tensor.shape[1:]).contiguous()
        )
        for k, part in parts.items()
    }


def _text_config(text: dict[str, Any], path: Path) -> dict[str, Any]:
    kind = text.get("model_type")
    if kind == "internlm2":
        kept = (
            "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "rms_norm_eps", "rope_theta", "rope_scaling", "hidden_act",
            "max_position_embeddings", "vocab_size", "initializer_range", "bos_token_id",
            "eos_token_id", "pad_token_id",
        )  # fmt: skip
        own = {k: text[k] for k in kept if text.get(k) is not None}
        tied = bool(text.get("tie_word_embeddings", False))
        bias = bool(text.get("bias", False))
        return {"model_type": "llama", **own, "tie_word_embeddings": tied, "attention_bias": bias}
    if kind not in ("qwen2", "qwen3", "llama", "mistral"):
        _refuse(f"its language model is a {kind}", path)
    dropped = ("architectures", "auto_map", "_name_or_path", "transformers_version", "torch_dtype")
    return {k: v for k, v in text.items() if k not in dropped and v is not None}


def _dtype(values: dict[str, Any]) -> Any:
    return "bfloat16" if values.get("torch_dtype") == "bfloat16" else "float32"


def _config(path: Path) -> dict[str, Any]:
    values = read_json(path / "config.json")
    if values.get("model_type") not in MODEL_TYPES:
        _refuse(f"its model_type is {values.get('model_type')!r}", path)
    return values


def _refuse(what: str, path: Path) -> NoReturn:
    raise CheckpointError(
        f"the folder is no InternVLChatModel that Diptych reads: {what}",
        where=str(path),
        fix="take the `-hf` repository of the model, where there is one",
    )
