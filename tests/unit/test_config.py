"""Configs: strict, frozen, printable, overridable, and precise about what is wrong."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from diptych.config import read_file
from diptych.errors import ConfigError
from diptych.recipe import Recipe, named

RECIPES = {n: f for n, f in named().items() if not hasattr(f, "published")}


@pytest.fixture(scope="module")
def recipe():
    return RECIPES["llava15-7b"]()


def change(recipe, edit):
    values = recipe.to_dict()
    edit(values)
    return values


@pytest.mark.parametrize(
    ("edit", "where", "says"),
    [
        (lambda v: v.update(sed=1), "sed", "did you mean 'seed'"),
        (lambda v: v["stages"][0].update(learning_rat=1), "stages.align.learning_rat", "did you mean 'learning_rate'"),
        (lambda v: v["stages"][1]["schedule"].update(warmup=1), "stages.instruct.schedule.warmup", "warmup_share"),
        (lambda v: v["stages"][1]["learn"]["connector"].update(rate=1), "stages.instruct.learn.connector.rate", "learning_rate"),
        (lambda v: v["model"]["vision_encoder"]["image"].update(sise=1), "model.vision_encoder.image.sise", "did you mean 'size'"),
        (lambda v: v["stages"][0].update(learning_rate="fast"), "stages.align.learning_rate", "number"),
        (lambda v: v["stages"][0].update(learning_rate=-1), "stages.align.learning_rate", "greater than 0"),
        (lambda v: v["stages"][0].update(num_epochs=math.inf), "stages.align.num_epochs", "finite"),
        (lambda v: v["stages"][0].update(global_batch_size=1.5), "stages.align.global_batch_size", "integer"),
        (lambda v: v["stages"][0].update(packed="yes"), "stages.align.packed", "boolean"),
        (lambda v: v.update(seed=-1), "seed", "greater than or equal to 0"),
        (lambda v: v["model"]["connector"].update(name="mpl"), "model.connector", "did you mean 'mlp'"),
        (lambda v: v["model"]["connector"].update(width=3), "model.connector.width", "unknown key 'width'"),
        (lambda v: v["stages"][0]["learn"].update(vision={}), "stages.align", "no part 'vision'"),
        (lambda v: v["stages"][0].update(keep_best=True), "stages.align", "validation"),
        (lambda v: v["stages"][0].update(name="instruct"), None, "two stages are named 'instruct'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(recipe, edit, where, says):
    with pytest.raises(ConfigError) as caught:
        Recipe.from_dict(change(recipe, edit), where="mine.yaml")
    assert says in str(caught.value)
    assert caught.value.where == (f"mine.yaml: {where}" if where else "mine.yaml")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_the_round_trip(name):
    recipe = RECIPES[name]()
    again = Recipe.from_dict(recipe.to_dict())
    assert again == recipe and again.fingerprint() == recipe.fingerprint()
    assert type(again.model) is type(recipe.model)
    assert [type(s.objective) for s in again.stages] == [type(s.objective) for s in recipe.stages]


def test_fingerprint_changes_with_any_value(recipe):
    changed = [
        recipe.override([a]).fingerprint()
        for a in ("seed=1", "stages.align.learning_rate=2e-3", "model.connector=linear")
    ]
    assert len({recipe.fingerprint(), *changed}) == 4


def test_overrides(recipe):
    new = recipe.override(
        [
            "stages.align.learning_rate=2e-3",
            "stages.1.schedule.shape=linear",
            "stages.instruct.cache_features=off",
            "stages.align.data.0.path=a=b.json",
            "model.connector={name: resampler, num_queries: 9}",
            "model.language_model.template=null",
        ]
    )
    assert new.stages[0].learning_rate == 2e-3
    assert new.stages[1].schedule.shape == "linear"
    assert new.stages[1].cache_features == "off"
    assert new.stages[0].data[0].path == "a=b.json"
    assert new.model.connector.num_queries == 9
    assert new.model.language_model.template is None
    assert recipe.stages[0].learning_rate == 1e-3, "the original stays"


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("seed", "assigns nothing"),
        ("=1", "unknown key ''"),
        ("stages.alin.learning_rate=1", "did you mean 'align'"),
        ("stages.7.learning_rate=1", "unknown key '7'"),
        ("stages.².learning_rate=1", "unknown key '²'"),
        ("seed.x=1", "is a value"),
        ("stages.align.learning_rat=1", "did you mean 'learning_rate'"),
        ("stages.align.learning_rate=fast", "valid number"),
        ("stages.align.learning_rate=.inf", "valid number"),
        ("seed=" + "[" * 5000, "integer"),
    ],
)
def test_bad_overrides(recipe, assignment, says):
    with pytest.raises(ConfigError, match="(?s)" + says.replace(".", r"\.")):
        recipe.override([assignment])


def test_frozen(recipe):
    with pytest.raises(ValidationError):
        recipe.seed = 1
    with pytest.raises(ValidationError):
        recipe.stages[0].learning_rate = 1.0


def test_yaml_means_what_people_write(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("a: 2e-3\nb: off\nc: true\nd: ~\ne: 2020-01-01\nf: 010\ng: [1, 2.5]\nh: 1:30\n")
    values = read_file(file)
    assert values == {
        "a": 0.002, "b": "off", "c": True, "d": None, "e": "2020-01-01", "f": "010",
        "g": [1, 2.5], "h": "1:30",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "where", "says"),
    [
        ("a.yaml", "a: 1\nb: [1\n", "a.yaml:3", "invalid YAML"),
        ("a.yaml", "a: 1\nb: 2\na: 3\n", "a.yaml:3", "given twice"),
        ("a.yaml", "!!python/object/apply:os.system ['true']\n", "a.yaml:1", "invalid YAML"),
        ("a.yaml", "- 1\n", "a.yaml", "no mapping"),
        ("a.yaml", "[" * 3000, "a.yaml", "deep"),
        ("a.json", '{"a": 1,\n "b": }', "a.json:2", "invalid JSON"),
    ],
)
def test_bad_files_name_their_line(tmp_path, name, text, where, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        read_file(tmp_path / name)
    assert caught.value.where == str(tmp_path / where)


def test_unreadable_files(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff\xfe")
    for file in (tmp_path / "latin.yaml", tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(ConfigError, match="cannot read"):
            read_file(file)
