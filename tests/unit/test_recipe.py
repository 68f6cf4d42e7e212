"""Recipes from names, files and bases; paths belong to the file that names them."""

from __future__ import annotations

import json

import pytest
import yaml

from diptych.errors import ConfigError, PartNotFound
from diptych.recipe import Recipe, load, named


def test_named_recipes_are_public_functions():
    assert all(not n.startswith("-") for n in named())
    assert {"quickstart", "llava15-7b", "llava-debug"} <= set(named())
    assert load("llava15_7b").name == "llava15-7b"
    with pytest.raises(PartNotFound, match="neither") as caught:
        load("quickstrat")
    assert "did you mean 'quickstart'" in caught.value.fix


def test_a_base_loses_its_weights(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("base: clip-small\nname: mine\nmodel: {weights: null}\n")
    recipe = load(str(file))
    assert recipe.model == load("clip-small").model
    file.write_text("base: clip-small\nname: mine\nmodel: {weights: 5}\n")
    with pytest.raises(ConfigError, match="weights"):
        load(str(file))


def test_a_base_with_changes(tmp_path):
    folder = tmp_path / "odd:name"  # a colon in the path must not matter
    folder.mkdir()
    (folder / "mine.yaml").write_text(
        yaml.safe_dump(
            {
                "base": "llava15-7b",
                "name": "mine",
                "model": {"connector": {"name": "resampler", "num_queries": 7}},
                "stages": {"align": {"learning_rate": 2e-3, "cache_features": "off"}},
            }
        )
    )
    (folder / "second.yaml").write_text("base: mine.yaml\nseed: 4\n")
    recipe = load(str(folder / "second.yaml"))
    assert (recipe.name, recipe.seed, recipe.model.connector.num_queries) == ("mine", 4, 7)
    assert recipe.stages[0].learning_rate == 2e-3 and recipe.stages[1].learning_rate == 2e-5
    assert recipe.model.language_model.weights == "lmsys/vicuna-7b-v1.5"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"base": 3}, "base must name"),
        ({"base": "mine.yaml"}, "its own base"),
        ({"base": "llava15-7b", "stages": {"alin": {}}}, "no item named 'alin'"),
        ({"base": "llava15-7b", "nam": "x"}, "unknown key 'nam'"),
    ],
)
def test_bad_bases(tmp_path, values, says):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=says):
        load(str(file))


def test_paths_are_relative_to_the_file(tmp_path, tiny_config, monkeypatch):
    (tmp_path / "words").mkdir()
    model = tiny_config()
    model["language_model"]["tokenizer"] = "words"
    values = {
        "name": "mine",
        "model": model,
        "stages": [
            {
                "name": "a",
                "learn": {"connector": {}},
                "data": [
                    {"path": "q.json,a.json", "images": "../photos"},
                    {"path": "s3://bucket/x.json"},
                ],
            }
        ],
        "evaluation": {"data": {"path": "/abs/test.json"}, "choices": "mmlu.csv"},
    }
    (tmp_path / "r.json").write_text(json.dumps(values))
    recipe = load(str(tmp_path / "r.json"))
    first, second = recipe.stages[0].data
    assert first.path == f"{tmp_path}/q.json,{tmp_path}/a.json"
    assert first.images == str(tmp_path.parent / "photos")
    assert second.path == "s3://bucket/x.json"
    assert recipe.evaluation.data.path == "/abs/test.json"
    assert recipe.evaluation.choices == str(tmp_path / "mmlu.csv")
    assert recipe.model.language_model.tokenizer == str(tmp_path / "words")
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "recipe.json").write_text(recipe.to_json())
    assert load(str(tmp_path / "again")) == recipe, "a run folder repeats the run"
    assert recipe.located(tmp_path / "elsewhere") == recipe


def test_a_tokenizer_trained_on_the_data_is_not_a_folder_beside_the_recipe(tmp_path, tiny_config):
    """A run has a folder `data` beside its recipe.json, which can be trained again."""
    (tmp_path / "data").mkdir()
    model = tiny_config()
    model["language_model"]["tokenizer"] = "data"
    stage = {"name": "a", "learn": {"connector": {}}, "data": [{"path": "x.json"}]}
    values = {"name": "mine", "model": model, "stages": [stage]}
    (tmp_path / "recipe.json").write_text(json.dumps(values))
    assert load(str(tmp_path)).model.language_model.tokenizer == "data"


def test_templates_name_the_class():
    with pytest.raises(ConfigError, match="every template needs {}"):
        load("clip-small").override(["evaluation.templates=[a picture]"])


def rates(tiny_config, **stage):
    """A recipe of one stage whose parts may name rates of their own."""
    values = {
        "name": "mine", "model": tiny_config(),
        "stages": [{"name": "s", "data": [{"path": "x.json"}], **stage}],
    }  # fmt: skip
    return Recipe.from_dict(values)


OWN = {"connector": {"learning_rate": 1e-3}, "language_model": {"learning_rate": 1e-4}}


@pytest.mark.parametrize(
    ("stage", "change", "says"),
    [
        ({"learn": OWN}, "stages.s.learning_rate=1e-6", "connector, language_model"),
        ({"learn": OWN}, "stages.0.learning_rate=1e-6", "every part of this stage names its own"),
        ({"learn": OWN, "num_steps": 4}, "stages.s.num_epochs=2", "num_steps is 4 and wins"),
        (
            {"learn": {"connector": {}}}, "stages.s.learn.connector.lora.rank=4",
            "learns in full, without adapters",
        ),
    ],
)  # fmt: skip
def test_a_change_that_would_change_nothing_is_an_error(stage, change, says, tiny_config):
    with pytest.raises(ConfigError, match=says) as caught:
        rates(tiny_config, **stage).override([change])
    assert caught.value.where == change.partition("=")[0]
    assert "stages." in caught.value.fix


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        # The part that names none takes the stage's; so do what an objective brings along.
        ({"learn": {**OWN, "vision_encoder": {}}}, ["stages.s.learning_rate=1e-6"]),
        ({"learn": OWN, "objective": "contrastive"}, ["stages.s.learning_rate=1e-6"]),
        (
            {"learn": OWN},
            ["stages.s.learning_rate=1e-6", "stages.s.learn.connector.learning_rate=null"],
        ),
        ({"learn": OWN, "num_steps": 4}, ["stages.s.num_epochs=2", "stages.s.num_steps=null"]),
        (
            {"learn": {"connector": {}}},
            ["stages.s.learn.connector.lora.rank=4", "stages.s.learn.connector.how=lora"],
        ),
    ],
)
def test_changes_that_count_are_none(stage, changes, tiny_config):
    recipe = rates(tiny_config, **stage)
    assert recipe.override(changes).fingerprint() != recipe.fingerprint()


def test_a_file_over_a_base_says_so_too(tiny_config, tmp_path):
    (tmp_path / "below.yaml").write_text(rates(tiny_config, learn=OWN).to_json())
    over = tmp_path / "over.yaml"
    over.write_text("base: below.yaml\nstages: {s: {learning_rate: 1e-6}}\n")
    with pytest.raises(ConfigError, match="every part") as caught:
        load(str(over))
    assert caught.value.where == f"{over}: stages.s.learning_rate"
    over.write_text("base: below.yaml\nstages: {s: {learn: {connector: {learning_rate: 1e-6}}}}\n")
    assert load(str(over)).stages[0].learn["connector"].learning_rate == 1e-6


def test_the_rate_of_a_published_recipe_whose_parts_name_theirs():
    with pytest.raises(ConfigError, match="connector, language_model"):
        load("llava15-7b-lora").override(["stages.instruct.learning_rate=1e-6"])
