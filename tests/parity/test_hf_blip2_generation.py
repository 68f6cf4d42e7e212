"""Queries in front of a language model against transformers' Blip2ForConditionalGeneration."""

from __future__ import annotations

import json

import pytest
import torch

from diptych.convert import layout
from diptych.errors import ConfigError, ExportMismatch
from diptych.model.architecture import config_from_dict
from diptych.model.folder import build
from tests.parity.test_dual_encoder import spread

NAME = "hf-blip2"
SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2}  # fmt: skip
LANGUAGE = {
    "opt": {"hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "word_embed_proj_dim": 16, "max_position_embeddings": 128, "pad_token_id": 0},
    "t5": {"d_model": 16, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2,
           "d_kv": 8, "decoder_start_token_id": 0, "feed_forward_proj": "gated-gelu",
           "tie_word_embeddings": False},
    "llama": {**SIZE, "max_position_embeddings": 128},
}  # fmt: skip


def values(tokenizer_folder, kind, **connector):
    return {
        "vision_encoder": {
            "config": {
                "model_type": "blip_2_vision_model", **SIZE, "image_size": 28, "patch_size": 7,
            },
            "layer": -1, "features": "full", "image": {"resize": "exact", "size": [28, 28]},
        },
        "connector": {
            "name": "qformer", "config": {**SIZE, "vocab_size": 20}, "num_queries": 4,
            "norm_eps": 1e-6, **connector,
        },
        "language_model": {
            "config": {"model_type": kind, **LANGUAGE[kind]}, "tokenizer": str(tokenizer_folder),
            "template": "plain",
        },
    }  # fmt: skip


@pytest.mark.parametrize("kind", list(LANGUAGE))
def test_export_is_what_the_class_computes_and_back(kind, tokenizer_folder, tmp_path):
    model = spread(build(config_from_dict(values(tokenizer_folder, kind)), seed=1))
    report = layout.export(model, NAME, tmp_path / "out")
    assert report.class_name == "Blip2ForConditionalGeneration" and not report.problems
    assert report.tokens_equal and report.num_cases > 1000
    again, report = layout.load(tmp_path / "out", NAME)
    assert not report.problems and report.tokens_equal
    rows = len(model.language_model.embeddings)  # one more where the image mark had no row
    for own, its in zip(_outputs(model), _outputs(again), strict=True):
        assert own.std() > 0.01
        torch.testing.assert_close(its[:, :rows], own)


def _outputs(model):
    return layout.find(NAME).outputs(model)


def test_the_processor_of_the_class_reads_the_folder(tokenizer_folder, tmp_path):
    from transformers import AutoProcessor, Blip2ForConditionalGeneration

    model = spread(build(config_from_dict(values(tokenizer_folder, "opt")), seed=1))
    layout.export(model, NAME, tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert type(processor).__name__ == "Blip2Processor" and processor.num_query_tokens == 4
    from PIL import Image

    inputs = processor(images=Image.new("RGB", (40, 30)), text="how many", return_tensors="pt")
    theirs = Blip2ForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    assert (inputs["input_ids"] == theirs.config.image_token_index).sum() == 4
    with torch.no_grad():
        assert torch.isfinite(theirs(**inputs).logits).all()


def test_what_the_layout_cannot_hold_is_named(tokenizer_folder, tmp_path):
    other = values(tokenizer_folder, "opt")
    other["connector"] = {"name": "mlp"}
    with pytest.raises(ConfigError, match="qformer connector"):
        layout.export(build(config_from_dict(other)), NAME, tmp_path / "out")
    other = values(tokenizer_folder, "opt", norm_eps=1e-5)
    with pytest.raises(ConfigError, match="epsilon"):
        layout.export(build(config_from_dict(other)), NAME, tmp_path / "out")


def test_an_export_that_differs_is_not_written(tokenizer_folder, tmp_path, monkeypatch):
    from diptych.convert.layouts import hf_blip2

    model = spread(build(config_from_dict(values(tokenizer_folder, "t5")), seed=1))
    right = hf_blip2._pairs
    monkeypatch.setattr(hf_blip2, "_pairs", lambda a, b: right(a, b)[:-3])
    with pytest.raises(ExportMismatch, match="logits differ"):
        layout.export(model, NAME, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_config_says_how_many_queries(tokenizer_folder, tmp_path):
    model = spread(build(config_from_dict(values(tokenizer_folder, "t5")), seed=1))
    layout.export(model, NAME, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "blip-2" and config["num_query_tokens"] == 4
