"""Captioners against transformers' own BLIP classes, both ways."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from diptych.convert import layout
from diptych.errors import CheckpointError, ConfigError, ExportMismatch
from diptych.model.architecture import config_from_dict
from diptych.model.folder import build
from tests.parity.test_dual_encoder import pictures, spread

CLASSES = {
    "hf-blip-captioning": "BlipForConditionalGeneration",
    "hf-blip-retrieval": "BlipForImageTextRetrieval",
}
TEXTS = ["a red square", "two large blue squares", "yes"]
SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2}  # fmt: skip


@pytest.fixture(params=CLASSES)
def name(request):
    return request.param


@pytest.fixture
def model(tiny_captioner):
    values = tiny_captioner()
    values["vision_encoder"] = {
        "config": {"model_type": "blip_vision_model", **SIZE, "image_size": 28, "patch_size": 7},
        "features": "full",
        "image": {"resize": "exact", "size": [28, 28]},
    }
    return spread(build(config_from_dict(values), seed=1))


def test_export_is_what_the_class_computes(name, model, tmp_path):
    import transformers

    report = layout.export(model, name, tmp_path / "out")
    assert report.max_logit_difference <= report.tolerance and not report.problems
    assert report.class_name == CLASSES[name]
    theirs = getattr(transformers, CLASSES[name]).from_pretrained(tmp_path / "out").eval()
    if name == "hf-blip-captioning":
        processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
        from tests.parity.test_dual_encoder import Pillow, io

        shown = [Pillow.open(io.BytesIO(b)) for b in pictures()]
        pixels = processor(shown, return_tensors="pt")["pixel_values"]
        written = theirs.generate(pixel_values=pixels, max_new_tokens=6, num_beams=1)
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
        texts = tokenizer.batch_decode(written, skip_special_tokens=True)
        own = model.caption(list(pictures()), num_beams=1, max_new_tokens=6)
        assert [t.strip() for t in texts] == own


def test_there_and_back(name, model, tmp_path):
    layout.export(model, name, tmp_path / "out")
    again, report = layout.load(tmp_path / "out", name)
    assert not report.problems
    if name == "hf-blip-captioning":
        assert again.caption(list(pictures())) == model.caption(list(pictures()))
        return
    expected = model.similarity(list(pictures()), TEXTS)
    torch.testing.assert_close(again.similarity(list(pictures()), TEXTS), expected)
    pairs = [(0, 1), (2, 0)]
    torch.testing.assert_close(
        again.match_scores(list(pictures()), TEXTS, pairs),
        model.match_scores(list(pictures()), TEXTS, pairs),
    )


def test_a_model_made_by_transformers_comes_in(name, tokenizer_folder, tmp_path):
    """A random checkpoint that Diptych did not write, with BLIP's own image processor."""
    import transformers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.add_special_tokens({"cls_token": "[CLS]", "sep_token": "[SEP]", "bos_token": "[DEC]"})
    tokenizer.add_tokens(["[ENC]"], special_tokens=True)
    text = {**SIZE, "vocab_size": len(tokenizer), "max_position_embeddings": 40,
            "encoder_hidden_size": 16, "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id, "sep_token_id": tokenizer.sep_token_id,
            "eos_token_id": tokenizer.sep_token_id}  # fmt: skip
    vision = {**SIZE, "image_size": 28, "patch_size": 7}
    config = transformers.BlipConfig(
        text_config=text, vision_config=vision, image_text_hidden_size=8
    )
    torch.manual_seed(3)
    kind = getattr(transformers, CLASSES[name])
    theirs = spread_class(kind(config).eval())
    theirs.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    processor = transformers.BlipImageProcessor(size={"height": 28, "width": 28})
    processor.save_pretrained(tmp_path)
    model, report = layout.load(tmp_path, name)
    assert report.max_logit_difference <= report.tolerance
    assert model.preprocessing.size == (28, 28)


def spread_class(module):
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return module


def test_a_damaged_folder_is_refused(name, model, tmp_path):
    layout.export(model, name, tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    gone = next(n for n in tensors if "crossattention" in n and n.endswith("value.weight"))
    save_file({n: t for n, t in tensors.items() if n != gone}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="missing"):
        layout.load(tmp_path / "out", name)


def test_an_export_that_differs_is_not_written(name, model, tmp_path, monkeypatch):
    from diptych.convert.blip_layout import BlipLayout

    right = BlipLayout._pairs
    monkeypatch.setattr(BlipLayout, "_pairs", lambda self, a, b: right(self, a, b)[:-6])
    with pytest.raises(ExportMismatch, match="outputs differ"):
        layout.export(model, name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_encoder_is_named(name, tiny_captioner, tmp_path):
    with pytest.raises(ConfigError, match="clip_vision_model"):
        layout.export(build(config_from_dict(tiny_captioner())), name, tmp_path / "out")


def test_the_processor_of_blip_is_read(tmp_path):
    from transformers import BlipImageProcessor

    from diptych.data.pixels.preprocessing import Preprocessing

    BlipImageProcessor(size={"height": 30, "width": 30}).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "preprocessor_config.json").read_text())
    found = Preprocessing.from_hf(values)
    assert (found.resize, found.size) == ("exact", (30, 30))
