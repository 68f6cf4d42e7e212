"""A published model is a starting point by its name: read whole, once, from its hub's files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.hub_models import whole_models
from tests.mirror import COMMIT, Mirror, environment

pytestmark = pytest.mark.slow

PARTS = {
    "dual_encoder": {"vision_encoder": {}, "text_encoder": {}, "space": {}},
    "captioner": {"vision_encoder": {}, "text": {}, "heads": {}},
    "answerer": {"vision_encoder": {}, "text": {}},
    "vlm": {"connector": {}},
    "query_transformer": {"query_former": {}, "heads": {}},
}
OBJECTIVES = {
    "dual_encoder": "contrastive", "captioner": "blip", "answerer": "answer", "vlm": "next_token",
    "query_transformer": "query_text",
}  # fmt: skip
KINDS = {
    "openai/clip-vit-base-patch16": "dual_encoder",
    "google/siglip-base-patch16-256": "dual_encoder",
    "Salesforce/blip-image-captioning-base": "captioner",
    "Salesforce/blip-itm-base-coco": "captioner",
    "Salesforce/blip-vqa-base": "answerer",
    "Salesforce/blip2-opt-2.7b": "vlm",
    "Salesforce/blip2-opt-2.7b-coco": "vlm",
    "Salesforce/blip2-flan-t5-xl": "vlm",
    "Salesforce/blip2-itm-vit-g": "query_transformer",
    "llava-hf/llava-1.5-7b-hf": "vlm",
    "llava-hf/llava-v1.6-mistral-7b-hf": "vlm",
    "OpenGVLab/InternVL3-1B-hf": "vlm",
}


def diptych(settings, *words, code=0, cwd=None):
    """A command, and the object that it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "diptych", *map(str, words), "--json"], cwd=cwd,
        env={**settings, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == code, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def hub():
    return whole_models()


def recipe_of(name, squares, folder, **model):
    """A file with a recipe that goes on from a published model."""
    kind = KINDS[name]
    file = "train.json" if kind in ("vlm", "answerer") else "captions.json"
    values = {
        "name": "mine", "model": {"weights": name, **model}, "trackers": [],
        "stages": [{
            "name": "one", "objective": OBJECTIVES[kind], "learn": PARTS[kind], "num_steps": 1,
            "data": [{"path": str(squares / file), "images": str(squares / "images")}],
            "global_batch_size": 2, "num_workers": 0, "long_samples": "truncate",
        }],
    }  # fmt: skip
    place = folder / f"{name.rpartition('/')[2]}.yaml"
    place.write_text(yaml.safe_dump(values))
    return place


def main(folder: Path, squares: Path, names: list[str]) -> None:
    """In one process, as the hub's library reads its settings on import: plan and run a recipe of
    every name, and print what became of it."""
    from diptych.cli.plan import plan
    from diptych.cli.run import run_recipe
    from diptych.progress import Progress
    from diptych.recipe import load

    found = {}
    for name in names:
        recipe = load(str(recipe_of(name, squares, folder)))
        planned = plan(recipe)
        kept = folder / "hub" / "hub" / f"models--{name.replace('/', '--')}"
        before = sorted(p.name for p in kept.glob("snapshots/*/*"))
        run = folder / "runs" / recipe_of(name, squares, folder).stem
        run_recipe(recipe, run, progress=Progress(quiet=True))
        found[name] = {
            "planned": planned["parameters"]["total"], "fingerprint": planned["fingerprint"],
            "before": before, "run": str(run), "again": load(str(run)).fingerprint(),
        }  # fmt: skip
    print(json.dumps(found))


def test_a_recipe_goes_on_from_their_names(hub, squares, tmp_path):
    with Mirror(hub) as mirror:
        settings = environment(mirror, tmp_path)
        found = run_all(settings, tmp_path, squares, KINDS)
        assert mirror.sent.count("model.safetensors") == len(KINDS)
    for name, about in found.items():
        assert about["planned"] > 1000 and "config.json" in about["before"]
        assert "model.safetensors" not in about["before"], "a plan needs no weights"
        assert about["again"] == about["fingerprint"]
        model = Path(about["run"]) / "model"
        origin = json.loads((model / "origins.json").read_text())["model"]
        assert (origin["weights"], origin["commit"]) == (name, COMMIT)
        assert f"- {name}\n" in (model / "README.md").read_text()
    kept = list((tmp_path / "cache" / "published").glob("*/published.json"))
    assert len(kept) == len(KINDS)
    assert all(json.loads(file.read_text())["compared"] is True for file in kept)
    # And again with neither a hub nor its weights.
    shutil.rmtree(tmp_path / "runs")
    for file in (tmp_path / "hub").rglob("*.safetensors"):
        file.unlink()
    offline = {**settings, "DIPTYCH_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    names = ["Salesforce/blip2-opt-2.7b", "openai/clip-vit-base-patch16"]
    again = run_all(offline, tmp_path, squares, names)
    assert {n: again[n]["fingerprint"] for n in names} == {
        n: found[n]["fingerprint"] for n in names
    }


def run_all(settings, folder, squares, names):
    done = subprocess.run(
        [sys.executable, "-m", "tests.recipes.test_published", str(folder), str(squares), *names],
        env={**settings, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_commands_take_its_name_too(hub, squares, tmp_path):
    name = "Salesforce/blip2-flan-t5-xl"
    picture = squares / "images" / "000.png"
    with Mirror(hub) as mirror:
        settings = environment(mirror, tmp_path)
        answer = diptych(settings, "chat", name, picture, "--ask", "What colour is the square?")
        data = ("--images", squares / "images", "--limit", 4)
        result = diptych(settings, "eval", name, squares / "train.json", *data)
        assert result["after"]["n"] == 4 and isinstance(answer["answer"], str)
        clip = "openai/clip-vit-base-patch16"
        done = diptych(
            settings, "embed", clip, squares / "captions.json", "--images", squares / "images",
            "--to", f"parquet:{tmp_path / 'vectors'}",
        )  # fmt: skip
        assert done["written"] == 24
        assert mirror.sent.count("model.safetensors") == 2


def test_what_is_set_beside_it_is_held_to_its_composition(hub, squares, tmp_path):
    name = "Salesforce/blip2-opt-2.7b"
    with Mirror(hub) as mirror:
        settings = environment(mirror, tmp_path)
        recipe = recipe_of(name, squares, tmp_path)
        error = diptych(
            settings, "train", recipe, "--run", tmp_path / "run", "--set",
            "model.connector.num_queries=5", code=2,
        )  # fmt: skip
        assert error["error"] == "ConfigError" and error["where"] == "model.connector"
        recipe = recipe_of(name, squares, tmp_path, revision="no-such")
        error = diptych(settings, "show", recipe, "--plan", code=2)
        assert error["error"] == "WeightsNotFound" and "no-such" in error["message"]


def test_a_conversion_that_differs_is_not_kept(hub, squares, tmp_path):
    name = "llava-hf/llava-1.5-7b-hf"
    repo = dict(hub[name])
    processor = json.loads(repo["preprocessor_config.json"])
    # Diptych reads a mean that the class, which takes another file, does not.
    repo["processor_config.json"] = json.dumps(
        {"image_processor": {**processor, "image_mean": [0.1, 0.2, 0.3]}}
    ).encode()
    with Mirror({name: repo}) as mirror:
        settings = environment(mirror, tmp_path)
        recipe = recipe_of(name, squares, tmp_path)
        error = diptych(settings, "train", recipe, "--run", tmp_path / "run", code=1)
        assert error["error"] == "ExportMismatch"
    assert not list((tmp_path / "cache" / "published").glob("*/config.json"))


def test_the_recipe_that_fine_tunes_blip2(hub, squares, tmp_path):
    """As shipped, with data of one's own: the language model rests, the queries learn."""
    folder = tmp_path / "pairs"
    shutil.copytree(squares / "images", folder)
    for split in ("train", "test"):
        lines = [json.dumps(r) for r in json.loads((squares / "captions.json").read_text())[:6]]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    changes = ("num_steps=2", "num_epochs=null", "global_batch_size=4", "num_workers=0")
    settings = [word for c in changes for word in ("--set", f"stages.generate.{c}")]
    with Mirror(hub) as mirror:
        env = environment(mirror, tmp_path)
        done = subprocess.run(
            [sys.executable, "-m", "diptych", "train", "blip2-finetune", "--run", "run", *settings,
             "--set", "evaluation.max_new_tokens=4", "--json"],
            cwd=tmp_path, env={**env, "OMP_NUM_THREADS": "1",
                               "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True, text=True, timeout=600,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    parameters = json.loads((tmp_path / "run" / "parameters.json").read_text())
    assert "connector" in json.dumps(parameters)
    assert json.loads(done.stdout)["after"]["n"] == 6


def test_a_published_model_is_tuned_and_leaves_as_it_came(hub, squares, tmp_path):
    """As shipped, with data of one's own: tuned with LoRA, asked before and after, exported."""
    name, layout = "internvl3-1b-finetune", "hf-internvl"
    shutil.copytree(squares / "images", tmp_path / "images")
    for split in ("train", "test"):
        rows = json.loads((squares / "train.json").read_text())[:8]
        (tmp_path / f"{split}.json").write_text(json.dumps(rows))
    changes = ("num_steps=2", "num_epochs=null", "global_batch_size=4", "num_workers=0")
    words = [word for c in changes for word in ("--set", f"stages.instruct.{c}")]
    with Mirror(hub) as mirror:
        env = {**environment(mirror, tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
        command = ["train", name, "--run", "run", *words, "--set", "evaluation.max_new_tokens=4"]
        trained = diptych(env, *command, cwd=tmp_path)
        left = diptych(env, "convert", "run", "exported", "--to", "same", cwd=tmp_path)
    assert trained["after"]["n"] == 8
    assert left["layout"] == layout and left["tokens_equal"] and not left["problems"]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
