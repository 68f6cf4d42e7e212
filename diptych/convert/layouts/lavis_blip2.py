"""Stage-1 checkpoints of LAVIS's BLIP-2 (.pth), read without running anything.

LAVIS saves what learned; the frozen encoder lies in a file of its own (`eva_vit_g.pth`), which is
read from beside the checkpoint where that has none. Files of stage 2 start a connector instead.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from diptych.convert import lavis
from diptych.convert.comparison import ExportReport
from diptych.data.pixels.preprocessing import Preprocessing
from diptych.errors import CheckpointError, ConfigError
from diptych.model import lavis_qformer
from diptych.model.architectures.query_transformer import QueryTransformer, QueryTransformerConfig
from diptych.model.pickles import read_tensors
from diptych.model.query_former import QueryFormerConfig
from diptych.model.vision_encoder import VisionEncoderConfig

PICKLED = True

ARCHITECTURE = "query_transformer"
ENCODER_FILE = "eva_vit_g.pth"
HEAD_DIMS = {1408: 88}
"""Width of an attention head by the width of the encoder (EVA ViT-g); others have 64."""
_VISION_NAMES = (
    (r"^blocks\.", "encoder.layers."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
    (r"\.attn\.", ".self_attn."),
    (r"\.norm1\.", ".layer_norm1."),
    (r"\.norm2\.", ".layer_norm2."),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^cls_token$", "embeddings.class_embedding"),
)
_HEADS = {"vision_proj": "image", "text_proj": "text", "itm_head": "matching"}
_VISION, _FORMER = "vision_encoder.module.", "query_former."


def export(model: QueryTransformer, out: Path) -> ExportReport:
    """Refused: the layout is a pickle, and Diptych writes none."""
    raise ConfigError(
        "lavis-blip2 is a pickle, and Diptych writes none", fix="export to hf-blip2-retrieval"
    )


def outputs(model: QueryTransformer) -> list[Tensor]:
    """Nothing is exported, so nothing is compared."""
    return []


def described(path: Path) -> NoReturn:
    """Refused: a pickle says what it holds when it is read."""
    raise ConfigError(
        "a LAVIS checkpoint has no config to read ahead of it",
        where=str(path),
        fix="convert it first: diptych convert FILE OUT --from lavis-blip2",
    )


def load(path: Path) -> QueryTransformer:
    """The querying transformer of a .pth file, or of a folder with one.

    Sizes are read from the weights.

    Raises:
        UnsafeFile: the file wants to run code.
        CheckpointError: it is no stage 1 of BLIP-2, or a weight does not fit.
    """
    file, tokenizer = lavis.places(path)
    tensors = _read(file)
    model = _config(tensors, tokenizer, file).compose().eval()
    lavis.fill(model, tensors, file)
    return model


def compare(model: QueryTransformer, path: Path) -> ExportReport:
    """Every weight that the file has is the model's; see `lavis.compare_weights`."""
    return lavis.compare_weights("lavis-blip2", model, _read(lavis.places(path)[0]))


def _read(file: Path) -> dict[str, Tensor]:
    """The weights in float32, by their names in a query transformer."""
    found = read_tensors(file)
    if lavis_qformer.is_stage_2(found):
        raise CheckpointError(
            "this is a checkpoint of stage 2, which has no text side",
            where=str(file),
            fix="name the file as model.connector.weights of a recipe",
        )
    inner = {
        name.removeprefix("visual_encoder."): tensor
        for name, tensor in found.items()
        if name.startswith("visual_encoder.")
    }
    if not inner:
        beside = file.parent / ENCODER_FILE
        if not beside.is_file():
            raise CheckpointError(
                "there is no image encoder in it: LAVIS keeps the frozen one apart",
                where=str(file),
                fix=f"put {ENCODER_FILE} beside it",
            )
        inner = _without_last(read_tensors(beside))
    tensors = {f"{_VISION}{n}": t for n, t in _vision(inner).items()}
    tensors |= {f"{_FORMER}{n}": t for n, t in lavis_qformer.read(found).items()}
    for name, tensor in found.items():
        part, _, rest = name.partition(".")
        if name == "temp":
            tensors["heads.temperature"] = tensor.float()
        elif part in _HEADS:
            tensors[f"heads.{_HEADS[part]}.{rest}"] = tensor.float()
        elif part != "visual_encoder" and lavis_qformer.own_name(name) is None:
            raise CheckpointError(
                f"'{name}' is no weight of BLIP-2's stage 1",
                where=str(file),
                fix="name a checkpoint of its stage 1",
            )
    return tensors


def _vision(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """EVA's weights by their names in Blip2VisionModel; keys have no bias there."""
    found = {}
    for name, tensor in tensors.items():
        tensor = tensor.float()
        if name.endswith("attn.q_bias"):
            values = tensors[name.replace("q_bias", "v_bias")].float()
            name = name.replace("q_bias", "qkv.bias")
            tensor = torch.cat([tensor, torch.zeros_like(tensor), values])
        elif name.endswith("attn.v_bias"):
            continue
        for pattern, ours in _VISION_NAMES:
            name = re.sub(pattern, ours, name)
        found[name] = tensor
    return found


def _without_last(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The whole EVA without its head and its last block, which BLIP-2 leaves out."""
    blocks = lavis.count(tensors, "blocks.")
    kept = ("blocks.", "patch_embed.", "pos_embed", "cls_token")
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name.startswith(kept) and not name.startswith(f"blocks.{blocks - 1}.")
    }


def _config(tensors: dict[str, Tensor], tokenizer: str, file: Path) -> QueryTransformerConfig:
    """Sizes, from the weights."""

    def get(name: str) -> Tensor:
        return lavis.known(tensors, name, file)

    patches = get(f"{_VISION}embeddings.patch_embedding.weight")
    width, patch = patches.shape[0], patches.shape[2]
    grid = round((get(f"{_VISION}embeddings.position_embedding").shape[1] - 1) ** 0.5)
    size = grid * patch
    words = get(f"{_FORMER}embeddings.word_embeddings.weight")
    inner = {n.removeprefix(_FORMER): t for n, t in tensors.items() if n.startswith(_FORMER)}
    sizes = lavis_qformer.sizes(inner, file)
    every = sizes.pop("cross_attention_frequency")
    del sizes["encoder_hidden_size"]  # the encoder's
    return QueryTransformerConfig(
        vision_encoder=VisionEncoderConfig(
            config={
                "model_type": "blip_2_vision_model",
                "hidden_size": width,
                "intermediate_size": get(f"{_VISION}encoder.layers.0.mlp.fc1.weight").shape[0],
                "num_hidden_layers": lavis.count(tensors, f"{_VISION}encoder.layers."),
                "num_attention_heads": max(1, width // HEAD_DIMS.get(width, 64)),
                "image_size": size,
                "patch_size": patch,
                "layer_norm_eps": 1e-6,
            },
            layer=-1,
            features="full",
            image=Preprocessing(
                resize="exact",
                size=(size, size),
                mean=(0.48145466, 0.4578275, 0.40821073),
                std=(0.26862954, 0.26130258, 0.27577711),
            ),
        ),
        query_former=QueryFormerConfig(
            config={
                **sizes,
                "vocab_size": words.shape[0],
                "max_position_embeddings": get(
                    f"{_FORMER}embeddings.position_embeddings.weight"
                ).shape[0],
            },
            tokenizer=tokenizer,
            num_queries=get(f"{_FORMER}queries").shape[0],
            cross_attention_every=every,
        ),
        dim=get("heads.image.weight").shape[0],
        temperature=float(tensors.get("heads.temperature", torch.tensor(0.07))),
    )
