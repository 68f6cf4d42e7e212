"""Training that goes on from a whole model: an earlier run, or one that was converted."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from typer.testing import CliRunner

from diptych.cli.main import app
from diptych.data.checking.index import Index
from diptych.errors import CheckpointError, ConfigError
from diptych.model.folder import begin, build, load_model, save_model
from diptych.recipe import load

torch.set_num_threads(1)


@pytest.fixture
def first(tiny_config, squares, tmp_path):
    """A finished run whose language model learned with LoRA."""
    data = {"path": f"{squares}/train.json", "images": f"{squares}/images"}
    stage = {
        "name": "instruct", "data": [data], "num_steps": 3, "global_batch_size": 4,
        "learn": {"connector": {}, "language_model": {"how": "lora"}}, "learning_rate": 0.05,
        "num_workers": 0,
    }  # fmt: skip
    file, folder = tmp_path / "first.yaml", tmp_path / "first"
    recipe = {"name": "first", "model": tiny_config(), "stages": [stage], "trackers": []}
    file.write_text(yaml.safe_dump(recipe))
    result = CliRunner().invoke(app, ["train", str(file), "--run", str(folder), "--json"])
    assert result.exit_code == 0, result.output
    assert load_model(folder).config.adapters
    return folder


def written(first, squares, folder, **more):
    data = {"path": f"{squares}/train.json", "images": f"{squares}/images"}
    recipe = {
        "name": "second",
        "model": {"weights": "first"},
        "stages": [
            {
                "name": "more", "data": [data], "learn": {"connector": {}}, "num_steps": 2,
                "global_batch_size": 4, "learning_rate": 0.01, "num_workers": 0,
            }
        ],
        "evaluation": {"data": data, "limit": 8},
        "trackers": [],
        **more,
    }  # fmt: skip
    file = folder / "second.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


def test_a_run_goes_on_where_another_ended(first, squares, tmp_path):
    file = written(first, squares, tmp_path)
    recipe = load(str(file))
    assert recipe.model.weights == str(first) and recipe.model.adapters == {}
    start, end = build(recipe.model), load_model(first).merge_adapters()
    for name, tensor in end.state_dict().items():
        assert torch.equal(start.state_dict()[name], tensor), name

    folder = tmp_path / "second"
    result = CliRunner().invoke(app, ["train", str(file), "--run", str(folder), "--json"])
    assert result.exit_code == 0, result.output
    after = load_model(folder)
    assert after.config.weights is None  # whole in itself
    frozen = after.language_model.state_dict()
    assert all(torch.equal(t, frozen[n]) for n, t in end.language_model.state_dict().items())
    moved = after.connector.state_dict()
    assert not all(torch.equal(t, moved[n]) for n, t in end.connector.state_dict().items())
    # What is measured before is the model that it went on from.
    before = [json.loads(t) for t in (folder / "records_before.jsonl").read_text().splitlines()]
    index = Index.build(f"{squares}/train.json", tmp_path / "i", images=f"{squares}/images")
    rows = {sample.id: sample for sample in index}
    asked = [rows[r["id"]] for r in before]
    said = end.generate(asked, max_new_tokens=32, images=index.image_bytes)
    assert len(before) == 8 and [r["output"] for r in before] == said
    # Finished, it says how to ask the model.
    again = CliRunner().invoke(app, ["train", str(file), "--run", str(folder)])
    assert f"diptych chat {folder} PICTURE" in again.output.replace("\n", "")
    # The run's own recipe gives the same run again.
    assert load(str(folder)).model == recipe.model


def test_a_plan_counts_it(first, squares, tmp_path):
    file = written(first, squares, tmp_path)
    result = CliRunner().invoke(app, ["show", str(file), "--plan", "--json"])
    assert result.exit_code == 0, result.output
    own = load_model(first).merge_adapters()
    counted = sum(p.numel() for p in own.parameters())
    assert json.loads(result.stdout)["parameters"]["total"] == counted


def test_a_converted_clip_is_tuned_with_its_projections(tiny_dual, squares, tmp_path):
    from diptych.convert import layout
    from diptych.model.architectures.dual_encoder import DualEncoderConfig

    model = build(DualEncoderConfig.from_dict(tiny_dual()), seed=3)
    layout.export(model, "hf-clip", tmp_path / "hf")
    save_model(layout.load(tmp_path / "hf", "hf-clip")[0], tmp_path / "clip")
    stage = {"name": "more", "objective": "contrastive", "learn": {"space": {}}}
    file = tmp_path / "mine.yaml"
    captions = {"path": f"{squares}/captions.json", "images": f"{squares}/images"}
    recipe = {
        "name": "mine", "model": {"weights": "clip"}, "stages": [{**stage, "data": [captions]}],
    }  # fmt: skip
    file.write_text(yaml.safe_dump(recipe))
    found = build(load(str(file)).model)
    assert torch.equal(found.space.image.weight, model.space.image.weight)
    assert torch.equal(found.space.log_scale, model.space.log_scale)


def test_another_composition_is_refused(first, tmp_path, squares):
    recipe = load(str(written(first, squares, tmp_path)))
    other = recipe.override(["model.connector={name: linear}"])
    with pytest.raises(ConfigError, match="another connector"):
        build(other.model)
    with pytest.raises(ConfigError, match="run it first"):
        file = written(first, squares, tmp_path, model={"weights": "recipe:clip-small"})
        load(str(file))


def test_a_folder_cannot_send_elsewhere(first, tmp_path):
    model = load_model(first).merge_adapters()
    folder = save_model(model, tmp_path / "kept")
    values = json.loads((folder / "config.json").read_text())
    values["weights"] = str(first)
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="from elsewhere"):
        load_model(folder)


def test_adapters_are_begun_anew(first):
    config = load_model(first).config
    lora = config.adapters["language_model"]
    whole = config.model_copy(update={"weights": str(first), "adapters": {"language_model": lora}})
    model = begin(whole)
    assert model.config.adapters.keys() == {"language_model"}
    fresh = [p for n, p in model.named_parameters() if "lora_B" in n]
    assert fresh and not any(p.any() for p in fresh)


def test_lora_on_a_part_without_linear_layers_says_so(tiny_model):
    from diptych.model.adapters import LoraConfig

    model = tiny_model(vision="resnet")
    with pytest.raises(ConfigError, match="no linear layers"):
        model.add_adapters("vision_encoder", LoraConfig())
