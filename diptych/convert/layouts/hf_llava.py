"""`LlavaForConditionalGeneration`: vision transformer, two-layer projector, language model.

The layout that vLLM, SGLang, lmdeploy and transformers serve unchanged. It holds the `mlp`
connector as it is, and `linear` by an identity: relu(x) - relu(-x) = x, so the projector
[I; -I; 0], ReLU, [W, -W, 0] is W x, where twice the encoder's width fits the language
model's (servers know ReLU; "no activation" is not among what they know).

Source: transformers, models/llava; weight names as in the published llava-hf checkpoints.
Parity: tests/parity/test_hf_llava.py.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from diptych.convert import comparison
from diptych.convert.chat_parts import IMAGE_MARK, for_parts, read_template
from diptych.convert.comparison import ExportReport
from diptych.convert.llava_class import LlavaReference, open_llava
from diptych.convert.llava_projector import to_connector, to_projector
from diptych.convert.probes import plain_config, preprocessing_of, read_json
from diptych.errors import CheckpointError, ConfigError, ExportMismatch
from diptych.model.architectures.vlm import Vlm, VlmConfig
from diptych.model.folder import build
from diptych.model.language_model import LanguageModelConfig
from diptych.model.tensors import adopt, save_tensors, unique_tensors, without_weights
from diptych.model.vision_encoder import VisionEncoderConfig
from diptych.model.weights import reading

CLASSES = ("LlavaForConditionalGeneration",)
MODEL_TYPES = ("llava",)

ARCHITECTURE = "vlm"
NAME = "hf-llava"

Names = Literal["diptych", "published", "loaded"]
KEYS: tuple[dict[Names, str], ...] = (
    {
        "diptych": "vision_encoder.module.",
        "published": "vision_tower.",
        "loaded": "model.vision_tower.",
    },
    {
        "diptych": "connector.",
        "published": "multi_modal_projector.",
        "loaded": "model.multi_modal_projector.",
    },
    {
        "diptych": "language_model.module.model.",
        "published": "language_model.model.",
        "loaded": "model.language_model.",
    },
    {
        "diptych": "language_model.module.lm_head.",
        "published": "language_model.lm_head.",
        "loaded": "lm_head.",
    },
)
"""Prefixes of weight names: in a Vlm, in published files, and in the class once loaded."""

WRAPPED_TOWERS = ("clip_vision_model", "siglip_vision_model")
"""Towers whose published names have one more level, `vision_tower.vision_model.`."""

_OWN = "diptych"
"""Key of `config.json` for what only Diptych reads: `answer_tokens`."""

PAD_ROWS_TO = 64
"""A grown vocabulary is filled up to a multiple, as in the published checkpoints."""


def renamed(tensors: Mapping[str, Tensor], source: Names, target: Names) -> dict[str, Tensor]:
    """The same tensors under the names of another column of `KEYS`.

    Raises:
        ConfigError: a weight that the layout has no place for.
    """
    result = {}
    for name, tensor in tensors.items():
        for rule in KEYS:
            if name.startswith(rule[source]):
                result[rule[target] + name.removeprefix(rule[source])] = tensor
                break
        else:
            raise ConfigError(
                "the layout has no place for one of the model's weights",
                where=name,
                fix="language models of the Llama kind fit (llama, mistral, qwen2 and alike)",
            )
    return result


def outputs(model: Vlm) -> list[Tensor]:
    """Logits of every probe; see `layout.Layout`."""
    return comparison.logits_of_probes(model, comparison.probes(model))


# -- leaving --------------------------------------------------------------------------------


def export(model: Vlm, out: Path) -> ExportReport:
    """Write `model` to the empty folder `out` and compare; see `layout.Layout`."""
    weights = write(model, out)
    try:
        reference = LlavaReference(out, model.device, settled=True)
    except CheckpointError as error:
        raise ExportMismatch(error.what, where=error.where) from error
    report = comparison.compare(model, reference, NAME)
    loaded = reference.module.state_dict()
    for name, tensor in renamed(weights, "published", "loaded").items():
        if not torch.equal(loaded[name].cpu(), tensor.float()):
            report.problems.append(f"the weight {name} is not what was written")
    if model.chat_encoder.adds_begin and not model.chat_encoder.begin_can_be_written:
        report.notes.append(
            f"the tokenizer itself writes {model.tokenizer.bos_token} before a conversation: "
            "servers that tokenise a rendered chat without special tokens must be told to add them"
        )
    if reference.stop_ids != model.chat_encoder.stop_ids():
        report.problems.append("generation stops at other tokens")
    if model.vision_encoder.hf_config.model_type not in WRAPPED_TOWERS:
        report.notes.append(
            "transformers reads this encoder; servers may know CLIP and SigLIP only"
        )
    return report


def compare(model: Vlm, path: Path) -> ExportReport:
    """Hold `model` (float32) against a folder; see `layout.Layout`."""
    reference = LlavaReference(path, model.device, settled=False)
    return comparison.compare(model, reference, NAME)


def write(model: Vlm, out: Path) -> dict[str, Tensor]:
    """Write every file; the weights under their published names, as they were written.

    Raises:
        ConfigError: the layout cannot hold a part of the model.
    """
    if model.language_model.is_encoder_decoder:
        raise ConfigError(
            "the layout holds decoder-only language models, this one has an encoder of its own",
            where="model.language_model",
            fix="keep the Diptych folder, or compose with a causal language model",
        )
    layer, strategy, num_prefix = _tower(model)
    projector, activation = to_projector(model)
    tokenizer = _tokenizer(model)
    image_token = tokenizer.convert_tokens_to_ids(IMAGE_MARK)

    tensors = {n: t for n, t in unique_tensors(model).items() if not n.startswith("connector.")}
    tensors |= {f"connector.{n}": t for n, t in projector.items()}
    tensors = _grown(renamed(tensors, "diptych", "published"), image_token)
    dtype = getattr(torch, model.config.language_model.dtype)
    tensors = {n: t.to(dtype) for n, t in tensors.items()}
    wrap = model.vision_encoder.hf_config.model_type in WRAPPED_TOWERS
    save_tensors(
        {_published(n) if wrap else n: t for n, t in tensors.items()}, out / "model.safetensors"
    )

    rows = tensors["language_model.model.embed_tokens.weight"].shape[0]
    config = {
        "image_token_index": image_token,
        "image_seq_length": model.tokens_per_image,
        "projector_hidden_act": activation,
        "vision_feature_layer": layer,
        "vision_feature_select_strategy": strategy,
    }
    _write_config(model, config, rows, dtype, out)
    _write_generation_config(model, tokenizer, out)
    tokenizer.save_pretrained(out)
    kind = "siglip" if "siglip" in model.vision_encoder.hf_config.model_type else "clip"
    pixels = model.vision_encoder.preprocessing.to_hf(kind)
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": IMAGE_MARK,
        "patch_size": model.vision_encoder.hf_config.patch_size,
        "num_additional_image_tokens": num_prefix,
        "vision_feature_select_strategy": strategy,
    }
    _write_json(out / "preprocessor_config.json", {**pixels, "processor_class": "LlavaProcessor"})
    _write_json(out / "processor_config.json", processor)
    (out / "README.md").write_text(_card(model), encoding="utf-8")
    return tensors


@torch.no_grad()
def _tower(model: Vlm) -> tuple[int, str, int]:
    """(vision_feature_layer, vision_feature_select_strategy, tokens before the patches).

    Raises:
        ConfigError: the class cannot select these features.
    """
    encoder = model.vision_encoder
    height, width = encoder.preprocessing.image_size
    weight = next(encoder.parameters())
    pixels = torch.rand(1, 3, height, width, device=weight.device, dtype=weight.dtype)
    output = encoder.module(pixel_values=pixels, output_hidden_states=True)
    states = output.last_hidden_state
    if states.ndim != 3 or not isinstance(encoder.hf_config.patch_size, int):
        raise ConfigError(
            f"the layout holds vision transformers with square patches, not a "
            f"{encoder.hf_config.model_type} encoder",
            where="model.vision_encoder",
            fix="keep the Diptych folder, or compose with CLIP, SigLIP or another ViT",
        )
    layer = encoder.config.layer
    if layer is None:
        if not torch.equal(states, output.hidden_states[-1]):
            raise ConfigError(
                "the model reads the encoder's output after its final normalisation, the layout "
                "can only name hidden states, the last of which lies before it",
                where="model.vision_encoder.layer",
                fix="train with model.vision_encoder.layer=-1 (or -2, as LLaVA does)",
            )
        layer = -1
    num_prefix = states.shape[1] - encoder.grid[0] * encoder.grid[1]
    if encoder.config.features == "full" or num_prefix == 0:
        return layer, "full", num_prefix
    if num_prefix == 1:
        return layer, "default", num_prefix
    raise ConfigError(
        f"the encoder has {num_prefix} class and register tokens, the layout can leave out one",
        where="model.vision_encoder.features",
        fix="train with model.vision_encoder.features=full",
    )


def _tokenizer(model: Vlm) -> Any:
    """A copy that knows the image mark and has the template for parts."""
    from transformers import AddedToken

    tokenizer = copy.deepcopy(model.tokenizer)
    if IMAGE_MARK not in tokenizer.added_tokens_encoder:
        mark = AddedToken(IMAGE_MARK, special=True, normalized=False)
        tokenizer.add_tokens([mark], special_tokens=True)
    encoder = model.chat_encoder
    tokenizer.chat_template = for_parts(
        encoder.template or "",
        encoder.joint or "line",
        begin=encoder.adds_begin and encoder.begin_can_be_written,
    )
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer("a").input_ids[len(encoder.begin) :] != tokenizer.encode(
        "a", add_special_tokens=False
    ):
        # Behind a prompt comes the answer: nothing ends it.
        tokenizer.add_eos_token = False
    return tokenizer


def _grown(tensors: dict[str, Tensor], image_token: int) -> dict[str, Tensor]:
    """Embeddings and output layer with a row for the image mark.

    New rows are the mean of the others: their logit is the mean of all logits, so that no
    greedy choice ever falls on them, tied or not.
    """
    names = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")
    grown = dict(tensors)
    for name in names:
        rows = tensors.get(name)
        if rows is not None and image_token >= len(rows):
            target = -(-(image_token + 1) // PAD_ROWS_TO) * PAD_ROWS_TO
            grown[name] = torch.cat(
                [rows, rows.mean(0, keepdim=True).repeat(target - len(rows), 1)]
            )
    return grown


def _published(name: str) -> str:
    return name.replace("vision_tower.", "vision_tower.vision_model.", 1)


def _write_config(
    model: Vlm, values: dict[str, Any], rows: int, dtype: torch.dtype, out: Path
) -> None:
    from transformers import LlavaConfig

    text_config: Any = copy.deepcopy(model.language_model.hf_config)
    text_config.vocab_size = rows
    vision_config: Any = copy.deepcopy(model.vision_encoder.hf_config)
    text_config.dtype = vision_config.dtype = dtype
    config = LlavaConfig(
        vision_config=vision_config,
        text_config=text_config,
        tie_word_embeddings=text_config.tie_word_embeddings,
        **values,
    )
    config.architectures = ["LlavaForConditionalGeneration"]
    config.dtype = dtype
    config.save_pretrained(out)
    written = json.loads((out / "config.json").read_text(encoding="utf-8"))
    rope = written["text_config"].get("rope_parameters") or {}
    if "rope_theta" in rope:
        # Readers before transformers 5 know this key only, and take 10000 without it.
        written["text_config"]["rope_theta"] = rope["rope_theta"]
    if words := model.config.language_model.answer_tokens:
        written[_OWN] = {"answer_tokens": list(words)}
    _write_json(out / "config.json", written)


def _write_generation_config(model: Vlm, tokenizer: Any, out: Path) -> None:
    from transformers import GenerationConfig

    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=sorted(model.chat_encoder.stop_ids()),
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(out)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _card(model: Vlm) -> str:
    return (
        "---\nlibrary_name: transformers\npipeline_tag: image-text-to-text\n---\n"
        "# A vision-language model composed with Diptych\n\n"
        "`LlavaForConditionalGeneration`; exported after its logits and greedy tokens were "
        "found equal to the original's.\n"
        f"One picture takes {model.tokens_per_image} tokens.\n"
    )


# -- coming in ------------------------------------------------------------------------------


def load(path: Path) -> Vlm:
    """The model of a folder in this layout; see `layout.Layout`.

    A projector that is the identity of a linear connector becomes `linear` again. The row of
    the image mark stays in the embeddings, where nothing looks it up.
    """
    _, config = _read_config(path)
    module = open_llava(path, "auto")
    tensors = renamed(module.state_dict(), "loaded", "diptych")
    connector, projector = to_connector(tensors, config, path / "config.json")
    tensors = {n: t for n, t in tensors.items() if not n.startswith("connector.")} | projector
    del module
    own = _composed(path, connector)
    with without_weights():
        model = build(own)
    _fill(model, tensors, path)
    _refuse_cut_patches(model, config.vision_feature_select_strategy, path / "config.json")
    return model


def described(path: Path) -> VlmConfig:
    """What it is composed of; see `layout.Layout`. A projector with ReLU is a linear connector."""
    _, config = _read_config(path)
    return _composed(path, "mlp" if config.projector_hidden_act == "gelu" else "linear")


def _read_config(path: Path) -> tuple[dict[str, Any], Any]:
    """config.json of a folder as it stands and as transformers reads it.

    Raises:
        CheckpointError: no LLaVA model, or one that joins several vision layers.
    """
    from transformers import LlavaConfig

    file = path / "config.json"
    values = read_json(file) if file.is_file() else {}
    if values.get("model_type") != "llava":
        raise CheckpointError(
            f"the folder is no LLaVA model (model_type {values.get('model_type')!r})",
            where=str(path),
            fix="name a folder that LlavaForConditionalGeneration can read",
        )
    with reading(path, NAME):
        config = LlavaConfig.from_pretrained(path)
    if not isinstance(config.vision_feature_layer, int):
        raise CheckpointError(
            f"it joins several vision layers ({config.vision_feature_layer}); Diptych reads one",
            where=f"{file}: vision_feature_layer",
        )
    return values, config


def _composed(path: Path, connector: str) -> VlmConfig:
    values, config = _read_config(path)
    kept = values.get("dtype") or values.get("torch_dtype")
    dtype: Literal["float32", "bfloat16"] = "bfloat16" if kept == "bfloat16" else "float32"
    text_config = plain_config(config.text_config)
    text_config["tie_word_embeddings"] = bool(config.tie_word_embeddings)
    template, joint = read_template(path)
    return VlmConfig(
        vision_encoder=VisionEncoderConfig(
            config=plain_config(config.vision_config),
            layer=config.vision_feature_layer,
            features="full" if config.vision_feature_select_strategy == "full" else "patch",
            dtype=dtype,
            image=preprocessing_of(path),
        ),
        connector={"name": connector},
        language_model=LanguageModelConfig(
            config=text_config,
            tokenizer=str(path),
            template=template,
            picture_joint=joint,
            answer_tokens=tuple(values.get(_OWN, {}).get("answer_tokens", ())),
            dtype=dtype,
        ),
    )


def _fill(model: Vlm, tensors: dict[str, Tensor], path: Path) -> None:
    own = model.state_dict()
    if differ := sorted(set(own) ^ set(tensors)):
        raise CheckpointError(
            f"{len(differ)} weights have no counterpart, for example {differ[0]}", where=str(path)
        )
    adopt(model, tensors)


def _refuse_cut_patches(model: Vlm, strategy: str, where: Path) -> None:
    if strategy == "default" and _tower(model)[2] != 1:
        raise CheckpointError(
            "it leaves out the first token of an encoder that has not one class token",
            where=f"{where}: vision_feature_select_strategy",
        )
