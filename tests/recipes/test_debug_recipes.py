"""Every debug recipe has the shape of its big brother and learns in a few steps, offline.

Its losses are those of tests/trajectories: any change of numerics shows itself.
"""

from __future__ import annotations

import json

import pytest
import torch

from diptych.model.folder import build
from diptych.progress import Progress
from diptych.recipe import named
from diptych.train.trainer import Trainer
from tests.trajectories import curves

torch.set_num_threads(1)  # tiny products: more threads only wait for one another
DEBUG = {name: function for name, function in named().items() if "-debug" in name}


def test_there_is_one():
    some = {"llava-debug", "llava-next-debug", "internvl-debug", "clip-debug", "blip-debug"}
    assert some | {"llava15-hd-debug", "blip2-debug-stage1"} <= DEBUG.keys()


def test_every_curve_has_its_recipe():
    assert {file.stem for file in curves.FOLDER.glob("*.json")} == DEBUG.keys()


@pytest.mark.parametrize("name", DEBUG)
def test_debug_recipes_lower_the_loss(
    name, squares, tokenizer_folder, framing_tokenizer_folder, tmp_path
):
    recipe = DEBUG[name]()
    data = f"[{{path: {squares}/train.json, images: {squares}/images}}]"
    clip = recipe.model.name == "dual_encoder"  # its end token must not have the id 2
    folder = framing_tokenizer_folder if clip else tokenizer_folder
    recipe = recipe.override(
        [
            f"model.{recipe.model.text_part}.tokenizer={folder}",
            *(f"stages.{stage.name}.data={data}" for stage in recipe.stages),
        ]
    )
    model = build(recipe.model, seed=recipe.seed)
    Trainer(
        model, recipe.stages, tmp_path, seed=recipe.seed, trackers=(),
        progress=Progress(tmp_path / "train.log", quiet=True),
    ).train()  # fmt: skip
    lines = [json.loads(t) for t in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for stage in recipe.stages:
        losses = [x["loss"] for x in lines if x["stage"] == stage.name]
        assert len(losses) == stage.num_steps and losses[-1] < losses[0], stage.name
    assert lines[-1]["loss"] < lines[0]["loss"] * (0.9 if name.startswith("blip2") else 0.75)
    curves.compare(name, lines)


def test_a_curve_notices_what_rounding_does_not_explain(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "FOLDER", tmp_path)
    lines = [{"stage": "a", "step": n, "loss": 2.0 / n} for n in (1, 2)]
    with pytest.raises(AssertionError, match=f"run this test with {curves.WRITE}=1"):
        curves.compare("mine", lines)
    with monkeypatch.context() as writing:
        writing.setenv(curves.WRITE, "1")
        curves.compare("mine", lines)
    curves.compare("mine", [*lines, {"stage": "a", "step": 2, "validation_loss": 7.0}])
    curves.compare("mine", [lines[0], {**lines[1], "loss": 1.000005}])
    with pytest.raises(AssertionError, match=r"stage a, step 2: the loss is 1\.00002"):
        curves.compare("mine", [lines[0], {**lines[1], "loss": 1.00002}])
    with pytest.raises(AssertionError):
        curves.compare("mine", lines[:1])
