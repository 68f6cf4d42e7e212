"""BLIP checkpoints in LAVIS's layout: names, sizes, losses, and files that would run code."""

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
from diptych.model.folder import build
from diptych.train.objectives import blip
from tests.parity.test_dual_encoder import pictures, spread

TEXTS = ("a red square", "two blue", "yes")
BACK = (
    (r"^text\.reader\.", "text_encoder."),
    (r"^text\.writer\.", "text_decoder."),
    (r"^heads\.image\.", "vision_proj."),
    (r"^heads\.text\.", "text_proj."),
    (r"^heads\.matching\.", "itm_head."),
    (r"^heads\.temperature$", "temp"),
    (r"^vision_encoder\.module\.", "visual_encoder."),
    (r"encoder\.layers\.", "blocks."),
    (r"self_attn\.projection", "attn.proj"),
    (r"self_attn", "attn"),
    (r"layer_norm", "norm"),
    (r"post_norm|post_layernorm", "norm"),
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
        "name": "captioner",
        "vision_encoder": {
            "config": {
                "model_type": "blip_vision_model", **size, "num_attention_heads": 1,
                "image_size": 28, "patch_size": 7, "layer_norm_eps": 1e-6,
            },
            "features": "full",
            "image": {
                "resize": "exact", "size": [28, 28],
                "mean": [0.48145466, 0.4578275, 0.40821073],
                "std": [0.26862954, 0.26130258, 0.27577711],
            },
        },
        "text": {
            "config": {
                **size, "num_attention_heads": 1, "max_position_embeddings": 40,
                "hidden_act": "gelu",
            },
            "tokenizer": str(tokenizer_folder), "dropout": 0.1,
        },
        "dim": 12,
    }  # fmt: skip
    return spread(build(config_from_dict(values), seed=3))


@pytest.fixture
def checkpoint(model, tmp_path):
    """A .pth as LAVIS saves one: momentum copies and queues too, everything under `model`."""
    folder = tmp_path / "lavis"
    folder.mkdir()
    model.tokenizer.save_pretrained(folder)
    weights = {lavis_name(n): t for n, t in model.state_dict().items() if "position_ids" not in n}
    weights |= {
        "text_encoder.embeddings.position_ids": torch.arange(40)[None],
        "vision_proj_m.weight": torch.zeros(12, 64),
        "visual_encoder_m.pos_embed": torch.zeros(1, 17, 64),
        "image_queue": torch.zeros(12, 8),
        "queue_ptr": torch.zeros(1, dtype=torch.int64),
    }
    torch.save({"model": weights}, folder / "blip.pth")
    return folder


def losses_of(model):
    objective = blip.Config(queue_size=6).build(model)
    items = [
        Item(
            Sample(str(i), (Turn("user", (Image(str(i), data),)), Turn("assistant", (Text(t),))),
                   source=""),
            lambda image: image.data,
        )
        for i, (data, t) in enumerate(zip(pictures(), TEXTS, strict=True))
    ]  # fmt: skip
    batch = PairCollator(PictureLoader(model.preprocessing), model.text_tokens)(items).batches[0]
    with torch.no_grad():
        return {k: v.item() for k, v in objective(model.eval(), batch).items()}


@pytest.mark.parametrize("file", [True, False])
def test_a_checkpoint_gives_the_same_losses(file, model, checkpoint):
    path = checkpoint / "blip.pth" if file else checkpoint
    again, report = layout.load(path, "lavis-blip")
    assert not report.problems and report.num_cases > 50
    wanted, found = losses_of(model), losses_of(again)
    assert found == pytest.approx(wanted, abs=1e-6)
    assert again.caption(list(pictures())) == model.caption(list(pictures()))


def test_a_captioning_checkpoint_has_no_reader(model, checkpoint):
    file = checkpoint / "blip.pth"
    weights = torch.load(file, weights_only=True)["model"]
    kept = {n: t for n, t in weights.items() if n.startswith(("visual_encoder.", "text_decoder."))}
    torch.save({"model": kept}, file)
    again, _ = layout.load(file, "lavis-blip")
    assert again.caption(list(pictures())) == model.caption(list(pictures()))
    own = again.text.reader.encoder.layer[0].attention.self.query.weight
    assert torch.equal(own, again.text.writer.bert.encoder.layer[0].attention.self.query.weight)


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_a_pickle_that_would_run_code_is_refused_and_named(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = checkpoint / "blip.pth"
    torch.save({"model": {"temp": torch.zeros(())}, "hook": Evil()}, file)
    with pytest.raises(UnsafeFile, match=r"system"):
        layout.load(file, "lavis-blip")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"nonsense", "no PyTorch checkpoint"),
        (b"\0" * 64, "no PyTorch checkpoint"),
        (b"\x80\x02.", "cannot be read as a PyTorch checkpoint"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", "cannot be read as a PyTorch"),
        ({"model": {"temp": torch.zeros(())}}, "no image encoder"),
        ({"model": {"lm.weight": torch.zeros(2)}}, "no weight of BLIP"),
        ([torch.zeros(2)], "no weights by name"),
        ({"model": {"temp": 3.0}}, "other things than weights"),
    ],
)
def test_what_is_no_checkpoint_is_named(content, says, checkpoint):
    file = checkpoint / "blip.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises((CheckpointError, UnsafeFile), match=says):
        layout.load(file, "lavis-blip")


def test_a_weight_of_another_shape_is_named(checkpoint):
    file = checkpoint / "blip.pth"
    weights = torch.load(file, weights_only=True)
    weights["model"]["itm_head.weight"] = torch.zeros(3, 64)
    torch.save(weights, file)
    with pytest.raises(CheckpointError, match=r"heads\.matching\.weight has the shape \(3, 64\)"):
        layout.load(file, "lavis-blip")


def test_nothing_is_written_as_a_pickle(model, tmp_path):
    with pytest.raises(ConfigError, match="writes none"):
        layout.export(model, "lavis-blip", tmp_path / "out")


def test_two_checkpoints_in_a_folder_are_one_too_many(checkpoint):
    shutil.copy(checkpoint / "blip.pth", checkpoint / "other.pth")
    with pytest.raises(CheckpointError, match="2 checkpoints"):
        layout.load(checkpoint, "lavis-blip")


def test_a_file_for_questions_is_an_answerer(model, tmp_path):
    """BLIP-VQA: reader and writer start from one text encoder and go their own ways."""
    values = {
        "name": "answerer",
        "vision_encoder": model.config.to_dict()["vision_encoder"],
        "text": model.config.to_dict()["text"],
    }
    ours = spread(build(config_from_dict(values), seed=5))
    weights = {lavis_name(n): t for n, t in ours.state_dict().items() if "position_ids" not in n}
    torch.save({"model": weights}, tmp_path / "vqa.pth")
    model.tokenizer.save_pretrained(tmp_path)
    found, report = layout.load(tmp_path / "vqa.pth", "lavis_blip")
    assert found.config.name == "answerer" and not report.problems
    for name, tensor in ours.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    # The tokenizer's start tokens are the same, so the same is answered.
    data = [next(pictures())]
    assert found.ask(data, ["What is it?"]) == ours.eval().ask(data, ["What is it?"])
