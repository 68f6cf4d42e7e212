"""Querying transformers against transformers' own Blip2ForImageTextRetrieval, both ways."""

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

NAME = "hf-blip2-retrieval"
TEXTS = ["a red square", "two large blue squares", "yes"]
SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2}  # fmt: skip


@pytest.fixture
def model(tiny_query):
    values = tiny_query(norm_eps=1e-6)
    values["vision_encoder"] = {
        "config": {"model_type": "blip_2_vision_model", **SIZE, "image_size": 28, "patch_size": 7},
        "layer": -1, "features": "full", "image": {"resize": "exact", "size": [28, 28]},
    }  # fmt: skip
    values["temperature"] = 0.05
    return spread(build(config_from_dict(values), seed=1))


def test_export_is_what_the_class_computes_and_back(model, tmp_path):
    report = layout.export(model, NAME, tmp_path / "out")
    assert report.class_name == "Blip2ForImageTextRetrieval" and not report.problems
    assert report.num_cases == 3 * 3 + 3 * 2
    again, report = layout.load(tmp_path / "out", NAME)
    assert not report.problems
    shown = list(pictures())
    expected = model.similarity(shown, TEXTS)
    assert expected.std() > 0.01
    torch.testing.assert_close(again.similarity(shown, TEXTS), expected)
    pairs = [(0, 1), (2, 0)]
    torch.testing.assert_close(
        again.match_scores(shown, TEXTS, pairs), model.match_scores(shown, TEXTS, pairs)
    )
    # The temperature, which the class itself loses.
    assert again.heads.temperature.item() == pytest.approx(model.heads.temperature.item())


def test_a_model_made_by_transformers_comes_in(tokenizer_folder, tmp_path):
    import transformers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.add_special_tokens({"cls_token": "[CLS]", "sep_token": "[SEP]", "bos_token": "[DEC]"})
    config = transformers.Blip2Config(
        vision_config={**SIZE, "image_size": 28, "patch_size": 7},
        qformer_config={
            **SIZE, "vocab_size": len(tokenizer), "max_position_embeddings": 40,
            "encoder_hidden_size": 16, "use_qformer_text_input": True,
            "pad_token_id": tokenizer.pad_token_id,
        },
        num_query_tokens=4, image_text_hidden_size=8,
    )  # fmt: skip
    torch.manual_seed(3)
    theirs = transformers.Blip2ForImageTextRetrieval(config).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for weight in theirs.parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
        theirs.vision_model.post_layernorm.weight.mul_(1.5)
    theirs.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    size = {"height": 28, "width": 28}
    transformers.BlipImageProcessor(size=size).save_pretrained(tmp_path)
    model, report = layout.load(tmp_path, NAME)
    assert report.max_logit_difference <= report.tolerance
    assert model.query_former.num_queries == 4


def test_a_damaged_folder_is_refused(model, tmp_path):
    layout.export(model, NAME, tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    save_file(
        {n: t for n, t in tensors.items() if n != "query_tokens"}, file, metadata={"format": "pt"}
    )
    with pytest.raises(CheckpointError, match="query_tokens"):
        layout.load(tmp_path / "out", NAME)


def test_an_export_that_differs_is_not_written(model, tmp_path, monkeypatch):
    from diptych.convert.layouts import hf_blip2_retrieval

    right = hf_blip2_retrieval._pairs
    monkeypatch.setattr(hf_blip2_retrieval, "_pairs", lambda a, b: right(a, b)[:-4])
    with pytest.raises(ExportMismatch, match="outputs differ"):
        layout.export(model, NAME, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_encoder_is_named(tiny_query, tmp_path):
    with pytest.raises(ConfigError, match="clip_vision_model"):
        layout.export(build(config_from_dict(tiny_query())), NAME, tmp_path / "out")


def test_the_folder_says_what_it_is(model, tmp_path):
    layout.export(model, NAME, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "blip-2"
