"""LLaVA as its authors publish it (`LlavaLlamaForCausalLM` and its kin); read, never written.

1.0, 1.5 and NeXT: the language model's own names, `model.mm_projector`, the encoder by the name of
its weights (`mm_vision_tower`), or beside the others where it was tuned. No code of the repository
is run. What leaves is `hf-llava` or `hf-llava-next`.

Source: haotian-liu/LLaVA and LLaVA-VL/LLaVA-NeXT, llava/model (llava_arch.py, multimodal_projector,
multimodal_encoder/clip_encoder.py) and llava/conversation.py. Parity:
tests/parity/test_llava_original.py.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from diptych.convert.comparison import ExportReport
from diptych.convert.llava_hf import HfLlava, HfLlavaNext
from diptych.convert.llava_layout import LlavaLayout
from diptych.convert.probes import read_json
from diptych.data.pixels.preprocessing import Preprocessing
from diptych.data.pixels.tilings.anyres import Config as Anyres
from diptych.data.text.chat_template import TEMPLATES
from diptych.errors import CheckpointError, ConfigError
from diptych.model import vision_encoder
from diptych.model.architectures.vlm import Vlm, VlmConfig
from diptych.model.folder import build
from diptych.model.language_model import LanguageModelConfig
from diptych.model.tensors import adopt, read, without_weights
from diptych.model.vision_encoder import VisionEncoderConfig

CLASSES = ("LlavaLlamaForCausalLM", "LlavaMistralForCausalLM", "LlavaQwenForCausalLM")
MODEL_TYPES = ("llava_llama", "llava_mistral", "llava_qwen")
ARCHITECTURE = "vlm"
TILINGS = ("single", "anyres")

outputs = HfLlava().outputs
_TEXTS = {"Llama": "llama", "Mistral": "mistral", "Qwen": "qwen2"}
_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. "
)
VICUNA = "{% if messages[0]['role'] != 'system' %}" + _SYSTEM + "{% endif %}" + TEMPLATES["vicuna"]
"""`vicuna_v1` of its conversation.py: the system words stand before every conversation."""
_TOWER = ("model.vision_tower.vision_tower.vision_model.", "model.vision_tower.vision_tower.")
_TEMPLATES = {"llama": VICUNA, "mistral": "mistral", "qwen2": "chatml"}


def export(model: Vlm, out: Path) -> ExportReport:
    """Refused: it needs the repository's code to be read."""
    raise ConfigError(
        "llava-original is read by its authors' code alone, and Diptych writes none",
        fix="export to hf-llava or hf-llava-next",
    )


def compare(model: Vlm, path: Path) -> ExportReport:
    """Hold a float32 model against transformers' class, given the same weights by its names.

    The original code is not run. It rounds the sizes of a merged map otherwise than transformers
    (`MapTiling.rounded`), so tiles are compared in transformers' way.
    """
    layout: LlavaLayout = HfLlava()
    twin = model
    tiling = model.preprocessing.tiling
    if isinstance(tiling, Anyres):
        layout, twin = HfLlavaNext(), copy.deepcopy(model)
        as_theirs = tiling.model_copy(update={"rounded": True})
        twin.vision_encoder.preprocessing = model.preprocessing.model_copy(
            update={"tiling": as_theirs}
        )
        for settled in ("arrangement", "chat_encoder"):
            twin.__dict__.pop(settled, None)
    with tempfile.TemporaryDirectory() as folder:
        report = layout.export(twin, Path(folder))
    report.notes.append(f"compared as {layout.name}: the authors' code was not run")
    return report


def described(path: Path) -> VlmConfig:
    """What it is composed of, from its config and that of the encoder that it names."""
    values = _config(path)
    own = VisionEncoderConfig(
        weights=values.get("mm_vision_tower"),
        layer=values.get("mm_vision_select_layer", -2),
        features="full" if values.get("mm_vision_select_feature") == "cls_patch" else "patch",
    )
    known, hf_config = vision_encoder.resolve(own)
    assert known.image is not None, "an encoder by name brings its preprocessing"
    image = _image(known.image, values, path)
    kind = _text_kind(values)
    return VlmConfig(
        vision_encoder=known.model_copy(
            update={
                "weights": None,
                "config": {"model_type": hf_config.model_type, **hf_config.to_diff_dict()},
                "image": image,
                "dtype": _dtype(values),
            }
        ),
        connector={"name": _connector(values, path)},
        language_model=LanguageModelConfig(
            config=_text_config(values, kind),
            tokenizer=str(path),
            template=_TEMPLATES[kind],
            picture_joint="front",
            dtype=_dtype(values),
        ),
    )


def load(path: Path) -> Vlm:
    """The model of a folder.

    Raises:
        CheckpointError: a setting or a weight that Diptych does not follow.
    """
    own = described(path)
    files = sorted(path.glob("*.safetensors"))
    if not files:
        _refuse("it has no weights", path)
    tensors = _renamed({k: v for f in files for k, v in read(f).items()}, path)
    with without_weights():
        model = build(own)
    named = model.state_dict()
    if not any(name.startswith("vision_encoder.") for name in tensors):
        weights = _config(path).get("mm_vision_tower")
        encoder = vision_encoder.build(
            VisionEncoderConfig(weights=weights, layer=own.vision_encoder.layer)
        )
        tensors |= {f"vision_encoder.{n}": t for n, t in encoder.state_dict().items()}
    if differ := sorted(set(named) ^ set(tensors)):
        _refuse(f"{len(differ)} weights have no counterpart, for example {differ[0]}", path)
    adopt(model, tensors)
    return model


def _renamed(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    projector = {"0": "linear_1", "2": "linear_2", "weight": "projection", "bias": "projection"}
    found = {}
    for name, tensor in tensors.items():
        if name.endswith(("position_ids", "rotary_emb.inv_freq")):
            continue  # counted anew by every model
        if name == "model.image_newline":
            found["connector.row_end"] = tensor
        elif name.startswith("model.mm_projector."):
            layer, _, end = name.removeprefix("model.mm_projector.").partition(".")
            if layer not in projector:
                _refuse(f"there is no place for the weight {name}", path)
            found[f"connector.{projector[layer]}.{end or layer}"] = tensor
        elif tower := next((t for t in _TOWER if name.startswith(t)), None):
            found[f"vision_encoder.module.{name.removeprefix(tower)}"] = tensor
        else:
            found[f"language_model.module.{name}"] = tensor
    return found


def _connector(values: dict[str, Any], path: Path) -> str:
    kind = values.get("mm_projector_type") or "linear"
    if kind not in ("linear", "mlp2x_gelu"):
        _refuse(f"its projector is {kind}", path)
    return "linear" if kind == "linear" else "mlp"


def _image(image: Preprocessing, values: dict[str, Any], path: Path) -> Preprocessing:
    aspect = values.get("image_aspect_ratio") or "square"
    if aspect == "square":
        return image
    if aspect == "pad":
        return image.model_copy(update={"pad_to_square": True})
    merge = values.get("mm_patch_merge_type") or "flat"
    if not aspect.startswith("anyres") or merge != "spatial_unpad":
        _refuse(f"it reads pictures as {aspect}, its tiles merged as {merge}", path)
    pinpoints, side = values.get("image_grid_pinpoints"), image.image_size[0]
    if not isinstance(pinpoints, list) or any(n % side for p in pinpoints for n in p):
        _refuse(f"its image_grid_pinpoints are {pinpoints}", path)
    most = aspect.removeprefix("anyres").removeprefix("_max_")
    tiling = Anyres(
        tile=side,
        grids=tuple((height // side, width // side) for width, height in pinpoints),
        rounded=False,
        max_map_tiles=int(most) if most else None,
    )
    return image.model_copy(update={"tiling": tiling})


def _text_kind(values: dict[str, Any]) -> str:
    name = (values.get("architectures") or [""])[0]
    return _TEXTS[name.removeprefix("Llava").removesuffix("ForCausalLM")]


def _text_config(values: dict[str, Any], kind: str) -> dict[str, Any]:
    """The language model's own keys; those of the pictures stand among them."""
    from transformers import CONFIG_MAPPING

    known = {*CONFIG_MAPPING[kind]().to_dict(), "rope_theta", "rope_scaling"}
    dropped = {
        "architectures", "model_type", "transformers_version", "dtype", "torch_dtype",
        "_name_or_path",
    }  # fmt: skip
    own = {k: v for k, v in values.items() if k in known - dropped and v is not None}
    return {"model_type": kind, **own}


def _dtype(values: dict[str, Any]) -> Any:
    return "float32" if values.get("torch_dtype") == "float32" else "bfloat16"


def _config(path: Path) -> dict[str, Any]:
    values = read_json(path / "config.json")
    if not set(values.get("architectures") or ()) & set(CLASSES):
        _refuse(f"its architectures are {values.get('architectures')}", path)
    if not values.get("mm_vision_tower"):
        _refuse("it names no encoder (mm_vision_tower)", path)
    return values


def _refuse(what: str, path: Path) -> NoReturn:
    raise CheckpointError(
        f"the folder is no LLaVA of its authors that Diptych reads: {what}",
        where=str(path),
        fix="take a `-hf` repository of the model, where there is one",
    )
