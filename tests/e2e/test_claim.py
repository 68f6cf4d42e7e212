"""A run folder belongs to one recipe, and one process at a time works in it."""

from __future__ import annotations

import json
import logging
import multiprocessing
import shutil
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from diptych.cli.main import app
from diptych.cli.run import run_recipe
from diptych.errors import DataChanged, RunTaken, StartChanged
from diptych.model.architecture import config_from_dict
from diptych.model.folder import build, save_model
from diptych.progress import Progress
from diptych.recipe import Recipe, load
from diptych.train import claim, resume
from diptych.train.journal import Journal
from diptych.train.trainer import Trainer

torch.set_num_threads(1)


@pytest.fixture
def file(tiny_config, squares, tmp_path):
    """A recipe of a few steps on data beside it, which a test may change."""
    shutil.copytree(squares, tmp_path / "data")
    recipe = {
        "name": "mine", "model": tiny_config(), "trackers": [],
        "stages": [{
            "name": "instruct", "data": [{"path": "data/train.json", "images": "data/images"}],
            "learn": {"connector": {}, "language_model": {}}, "num_steps": 6,
            "global_batch_size": 4, "num_workers": 0, "checkpoint_every_steps": 2,
        }],
        "evaluation": {
            "data": {"path": "data/train.json", "images": "data/images"}, "limit": 4,
            "max_new_tokens": 2,
        },
    }  # fmt: skip
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def train(recipe, *options):
    """(exit code, the JSON object) of `diptych train`."""
    result = CliRunner().invoke(app, ["train", str(recipe), *map(str, options), "--json"])
    return result.exit_code, json.loads(result.stdout)


def files_of(run):
    """Contents of everything in a run folder but the lock."""
    return {
        p.relative_to(run): p.read_bytes()
        for p in run.rglob("*") if p.is_file() and p.name != "lock"
    }  # fmt: skip


def test_another_recipe_is_refused_before_anything_is_written(file, tmp_path):
    run = tmp_path / "run"
    assert train(file, "--run", run)[0] == 0
    before = files_of(run)
    code, said = train(
        file, "--run", run, "--set", "stages.instruct.num_steps=9", "--set", "seed=3"
    )
    assert code == 2 and said["error"] == "RunTaken" and said["where"] == str(run)
    assert "stages.instruct.num_steps (6 there, 9 here)" in said["message"]
    assert "seed (0 there, 3 here)" in said["message"]
    assert files_of(run) == before
    # The same recipe finds its own run again.
    code, again = train(run / "recipe.json", "--run", run)
    assert code == 0 and again["after"]["n"] == 4


def test_a_stopped_run_of_another_recipe_is_not_gone_on_with(file, tmp_path):
    run = tmp_path / "run"
    recipe = load(str(file))
    stop(recipe, run)
    other = recipe.override(["stages.instruct.learning_rate=1e-4"])
    with pytest.raises(RunTaken, match=r"learning_rate \(0\.001 there, 0\.0001 here\)"):
        run_recipe(other, run, progress=Progress(quiet=True))
    run_recipe(recipe, run, progress=Progress(quiet=True))


def stop(recipe, run):
    """Run a recipe until after its checkpoint of step 4."""
    step = Journal.step
    with pytest.MonkeyPatch.context() as patch:

        def dies(self, stage, number, *rest):
            step(self, stage, number, *rest)
            if number == 5:
                raise KeyboardInterrupt

        patch.setattr(Journal, "step", dies)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, run, progress=Progress(quiet=True))
    assert resume.position_of(resume.newest(run / "checkpoints")).step == 4


def test_settings_that_cannot_change_the_result_name_the_same_run(file, tmp_path):
    """The way out of too little memory must not cost the run."""
    recipe = load(str(file))
    same = recipe.override(
        [
            "stages.instruct.rows_per_batch=1", "stages.instruct.num_workers=null",
            "stages.instruct.checkpoint_every_steps=1", "stages.instruct.cache_bytes=1000",
            "stages.instruct.checkpoint_every_seconds=5", "trackers=[tensorboard]",
            "stages.instruct.gradient_checkpointing=true", "evaluation.batch_size=2",
        ]
    )  # fmt: skip
    assert same != recipe and same.fingerprint() == recipe.fingerprint()
    for change in ("seed=1", "stages.instruct.num_steps=7", "stages.instruct.tokens_per_row=99"):
        assert recipe.override([change]).fingerprint() != recipe.fingerprint()
    run = tmp_path / "run"
    stop(recipe, run)
    fewer = recipe.override(["stages.instruct.rows_per_batch=1"])
    run_recipe(fewer, run, progress=Progress(quiet=True))
    lines = [json.loads(t) for t in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert Recipe.from_dict(json.loads((run / "recipe.json").read_text())) == fewer


def moved_to(file, name):
    """The recipe, its data in another folder."""
    text = file.read_text().replace("data/", f"{name}/")
    other = file.with_name(f"{name}.yaml")
    other.write_text(text)
    return load(str(other))


@pytest.mark.parametrize("finished", [False, True])
def test_data_that_were_moved_are_the_same_data(finished, file, tmp_path):
    run = tmp_path / "run"
    recipe = load(str(file))
    if finished:
        run_recipe(recipe, run, progress=Progress(quiet=True))
    else:
        stop(recipe, run)
    before = (run / "recipe.json").read_bytes()
    shutil.copytree(tmp_path / "data", tmp_path / "other")
    rows = json.loads((tmp_path / "other" / "train.json").read_text())
    (tmp_path / "other" / "train.json").write_text(json.dumps(rows[:-1]))
    with pytest.raises(DataChanged, match=r"48 rows then, 47 now"):
        run_recipe(moved_to(file, "other"), run, progress=Progress(quiet=True))
    assert (run / "recipe.json").read_bytes() == before
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    summary = run_recipe(moved_to(file, "elsewhere"), run, progress=Progress(quiet=True))
    assert summary["after"]["n"] == summary["before"]["n"] == 4
    assert str(tmp_path / "elsewhere") in (run / "recipe.json").read_text()


def test_a_folder_where_nothing_was_made_yet_binds_nobody(file, tmp_path):
    """A run that was refused can be put right in its folder."""
    run = tmp_path / "run"
    code, said = train(file, "--run", run, "--set", "stages.instruct.data.0.format=captions")
    assert code != 0 and (run / "recipe.json").is_file(), said
    shutil.rmtree(run / "eval", ignore_errors=True)
    assert train(file, "--run", run)[0] == 0


def test_a_recipe_that_cannot_be_read_any_more_is_named(file, tmp_path):
    run = tmp_path / "run"
    assert train(file, "--run", run)[0] == 0
    values = json.loads((run / "recipe.json").read_text())
    values["stages"][0]["setting_of_another_version"] = 1
    (run / "recipe.json").write_text(json.dumps(values))
    code, said = train(file, "--run", run)
    assert code == 2 and said["error"] == "RunTaken"
    assert "setting_of_another_version" in said["message"]


def test_questions_that_changed_are_asked_anew(file, tmp_path, caplog):
    """A score before training about other questions is not compared with one after it."""
    run = tmp_path / "run"
    shutil.copy(tmp_path / "data" / "train.json", tmp_path / "data" / "test.json")
    file.write_text(file.read_text().replace(
        "    images: data/images\n    path: data/train.json\n  limit",
        "    images: data/images\n    path: data/test.json\n  limit",
    ))  # fmt: skip
    recipe = load(str(file))
    assert recipe.evaluation.data.path.endswith("test.json")
    stop(recipe, run)
    rows = json.loads((tmp_path / "data" / "test.json").read_text())
    (tmp_path / "data" / "test.json").write_text(json.dumps(rows[4:8]))
    # The model before its first step is at hand still, so both scores are about the same questions.
    summary = run_recipe(recipe, run, progress=Progress(quiet=True))
    asked = [
        [json.loads(t)["id"] for t in (run / f"records_{name}.jsonl").read_text().splitlines()]
        for name in ("before", "after")
    ]
    assert asked[0] == asked[1] == [row["id"] for row in rows[4:8]]
    assert run_recipe(recipe, run, progress=Progress(quiet=True))["after"] == summary["after"]
    # After training it is not.
    (tmp_path / "data" / "test.json").write_text(json.dumps(rows[8:12]))
    with caplog.at_level(logging.WARNING, "diptych"):
        later = run_recipe(recipe, run, progress=Progress(quiet=True))
    assert later["before"] is None and later["after"]["n"] == 4
    assert "the questions changed since the score before training" in caplog.text


def hold(folder, ready):
    with claim.working_in(folder):
        ready.set()
        time.sleep(60)


@pytest.fixture
def elsewhere():
    """Another process that works in a folder."""
    context = multiprocessing.get_context("spawn")
    started = []

    def start(folder):
        ready = context.Event()
        process = context.Process(target=hold, args=(folder, ready))
        process.start()
        started.append(process)
        assert ready.wait(60)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


@pytest.mark.slow
def test_two_processes_in_one_folder_are_refused(file, tmp_path, elsewhere, monkeypatch):
    monkeypatch.setattr(claim, "WAIT_SECONDS", 0.2)
    run = tmp_path / "run"
    other = elsewhere(run)
    code, said = train(file, "--run", run)
    assert code == 2 and said["error"] == "RunTaken" and "another process" in said["message"]
    assert {p.name for p in run.iterdir()} == {"lock"}, "nothing was written"
    recipe = load(str(file))
    trainer = Trainer(build(recipe.model), recipe.stages, run, trackers=())
    with pytest.raises(RunTaken, match="another process"):
        trainer.train()
    other.kill()
    other.join()
    assert train(file, "--run", run)[0] == 0, "a killed process holds nothing"


def test_a_process_may_enter_its_folder_twice(tmp_path):
    folder = tmp_path / "a"
    with claim.working_in(folder):
        lock = claim._locks[folder.resolve()]
        with claim.working_in(folder):
            assert lock.is_locked
        assert lock.is_locked, "the inner one gives nothing back"
    assert not lock.is_locked
    with claim.working_in(folder):
        assert lock.is_locked


def test_differences_are_named_as_overrides_are_written():
    one = {"a": {"b": 1}, "stages": [{"name": "x", "rate": 1.0, "data": [{"path": "p"}]}]}
    two = {"a": {"b": 1, "c": None}, "stages": [{"name": "x", "rate": 2.0, "data": []}]}
    assert claim.differences(one, two) == {
        "stages.x.rate": (1.0, 2.0), "stages.x.data.0": ({"path": "p"}, None),
    }  # fmt: skip


def test_accepting_changed_data_on_the_command_line(file, tmp_path):
    run = tmp_path / "run"
    stop(load(str(file)), run)
    rows = json.loads((tmp_path / "data" / "train.json").read_text())
    (tmp_path / "data" / "train.json").write_text(json.dumps(rows[1:]))
    code, said = train(file, "--run", run)
    assert code == 2 and said["error"] == "DataChanged" and "48 rows then, 47" in said["message"]
    assert "--accept-changed-data" in said["fix"]
    assert train(file, "--run", run, "--accept-changed-data")[0] == 0
    assert train(file, "--run", tmp_path / "fresh")[0] == 0
    first, second = (
        load_file(tmp_path / n / "model" / "model.safetensors") for n in ("run", "fresh")
    )
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.slow
def test_weights_of_a_recipe_that_was_trained_anew_since(file, squares, tmp_path):
    """The second recipe's stopped run began with others, though it learns all of them."""
    values = yaml.safe_load(file.read_text())
    encoder = values["model"]["vision_encoder"]
    first = {**values, "name": "first", "evaluation": None}
    first["stages"] = [{**values["stages"][0], "learn": {"vision_encoder": {}}}]
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(first))
    values["model"]["vision_encoder"] = {
        "weights": f"recipe:{tmp_path / 'first.yaml'}", "image": encoder["image"],
    }  # fmt: skip
    values["stages"][0]["learn"] = {"vision_encoder": {}, "connector": {}}
    file.write_text(yaml.safe_dump(values))
    recipe, run = load(str(file)), tmp_path / "runs" / "second"
    quiet = {"progress": Progress(quiet=True)}
    (before,) = _first_runs(recipe, run, quiet)
    stop(recipe, run)
    shutil.rmtree(before)
    # The same recipe on other rows ends in other weights.
    rows = json.loads((tmp_path / "data" / "train.json").read_text())
    other = [{**row, "conversations": row["conversations"][:1] + rows[-n]["conversations"][1:]}
             for n, row in enumerate(rows)]  # fmt: skip
    (tmp_path / "data" / "train.json").write_text(json.dumps(other))
    _first_runs(recipe, run, quiet)
    (tmp_path / "data" / "train.json").write_text(json.dumps(rows))
    with pytest.raises(StartChanged, match=r"what model\.vision_encoder\.weights names"):
        run_recipe(recipe, run, **quiet)
    assert run_recipe(recipe, run, accept_changed=True, **quiet)["after"]["n"] == 4


def _first_runs(recipe, run, quiet):
    """Run what comes before a recipe; folders of these runs."""
    from diptych.cli.run import _before

    found = {folder: first for first, folder in _before(recipe, run.parent).values()}
    for folder, first in found.items():
        run_recipe(first, folder, **quiet)
    return list(found)


def test_capfilt_and_the_demonstration_ask_the_same_way(
    squares, tiny_captioner, tmp_path, elsewhere, monkeypatch
):
    from diptych.cli.capfilt import capfilt
    from diptych.cli.demonstration import demonstrate

    monkeypatch.setattr(claim, "WAIT_SECONDS", 0.2)
    save_model(build(config_from_dict(tiny_captioner())), tmp_path / "captioner")
    noisy = str(squares / "captions.json")
    settings = {
        "noisy": noisy, "clean": noisy, "model": str(tmp_path / "captioner"),
        "images": str(squares / "images"), "progress": Progress(quiet=True),
    }  # fmt: skip
    out = tmp_path / "out"
    other = elsewhere(out)
    with pytest.raises(RunTaken, match="another process"):
        capfilt(out=out, **settings)
    for name in ("train", "test"):
        shutil.copy(squares / "captions.json", tmp_path / f"{name}.jsonl")
    with pytest.raises(RunTaken, match="another process"):
        demonstrate(tmp_path, out, num=4, field=None, method="tsne", overrides=[], seed=0)
    assert {p.name for p in out.iterdir()} == {"lock"}
    other.kill()
    other.join()
    (out / "run.json").write_text(json.dumps({"settings": {"epochs": 7.0}, "contents": {}}))
    with pytest.raises(RunTaken, match="other settings or data"):
        capfilt(out=out, **settings)
    assert {p.name for p in out.iterdir()} == {"lock", "run.json"}, "nothing was written"
