"""Checkpoints of LAVIS and of the first BLIP repository (.pth), read without running anything."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from diptych.convert import lavis
from diptych.convert.comparison import ExportReport
from diptych.data.pixels.preprocessing import Preprocessing
from diptych.errors import CheckpointError, ConfigError
from diptych.model.architectures.answerer import Answerer, AnswererConfig
from diptych.model.architectures.captioner import Captioner, CaptionerConfig
from diptych.model.pickles import read_tensors
from diptych.model.text_mixture import TextMixtureConfig, share
from diptych.model.vision_encoder import VisionEncoderConfig

PICKLED = True

ARCHITECTURE = "captioner"
HEAD_DIM = 64
"""Width of an attention head in every published BLIP."""
_VISION = (
    (r"^blocks\.", "encoder.layers."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
    (r"\.attn\.", ".self_attn."),
    (r"\.norm1\.", ".layer_norm1."),
    (r"\.norm2\.", ".layer_norm2."),
    (r"^norm\.", "post_layernorm."),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^cls_token$", "embeddings.class_embedding"),
)
_HEADS = {"vision_proj": "image", "text_proj": "text", "itm_head": "matching"}
_TRAINING = re.compile(r"(_m\.|_queue$|^queue_ptr$|position_ids$|^idx_queue$|^new_ptr_queue$)")


def own_name(name: str) -> str | None:
    """A weight's name there -> in a captioner; None for what only training there needs.

    Raises:
        CheckpointError: no rule knows the name.
    """
    if _TRAINING.search(name):
        return None
    if name == "temp":
        return "heads.temperature"
    part, _, rest = name.partition(".")
    if part in _HEADS:
        return f"heads.{_HEADS[part]}.{rest}"
    if part == "text_encoder":
        return f"text.reader.{rest.removeprefix('bert.')}"
    if part == "text_decoder":
        return f"text.writer.{rest}"
    if part == "visual_encoder":
        for pattern, ours in _VISION:
            rest = re.sub(pattern, ours, rest)
        return f"vision_encoder.module.{rest}"
    raise CheckpointError(f"'{name}' is no weight of BLIP", fix="name a BLIP checkpoint of LAVIS")


def export(model: Captioner, out: Path) -> ExportReport:
    """Refused: the layout is a pickle, and Diptych writes none."""
    raise ConfigError(
        "lavis-blip is a pickle, and Diptych writes none",
        fix="export to hf-blip-captioning or hf-blip-retrieval",
    )


def outputs(model: Captioner) -> list[Tensor]:
    """Nothing is exported, so nothing is compared."""
    return []


def described(path: Path) -> NoReturn:
    """Refused: a pickle says what it holds when it is read."""
    raise ConfigError(
        "a LAVIS checkpoint has no config to read ahead of it",
        where=str(path),
        fix="convert it first: diptych convert FILE OUT --from lavis-blip",
    )


def load(path: Path) -> Captioner | Answerer:
    """The captioner of a .pth file, or of a folder with one and, if it likes, a tokenizer.

    A file for questions (BLIP-VQA), whose reader and writer go their own ways, is an answerer.

    Sizes are read from the weights; a head of attention is 64 wide in every published BLIP. What a
    task's checkpoint leaves out (captioning has no reader, retrieval no writer) is started from
    what it has; heads that are not there are new.

    Raises:
        UnsafeFile: the file wants to run code.
        CheckpointError: it is no BLIP, or a weight does not fit.
    """
    file, tokenizer = lavis.places(path)
    tensors = _read(file)
    patches = tensors.get("vision_encoder.module.embeddings.patch_embedding.weight")
    if patches is None:
        raise CheckpointError("there is no image encoder in it", where=str(file))
    config = _config(tensors, tokenizer, file)
    if _goes_own_ways(tensors):
        own = AnswererConfig(vision_encoder=config.vision_encoder, text=config.text)
        answerer = own.compose().eval()
        lavis.fill(answerer, tensors, file)
        return answerer
    model = config.compose().eval()
    lavis.fill(model, tensors, file)
    with torch.no_grad():
        reader, writer = model.text.reader, model.text.writer.bert
        has_reader = any(n.startswith("text.reader.") for n in tensors)
        has_writer = any(n.startswith("text.writer.bert.") for n in tensors)
        if not has_reader and not has_writer:
            raise CheckpointError("there is no text encoder or decoder in it", where=str(file))
        if not (has_reader and has_writer):
            source, target = (reader, writer) if has_reader else (writer, reader)
            for its, ours_ in zip(source.encoder.layer, target.encoder.layer, strict=True):
                ours_.attention.load_state_dict(its.attention.state_dict())
    share(model.text.reader, model.text.writer)
    return model


def _goes_own_ways(tensors: dict[str, Tensor]) -> bool:
    """Whether reader and writer differ beyond self-attention: they share nothing then."""
    reader = "text.reader.encoder.layer."
    return any(
        not torch.equal(tensor, twin)
        for name, tensor in tensors.items()
        if name.startswith(reader) and ".attention." not in name
        if (twin := tensors.get(name.replace("text.reader.", "text.writer.bert.", 1))) is not None
    )


def compare(model: Captioner | Answerer, path: Path) -> ExportReport:
    """Every weight that the file has is the model's; see `lavis.compare_weights`."""
    return lavis.compare_weights("lavis-blip", model, _read(lavis.places(path)[0]))


def _read(file: Path) -> dict[str, Tensor]:
    """The weights in float32, by their names in a captioner."""
    tensors = {}
    for name, tensor in read_tensors(file).items():
        ours = own_name(name)
        if ours is not None:
            tensors[ours] = tensor.float()
    return tensors


def _config(tensors: dict[str, Tensor], tokenizer: str, file: Path) -> CaptionerConfig:
    """Sizes, from the weights."""

    def get(name: str) -> Tensor:
        return lavis.known(tensors, name, file)

    vision = "vision_encoder.module."
    patches = get(f"{vision}embeddings.patch_embedding.weight")
    width, patch = patches.shape[0], patches.shape[2]
    grid = round((get(f"{vision}embeddings.position_embedding").shape[1] - 1) ** 0.5)
    size = grid * patch
    part = "text.reader." if "text.reader.embeddings.word_embeddings.weight" in tensors else None
    part = part or "text.writer.bert."
    words = get(f"{part}embeddings.word_embeddings.weight")
    projection: Any = tensors.get("heads.image.weight")
    return CaptionerConfig(
        vision_encoder=VisionEncoderConfig(
            config={
                "model_type": "blip_vision_model",
                "hidden_size": width,
                "intermediate_size": get(f"{vision}encoder.layers.0.mlp.fc1.weight").shape[0],
                "num_hidden_layers": lavis.count(tensors, f"{vision}encoder.layers."),
                "num_attention_heads": max(1, width // HEAD_DIM),
                "image_size": size,
                "patch_size": patch,
                "layer_norm_eps": 1e-6,
            },
            features="full",
            image=Preprocessing(
                resize="exact",
                size=(size, size),
                mean=(0.48145466, 0.4578275, 0.40821073),
                std=(0.26862954, 0.26130258, 0.27577711),
            ),
        ),
        text=TextMixtureConfig(
            config={
                "vocab_size": words.shape[0],
                "hidden_size": words.shape[1],
                "intermediate_size": get(f"{part}encoder.layer.0.intermediate.dense.weight").shape[
                    0
                ],
                "num_hidden_layers": lavis.count(tensors, f"{part}encoder.layer."),
                "num_attention_heads": max(1, words.shape[1] // HEAD_DIM),
                "max_position_embeddings": get(
                    f"{part}embeddings.position_embeddings.weight"
                ).shape[0],
                "layer_norm_eps": 1e-12,
                "hidden_act": "gelu",
            },
            tokenizer=tokenizer,
        ),
        dim=256 if projection is None else projection.shape[0],
    )
