"""Dual encoders against transformers' own CLIPModel and SiglipModel, both ways."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from safetensors.torch import load_file, save_file

from diptych.convert import layout
from diptych.errors import CheckpointError, ConfigError, ExportMismatch
from diptych.model.architecture import config_from_dict
from diptych.model.folder import build, load_model, save_model

KINDS = ["clip", "siglip"]
TEXTS = ["a red square", "two large blue squares on the left", "yes"]


def pictures(count=3):
    rng = np.random.default_rng(1)
    for _ in range(count):
        buffer = io.BytesIO()
        Pillow.fromarray(rng.integers(0, 255, (30, 45, 3), dtype=np.uint8)).save(buffer, "PNG")
        yield buffer.getvalue()


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def spread(model):
    """Random weights say nearly the same of everything; these do not."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.4)
            elif "log_scale" not in name and "bias" not in name and weight.ndim:
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.2)
    return model


def test_export_is_what_the_class_computes(kind, tiny_dual, tmp_path):
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model = spread(build(config_from_dict(tiny_dual(kind)), seed=1))
    report = layout.export(model, f"hf-{kind}", tmp_path / "out")
    assert report.tokens_equal and report.max_pixel_difference < 1e-3
    assert report.max_logit_difference <= report.tolerance
    theirs = AutoModel.from_pretrained(tmp_path / "out").eval()
    assert type(theirs).__name__ == {"clip": "CLIPModel", "siglip": "SiglipModel"}[kind]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    shown = [Pillow.open(io.BytesIO(b)) for b in pictures()]
    tokens = tokenizer(
        TEXTS,
        padding="max_length" if kind == "siglip" else True,
        return_tensors="pt",
        return_attention_mask=kind == "clip",
        return_token_type_ids=False,
    )
    with torch.no_grad():
        reference = theirs(**tokens, **processor(shown, return_tensors="pt")).logits_per_image
        own = model.logits(model.encode_images(pictures()), model.encode_texts(TEXTS))
    assert reference.std() > 0.05
    torch.testing.assert_close(own, reference, atol=2e-4, rtol=1e-4)
    cosines = model.similarity(pictures(), TEXTS)
    scale = model.space.log_scale.detach().exp()
    bias = 0 if model.space.bias is None else model.space.bias.detach()
    torch.testing.assert_close(cosines * scale + bias, own)


def test_there_and_back(kind, tiny_dual, tmp_path):
    model = spread(build(config_from_dict(tiny_dual(kind)), seed=1))
    layout.export(model, f"hf-{kind}", tmp_path / "out")
    again, report = layout.load(tmp_path / "out", f"hf-{kind}")
    assert not report.problems
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    assert again.config.min_temperature == model.config.min_temperature
    save_model(again, tmp_path / "own")
    whole = load_model(tmp_path / "own")
    expected = model.similarity(pictures(), TEXTS)
    torch.testing.assert_close(whole.similarity(pictures(), TEXTS), expected, atol=0, rtol=0)


def test_a_model_made_by_transformers_comes_in(kind, tiny_dual, tmp_path):
    """A random checkpoint that Diptych did not write."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    values = tiny_dual(kind)
    text = {k: v for k, v in values["text_encoder"]["config"].items() if k != "model_type"}
    vision = {k: v for k, v in values["vision_encoder"]["config"].items() if k != "model_type"}
    tokenizer = AutoTokenizer.from_pretrained(values["text_encoder"]["tokenizer"])
    text |= {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    config = AutoConfig.for_model(kind, text_config=text, vision_config=vision)
    if kind == "clip":
        config.projection_dim = 8
    torch.manual_seed(5)
    theirs = AutoModel.from_config(config).eval()
    theirs.save_pretrained(tmp_path)
    tokenizer.model_max_length = 24
    tokenizer.save_pretrained(tmp_path)
    name = {"clip": "CLIPImageProcessor", "siglip": "SiglipImageProcessor"}[kind]
    size = {"shortest_edge": 28} if kind == "clip" else {"height": 28, "width": 28}
    processor = {
        "image_processor_type": name, "size": size, "resample": 3, "do_resize": True,
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "do_convert_rgb": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        "do_center_crop": kind == "clip", "crop_size": {"height": 28, "width": 28},
    }  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    model, report = layout.load(tmp_path, f"hf-{kind}")
    assert report.max_logit_difference <= report.tolerance and report.tokens_equal
    assert model.space.log_scale.item() == pytest.approx(theirs.logit_scale.item())


def test_a_damaged_folder_is_refused(kind, tiny_dual, tmp_path):
    model = spread(build(config_from_dict(tiny_dual(kind)), seed=1))
    layout.export(model, f"hf-{kind}", tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    name = next(n for n in tensors if n.endswith("q_proj.weight"))
    save_file({n: t for n, t in tensors.items() if n != name}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError):
        layout.load(tmp_path / "out", f"hf-{kind}")


def test_an_export_that_differs_is_not_written(kind, tiny_dual, tmp_path, monkeypatch):
    """The class reads another weight than the model has: the gate stays shut."""
    from diptych.convert.dual_layout import DualLayout

    model = spread(build(config_from_dict(tiny_dual(kind)), seed=1))
    right = DualLayout._pairs

    def wrong(self, ours, theirs):
        return [p for p in right(self, ours, theirs) if "q_proj" not in _name(theirs, p[1])]

    def _name(module, tensor):
        return next((n for n, p in module.named_parameters() if p is tensor), "")

    monkeypatch.setattr(DualLayout, "_pairs", wrong)
    with pytest.raises(ExportMismatch, match="logits differ"):
        layout.export(model, f"hf-{kind}", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"image_pool": "mean"}, "own pooling"),
        ({"dim": None}, "no dim"),
        ({"bias": -10.0}, "no bias"),
    ],
)
def test_what_the_class_cannot_hold_is_named(change, says, tiny_dual, tmp_path):
    model = build(config_from_dict(tiny_dual("clip", **change)), seed=1)
    with pytest.raises(ConfigError, match=says):
        layout.export(model, "hf-clip", tmp_path / "out")


def test_an_end_token_that_clip_would_not_find_is_refused(tiny_dual, tokenizer_folder):
    values = tiny_dual("clip")
    values["text_encoder"]["tokenizer"] = str(tokenizer_folder)  # its end has the id 2
    with pytest.raises(ConfigError, match="largest token id"):
        build(config_from_dict(values))
    values["text_encoder"]["pool"] = "last"
    build(config_from_dict(values))


def test_layouts_know_their_architecture(tiny_dual, tiny_model, tmp_path):
    with pytest.raises(ConfigError, match="holds a vlm"):
        layout.export(build(config_from_dict(tiny_dual("clip"))), "hf-llava", tmp_path / "a")
    with pytest.raises(ConfigError, match="holds a dual_encoder"):
        layout.export(tiny_model(), "hf-clip", tmp_path / "b")


def test_zero_shot_is_the_softmax_over_the_classes(tiny_dual):
    from diptych.data.sample import Image, Sample, Turn

    model = spread(build(config_from_dict(tiny_dual("clip")), seed=1))
    data = next(pictures(1))
    sample = Sample("x", (Turn("user", (Image("x.png", data),)),), source="")
    templates = ("a {}", "the large {}")
    found = model.log_likelihoods(
        [sample], [TEXTS], images=lambda image: image.data, templates=templates
    )[0]
    classes = torch.stack(
        [model.encode_texts([t.replace("{}", c) for t in templates]).mean(0) for c in TEXTS]
    )
    classes = torch.nn.functional.normalize(classes, dim=-1)
    logits = model.space.log_scale.detach().exp() * classes @ model.encode_images([data])[0]
    torch.testing.assert_close(torch.tensor(found), logits.log_softmax(0))


def test_training_leaves_the_scale_that_siglip_came_with(tiny_dual, tmp_path):
    """SigLIP has no bound; CLIP's, 100, would change a published model at its first step."""
    model = build(config_from_dict(tiny_dual("siglip")))
    with torch.no_grad():
        model.space.log_scale.fill_(4.9)
    layout.export(model, "hf_siglip", tmp_path / "out")
    found, _ = layout.load(tmp_path / "out", "hf_siglip")
    found.train()
    assert found.space.scale().item() == pytest.approx(math.exp(4.9))
    assert found.space.log_scale.item() == pytest.approx(4.9)


def test_a_folder_that_a_newer_processor_saved(tiny_dual, tmp_path):
    model = build(config_from_dict(tiny_dual("clip")))
    layout.export(model, "hf_clip", tmp_path / "out")
    old = tmp_path / "out" / "preprocessor_config.json"
    values = {"image_processor": json.loads(old.read_text()), "processor_class": "CLIPProcessor"}
    (tmp_path / "out" / "processor_config.json").write_text(json.dumps(values))
    old.unlink()
    found, _ = layout.load(tmp_path / "out", "hf_clip")
    assert found.preprocessing == model.preprocessing
