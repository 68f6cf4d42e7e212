"""Recipes that start where others end: an encoder taken over, a query former made a connector."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from diptych.cli.main import app
from diptych.cli.run import run_recipe
from diptych.errors import ConfigError
from diptych.model.folder import build, load_model, save_model
from diptych.progress import Progress
from diptych.recipe import Recipe, chained, load
from diptych.staging import file_hash


@pytest.fixture
def corpus(squares, tmp_path, monkeypatch):
    """Pairs where the debug recipes look for them."""
    shutil.copytree(squares / "images", tmp_path / "pictures" / "images")
    rows = json.loads((squares / "captions.json").read_text())
    for split in ("train", "test"):
        lines = [{**r, "image": f"images/{r['image']}"} for r in rows]
        seen = set()
        if split == "test":  # one picture a caption
            lines = [r for r in lines if not (r["caption"] in seen or seen.add(r["caption"]))]
        text = "".join(json.dumps(r) + "\n" for r in lines)
        (tmp_path / "pictures" / f"{split}.jsonl").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def second(tokenizer_folder, **connector) -> Recipe:
    """Stage 2 behind blip2-debug-stage1, with a small language model from scratch."""
    return Recipe.from_dict(
        {
            "name": "second",
            "model": {
                "vision_encoder": {"weights": "recipe:blip2-debug-stage1"},
                "connector": {
                    "name": "qformer", "weights": "recipe:blip2-debug-stage1", "num_queries": 4,
                    **connector,
                },
                "language_model": {
                    "config": {
                        "model_type": "llama", "hidden_size": 16, "intermediate_size": 32,
                        "num_hidden_layers": 1, "num_attention_heads": 2,
                        "max_position_embeddings": 128,
                    },
                    "tokenizer": str(tokenizer_folder), "template": "plain",
                },
            },
            "stages": [
                {
                    "name": "generate", "data": [{"path": "pictures/train.jsonl"}],
                    "learn": {"connector": {}}, "num_steps": 3, "global_batch_size": 8,
                    "num_workers": 0,
                }
            ],
            "trackers": [],
        }
    )  # fmt: skip


def test_stage_1_runs_first_and_its_weights_start_stage_2(corpus, tokenizer_folder):
    recipe = second(tokenizer_folder)
    assert chained(recipe) == {
        "vision_encoder.weights": "blip2-debug-stage1",
        "connector.weights": "blip2-debug-stage1",
    }
    quiet = Progress(corpus / "log", quiet=True)
    summary = run_recipe(recipe, corpus / "runs" / "second", progress=quiet)
    first = load_model(summary["before_it"]["blip2-debug-stage1"])
    model = load_model(corpus / "runs" / "second")
    # The frozen encoder is stage 1's; the connector started from its queries and moved.
    for name, tensor in first.vision_encoder.module.state_dict().items():
        assert torch.equal(model.vision_encoder.module.state_dict()[name], tensor), name
    start = first.query_former.queries
    moved = (model.connector.queries - start).abs().max()
    assert 0 < moved < 0.05
    assert model.tokens_per_image == 4
    # The folder loads without stage 1.
    config = json.loads((corpus / "runs" / "second" / "model" / "config.json").read_text())
    assert config["connector"]["weights"] is None and config["connector"]["config"]
    # A second call has nothing left to do and keeps both runs.
    again = run_recipe(recipe, corpus / "runs" / "second", progress=quiet)
    assert again["before_it"] == summary["before_it"]
    # What both parts began with stands in the environment, again after the run, and in the report.
    run = corpus / "runs" / "second"
    began = json.loads((run / "environment.json").read_text())["weights"]
    assert began.keys() == {"vision_encoder", "connector"} and began == model.origins
    sha256 = file_hash(Path(summary["before_it"]["blip2-debug-stage1"]) / "model/model.safetensors")
    assert {(b["source"], b["sha256"]) for b in began.values()} == {("diptych", sha256)}
    assert sha256 in (run / "report.html").read_text()


def test_a_first_stage_that_was_trained_by_command_is_taken(corpus, tokenizer_folder):
    trained = CliRunner().invoke(app, ["train", "blip2-debug-stage1"])
    assert trained.exit_code == 0, trained.output
    runs = [run for run in (corpus / "runs").iterdir() if run.is_dir()]
    summary = run_recipe(
        second(tokenizer_folder), corpus / "runs" / "second", progress=Progress(quiet=True)
    )
    assert summary["before_it"] == {"blip2-debug-stage1": str(runs[0])} and len(runs) == 1


def test_stage_1_is_measured_by_retrieval(corpus):
    run = corpus / "runs" / "first"
    summary = run_recipe(
        load("blip2-debug-stage1"), run, progress=Progress(run.parent / "log", quiet=True)
    )
    kinds = summary["by_kind"]
    assert {"image to text, recall@1", "text to image, recall@10"} <= kinds.keys()
    assert kinds["image to text, recall@1"]["after"]["n"] == 3
    assert (run / "retrieval_after.json").is_file() and (run / "report.html").is_file()
    page = (run / "report.html").read_text()
    assert "What was found" in page and "The shared space" in page
    for name in ("before", "after"):
        assert len(json.loads((run / f"map_{name}.json").read_text())["pairs"]) == 3


def test_an_answerer_starts_from_a_captioner(tiny_captioner, tiny_model, tmp_path):
    """Reader and writer are the captioner's; the two share nothing any more."""
    from diptych.model.architecture import config_from_dict

    captioner = build(config_from_dict(tiny_captioner()), seed=2)
    save_model(captioner, tmp_path / "captioner")
    values = {
        "name": "answerer", "vision_encoder": {"weights": str(tmp_path / "captioner")},
        "text": {"weights": str(tmp_path / "captioner")},
    }  # fmt: skip
    model = build(config_from_dict(values), seed=3)
    for name, tensor in captioner.text.reader.state_dict().items():
        assert torch.equal(model.text.reader.state_dict()[name], tensor), name
    old, new = captioner.text.writer.state_dict(), model.text.writer.state_dict()
    for name, tensor in old.items():
        if tensor.shape == new[name].shape and "crossattention.self" not in name:
            assert torch.equal(new[name], tensor), name
    with torch.no_grad():
        model.text.reader.embeddings.word_embeddings.weight.add_(1.0)
    assert torch.equal(new["bert.embeddings.word_embeddings.weight"],
                       old["bert.embeddings.word_embeddings.weight"])  # fmt: skip
    save_model(tiny_model(), tmp_path / "vlm")
    values["text"]["weights"] = str(tmp_path / "vlm")
    with pytest.raises(ConfigError, match="not a captioner"):
        build(config_from_dict(values))


@pytest.mark.parametrize(
    ("change", "says"),
    [({"num_queries": 5}, "5 queries"), ({"weights": "VLM"}, "not a query_transformer")],
)
def test_a_stage_1_that_does_not_fit_is_named(change, says, tiny_model, tiny_query, tmp_path):
    from diptych.model.architecture import config_from_dict
    from diptych.model.connectors.qformer import Config

    save_model(build(config_from_dict(tiny_query())), tmp_path / "one")
    save_model(tiny_model(), tmp_path / "VLM")
    values = {"weights": str(tmp_path / "one"), "num_queries": 3, **change}
    if "weights" in change:
        values["weights"] = str(tmp_path / change["weights"])
    with pytest.raises(ConfigError, match=says):
        Config(**values).build(16, 32)
