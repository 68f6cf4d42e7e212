"""Somebody's own pictures and a short recipe, nothing else: the model learns them."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from diptych.cli.main import app
from tests.e2e import shapes

RECIPE = """
name: shapes
model:
  vision_encoder:
    config: {model_type: diptych_conv, hidden_sizes: [16, 32, 64, 96]}
    image: {resize: exact, size: [64, 64]}
  connector: mlp
  language_model:
    config:
      model_type: llama
      hidden_size: 128
      intermediate_size: 256
      num_hidden_layers: 2
      num_attention_heads: 4
      vocab_size: 512
      initializer_range: 0.06
    tokenizer: data
    template: compact
stages:
  - name: instruct
    data: [{path: train.json, images: photos}]
    learn: {vision_encoder: {}, connector: {}, language_model: {}}
    num_epochs: 6
    global_batch_size: 24
    learning_rate: 2.0e-3
evaluation:
  data: {path: test.json, images: photos}
  max_new_tokens: 8
"""


@pytest.mark.slow
def test_a_short_recipe_learns_strange_data(tmp_path):
    shapes.write(tmp_path)
    (tmp_path / "mine.yaml").write_text(RECIPE)
    arguments = ["train", str(tmp_path / "mine.yaml"), "--runs", str(tmp_path / "runs"), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    controls = [summary[name] for name in ("blind", "majority", "lookup")]
    best_control = max(control["score"] for control in controls)
    assert summary["after"]["low"] > max(control["high"] for control in controls)
    assert summary["gain"]["low"] > 0
    assert summary["after"]["score"] > best_control + 0.4
    assert summary["by_kind"].keys() == {"shape", "colour", "side"}
    assert summary["before"]["score"] < best_control
