"""Plans: the counts of the real model, for every architecture, without its weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from diptych.cli.main import app
from diptych.cli.plan import plan
from diptych.errors import ConfigError, WeightsNotFound
from diptych.model.folder import build
from diptych.recipe import Recipe, load, named
from tests.mirror import Mirror, environment


@pytest.fixture(autouse=True)
def nothing_here(tmp_path, monkeypatch):
    """No cache, no network, no data."""
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DIPTYCH_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def counts(model) -> dict[str, int]:
    parts = {n: sum(p.numel() for p in part.parameters()) for n, part in model.named_parts()}
    return {**parts, "total": sum(parts.values())}


@pytest.mark.parametrize("name", [n for n in named() if n.endswith(("-debug", "-debug-stage1"))])
def test_counts_are_those_of_the_real_model(name, tokenizer_folder, framing_tokenizer_folder):
    recipe = load(name)
    clip = recipe.model.name == "dual_encoder"
    folder = framing_tokenizer_folder if clip else tokenizer_folder
    recipe = recipe.override([f"model.{recipe.model.text_part}.tokenizer={folder}"])
    assert plan(recipe)["parameters"] == counts(build(recipe.model))


def test_a_tokenizer_that_a_run_trains_counts_as_large_as_asked_for():
    text = plan(load("blip-debug"))["parameters"]["text"]
    more = plan(load("blip-debug").override(["model.text.config.vocab_size=612"]))
    # The writer's table is the reader's; its bias is its own.
    assert more["parameters"]["text"] - text == 100 * (16 + 1)


# As counted in runs of these recipes.
SMALL = {
    "clip-small": {"vision_encoder": 1_578_592, "text_encoder": 2_185_984, "space": 131_073},
    "blip-small": {"vision_encoder": 1_578_592, "text": 29_260_220, "heads": 165_123},
    "blip2-small-stage1": {
        "vision_encoder": 1_578_592, "query_former": 31_323_195, "heads": 197_891,
    },
    "blip2-small": {
        "vision_encoder": 1_578_592, "connector": 12_231_168, "language_model": 4_458_752,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_recipes_behind_others_are_planned_before_those_have_run(name, nothing_here):
    found = plan(load(name))["parameters"]
    assert found.pop("total") == sum(SMALL[name].values()) and found == SMALL[name]
    assert not list(nothing_here.iterdir())


def test_clip_b32_has_the_published_size():
    """151,277,313 parameters, as openai/clip-vit-base-patch32 has."""
    found = plan(load("clip-b32"))
    assert found["parameters"]["total"] == 151_277_313
    (stage,) = found["stages"]
    assert stage["steps"] is None and stage["floating_point_operations"] is None


def test_every_recipe_is_planned_but_those_whose_weights_only_a_hub_knows():
    lacking = {}
    for name in named():
        try:
            assert plan(load(name))["parameters"]["total"] > 0
        except WeightsNotFound as error:
            lacking[name] = str(error)
    # Those from scratch for the tests want a tokenizer beside them.
    hub = {n for n in named() if n.startswith(("llava", "internvl"))}
    hub |= {"blip-base", "blip-vqa", "blip2-stage1", "blip2-opt-2-7b", "blip2-finetune"}
    assert lacking.keys() == hub
    assert all("there are no weights" in message for message in lacking.values())


def test_work_and_memory_grow_with_what_is_computed():
    recipe = load("clip-debug")
    (small,) = plan(recipe)["stages"]
    (large,) = plan(recipe.override(["stages.pretrain.global_batch_size=16"]))["stages"]
    ratio = large["floating_point_operations"] / small["floating_point_operations"]
    assert ratio == pytest.approx(2) and large["memory_bytes"] > small["memory_bytes"]
    (chunked,) = plan(recipe.override(["stages.pretrain.objective.chunk_size=2"]))["stages"]
    assert chunked["memory_bytes"] < small["memory_bytes"]
    frozen = recipe.override(["stages.pretrain.learn={text_encoder: {}, space: {}}"])
    (frozen,) = plan(frozen)["stages"]
    assert frozen["floating_point_operations"] < small["floating_point_operations"]
    assert "vision_encoder" not in frozen["trainable"]


def test_weights_of_a_model_without_such_a_part():
    recipe = load("blip2-small").override(["model.connector.weights=recipe:clip-small"])
    with pytest.raises(ConfigError, match="dual_encoder"):
        plan(recipe)


def test_a_table_for_people():
    result = CliRunner().invoke(app, ["show", "blip-small", "--plan"])
    assert result.exit_code == 0, result.output
    for words in ("29,260,220", "6 x 6 patches", "up to 20 tokens", "not there yet", "(blip)"):
        assert words in result.output


@pytest.mark.slow
def test_of_a_model_on_a_hub_only_its_description_is_fetched(tmp_path, tokenizer_folder):
    """Over a real mirror; and what a plan left in the cache is not taken for the weights."""
    import transformers

    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    vision = transformers.CLIPVisionConfig(
        **size, num_attention_heads=2, image_size=32, patch_size=8
    )
    text = transformers.LlamaConfig(**size, num_attention_heads=2, vocab_size=600)
    transformers.CLIPVisionModel(vision).save_pretrained(tmp_path / "vision")
    transformers.LlamaForCausalLM(text).save_pretrained(tmp_path / "text")
    repos = {}
    for name in ("vision", "text"):
        files = {f.name: f.read_bytes() for f in (tmp_path / name).iterdir()}
        if name == "text":
            files |= {f.name: f.read_bytes() for f in tokenizer_folder.iterdir()}
        repos[f"some/{name}"] = files
    recipe = Recipe.from_dict(
        {
            "name": "hub",
            "model": {
                "vision_encoder": {
                    "weights": "some/vision",
                    "image": {"resize": "exact", "size": [32, 32]},
                },
                "connector": {"name": "mlp"},
                "language_model": {"weights": "some/text"},
            },
            "stages": [{"name": "align", "data": [{"path": "x.json"}], "learn": {"connector": {}}}],
        }
    )
    (tmp_path / "hub.json").write_text(recipe.to_json())
    with Mirror(repos) as mirror:
        settings = environment(mirror, tmp_path)
        planned = run(["diptych", "show", "hub.json", "--plan", "--json"], settings)
        assert not [file for file in mirror.sent if file.endswith(".safetensors")]
        assert "config.json" in mirror.sent
        composed = run(["tests.unit.test_plan", "hub.json"], settings)
        assert mirror.sent.count("model.safetensors") == 2
    assert planned["parameters"] == composed


def run(words: list[str], settings: dict[str, str]) -> dict:
    """A module in a process of its own, as the hub's library reads its settings on import."""
    root = Path(__file__).parents[2]
    settings = {**settings, "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


if __name__ == "__main__":
    print(json.dumps(counts(build(load(sys.argv[1]).model))))


def test_a_part_that_learns_in_full_takes_float32s_memory(tokenizer_folder):
    """As `trainable.hold_precision` holds it; frozen, or with adapters, it is as the recipe says."""
    recipe = load("llava-debug").override([f"model.language_model.tokenizer={tokenizer_folder}"])
    half = recipe.override(["model.language_model.dtype=bfloat16"])
    size = plan(recipe)["parameters"]["language_model"]

    def memory(chosen):
        return [stage["memory_bytes"] for stage in plan(chosen)["stages"]]

    saved = [full - less for full, less in zip(memory(recipe), memory(half), strict=True)]
    assert saved == [2 * size, 0]
    lora = ["stages.instruct.learn.language_model.how=lora"]
    with_adapters = [memory(r.override(lora))[1] for r in (recipe, half)]
    assert with_adapters[0] - with_adapters[1] == 2 * size
