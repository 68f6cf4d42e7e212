"""BLIP-2 checkpoints in LAVIS's layout: names, sizes, losses, and files that would run code."""

from __future__ import annotations

import os
import re
import shutil

import pytest
import torch

from diptych.convert import layout
from diptych.data.batching.collate_pairs import PairCollator
from diptych.data.batching.picture_loader import Item, PictureLoader
from diptych.data.sample import Image, Sample, Text, Turn
from diptych.errors import CheckpointError, ConfigError, UnsafeFile
from diptych.model.architecture import config_from_dict
from diptych.model.connectors.qformer import Config as Connector
from diptych.model.folder import build
from diptych.train.objectives import query_text
from tests.parity.test_dual_encoder import pictures, spread

TEXTS = ("a red square", "two blue", "yes")
BACK = (
    (r"^heads\.image\.", "vision_proj."),
    (r"^heads\.text\.", "text_proj."),
    (r"^heads\.matching\.", "itm_head."),
    (r"^heads\.temperature$", "temp"),
    (r"^query_former\.queries$", "query_tokens"),
    (r"^query_former\.image_norm\.", "ln_vision."),
    (r"^query_former\.output_bias$", "Qformer.cls.predictions.bias"),
    (r"^query_former\.transform\.", "Qformer.cls.predictions.transform.dense."),
    (r"^query_former\.transform_norm\.", "Qformer.cls.predictions.transform.LayerNorm."),
    (r"^query_former\.module\.layernorm\.", "Qformer.bert.embeddings.LayerNorm."),
    (r"^query_former\.(module\.)?", "Qformer.bert."),
    (r"\.(cross)?attention\.attention\.", r".\1attention.self."),
    (r"^vision_encoder\.module\.", "visual_encoder."),
    (r"encoder\.layers\.", "blocks."),
    (r"self_attn\.projection", "attn.proj"),
    (r"self_attn", "attn"),
    (r"layer_norm", "norm"),
    (r"embeddings\.patch_embedding", "patch_embed.proj"),
    (r"embeddings\.position_embedding$", "pos_embed"),
    (r"embeddings\.class_embedding", "cls_token"),
)


def lavis_name(name: str) -> str:
    """Written from LAVIS's own modules, not from the rules under test."""
    for pattern, theirs in BACK:
        name = re.sub(pattern, theirs, name)
    return name


@pytest.fixture
def model(tokenizer_folder):
    size = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    values = {
        "name": "query_transformer",
        "vision_encoder": {
            "config": {
                "model_type": "blip_2_vision_model", **size, "num_attention_heads": 1,
                "image_size": 28, "patch_size": 7, "layer_norm_eps": 1e-6,
            },
            "layer": -1, "features": "full",
            "image": {
                "resize": "exact", "size": [28, 28],
                "mean": [0.48145466, 0.4578275, 0.40821073],
                "std": [0.26862954, 0.26130258, 0.27577711],
            },
        },
        "query_former": {
            "config": {
                **size, "num_attention_heads": 1, "max_position_embeddings": 40,
                "layer_norm_eps": 1e-12,
            },
            "tokenizer": str(tokenizer_folder), "num_queries": 3, "dropout": 0.1,
        },
        "dim": 12,
    }  # fmt: skip
    return spread(build(config_from_dict(values), seed=3))


def named(model) -> dict[str, torch.Tensor]:
    """The weights as LAVIS names them: no bias of keys, queries with a batch, tied copies."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.clone()
        if "post_layernorm" in name:
            continue  # the encoder is read before it
        theirs = lavis_name(name)
        if theirs.endswith("attn.qkv.bias"):
            query, _, value = tensor.chunk(3)
            tensors[theirs.replace("qkv.bias", "q_bias")] = query
            tensors[theirs.replace("qkv.bias", "v_bias")] = value
        else:
            tensors[theirs] = tensor[None] if theirs == "query_tokens" else tensor
    words = tensors["Qformer.bert.embeddings.word_embeddings.weight"]
    tensors["Qformer.cls.predictions.decoder.weight"] = words
    tensors["Qformer.cls.predictions.decoder.bias"] = tensors["Qformer.cls.predictions.bias"]
    tensors["Qformer.bert.embeddings.position_ids"] = torch.arange(40)[None]
    return tensors


@pytest.fixture
def checkpoint(model, tmp_path, tokenizer_folder):
    """A stage-1 .pth with its encoder; the model's keys have no bias, as there."""
    with torch.no_grad():
        for layer in model.vision_encoder.module.encoder.layers:
            layer.self_attn.qkv.bias.chunk(3)[1].zero_()
    folder = tmp_path / "lavis"
    shutil.copytree(tokenizer_folder, folder)
    torch.save({"model": named(model)}, folder / "blip2.pth")
    return folder / "blip2.pth"


def losses(model):
    shown = pictures()
    items = [
        Item(Sample(str(n), (Turn("user", (Image(f"{n}.png", data),)),
                             Turn("assistant", (Text(text),)))), lambda i: i.data, n)
        for n, (data, text) in enumerate(zip(shown, TEXTS, strict=True))
    ]  # fmt: skip
    collate = PairCollator(PictureLoader(model.preprocessing), model.text_tokens)
    (batch,) = collate(items).batches
    objective = query_text.Config().build(model)
    with torch.no_grad():
        found = objective(model.eval(), batch)
    return {name: value.item() for name, value in found.items()}


def test_a_checkpoint_gives_the_same_losses(model, checkpoint):
    again, report = layout.load(checkpoint, "lavis-blip2")
    assert not report.problems and report.num_cases > 60
    assert again.config.query_former.num_queries == 3
    expected, found = losses(model), losses(again)
    assert len(expected) == 3
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-6), name


def test_the_frozen_encoder_is_read_from_its_own_file(model, checkpoint):
    whole = named(model)
    eva = {n.removeprefix("visual_encoder."): t for n, t in whole.items() if "visual_" in n}
    last = {n.replace("blocks.1.", "blocks.2."): t for n, t in eva.items() if "blocks.1." in n}
    head = {"fc_norm.weight": torch.ones(64), "head.weight": torch.ones(5, 64)}
    torch.save({**eva, **last, **head}, checkpoint.parent / "eva_vit_g.pth")
    torch.save({"model": {n: t for n, t in whole.items() if "visual_encoder" not in n}}, checkpoint)
    again, _ = layout.load(checkpoint, "lavis-blip2")
    assert losses(again) == pytest.approx(losses(model), rel=1e-6)
    os.remove(checkpoint.parent / "eva_vit_g.pth")
    with pytest.raises(CheckpointError, match="no image encoder"):
        layout.load(checkpoint, "lavis-blip2")


def test_stage_2_starts_a_connector(model, checkpoint):
    file = checkpoint.parent / "stage2.pth"
    kept = ("Qformer.bert.", "query_tokens", "ln_vision.")
    # LAVIS drops what reads texts.
    text_only = re.compile(r"word_embeddings|position_|\.intermediate\.|\d\.output\.")
    tensors = {n: t for n, t in named(model).items() if n.startswith(kept)}
    tensors = {n: t for n, t in tensors.items() if "attention" in n or not text_only.search(n)}
    projection = torch.nn.Linear(64, 10)
    tensors |= {f"opt_proj.{n}": t.detach() for n, t in projection.named_parameters()}
    torch.save({"model": tensors}, file)
    connector = Connector(weights=str(file), num_queries=3).build(64, 10).eval()
    features = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    former = model.query_former
    with torch.no_grad():
        expected = projection(former.read_image(former.image_states(features)))
        torch.testing.assert_close(connector(features, (1, 5)), expected)
    with pytest.raises(CheckpointError, match="another language model"):
        Connector(weights=str(file), num_queries=3).build(64, 11)
    with pytest.raises(CheckpointError, match="stage 2"):
        layout.load(file, "lavis-blip2")


def test_a_file_that_would_run_code_is_refused(checkpoint):
    class Evil:
        def __reduce__(self):
            return os.system, ("touch /tmp/never",)

    torch.save({"model": {"query_tokens": Evil()}}, checkpoint)
    with pytest.raises(UnsafeFile, match="system"):
        layout.load(checkpoint, "lavis-blip2")


def test_another_checkpoint_is_named(checkpoint, model):
    torch.save({"model": {**named(model), "strange.weight": torch.ones(1)}}, checkpoint)
    with pytest.raises(CheckpointError, match=r"strange\.weight"):
        layout.load(checkpoint, "lavis-blip2")


def test_nothing_is_written_as_a_pickle(model, tmp_path):
    with pytest.raises(ConfigError, match="pickle"):
        layout.export(model, "lavis-blip2", tmp_path / "out")
