"""A stopped run goes on with what it belongs to, or is refused by name; never with something else."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import time

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from diptych.data.pixels import image
from diptych.errors import CheckpointError, DataChanged, Interrupted, StartChanged
from diptych.model.architecture import config_from_dict
from diptych.model.folder import build, save_model
from diptych.progress import Progress
from diptych.staging import HASHES, file_hash
from diptych.train import feature_cache, resume
from diptych.train.stage import Stage
from diptych.train.stage_data import StageData
from diptych.train.trainer import Trainer
from tests.equivalence import tiny_run

torch.set_num_threads(1)


class Stopped(Exception):
    """Stands for a kill right after a checkpoint."""


@pytest.fixture
def data(squares, tmp_path):
    """A copy of the squares that a test may change."""
    shutil.copytree(squares, tmp_path / "data")
    return tmp_path / "data"


def stage(data, **changes):
    values = {"num_steps": 6, "checkpoint_every_steps": 2, "evaluate_every_steps": 5}
    return tiny_run.stage(data, **{**values, **changes})


def train(folder, config, stages, *, stop=None, seed=0, **settings):
    """Train in `folder`; with `stop`, (stage, step) after which it dies."""
    model = build(config_from_dict(config), seed=seed)

    def evaluate(model, name, step):
        if stop == name:
            raise Stopped
        return {}

    trainer = Trainer(
        model, [Stage.from_dict(s) for s in stages], folder, trackers=(), evaluate=evaluate,
        progress=Progress(folder / "train.log", quiet=True), **settings,
    )  # fmt: skip
    trainer.train()
    save_model(model, folder / "model")
    return load_file(folder / "model" / "model.safetensors")


def stopped(folder, config, stages, at="instruct", **settings):
    """Train until the hook of stage `at` dies, at its step 5; a checkpoint of step 4 is there."""
    with pytest.raises(Stopped):
        train(folder, config, stages, stop=at, **settings)
    newest = resume.newest(folder / "checkpoints")
    assert resume.position_of(newest).step == 4
    return newest


def steps(folder):
    lines = [json.loads(t) for t in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(x["stage"], x["step"]) for x in lines if "loss" in x]


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def add_rows(data):
    rows = json.loads((data / "train.json").read_text())
    new = [{**row, "id": f"new {row['id']}"} for row in rows[:8]]
    (data / "train.json").write_text(json.dumps(new + rows[:44]))


def replace_picture(data):
    first, second, *_ = sorted((data / "images").iterdir())
    shutil.copy(second, first)


@pytest.mark.parametrize(
    ("change", "says"),
    [(add_rows, "48 rows then, 52 now"), (replace_picture, "48 rows then and now, with other")],
)
def test_other_data_are_refused_and_accepted_ones_start_the_stage_anew(
    change, says, data, tiny_config, tmp_path
):
    run = tmp_path / "run"
    stopped(run, tiny_config(), [stage(data)])
    change(data)
    for _ in range(2):  # a refusal changes nothing
        with pytest.raises(DataChanged, match=says) as caught:
            train(run, tiny_config(), [stage(data)])
    assert caught.value.where == "stages.instruct.data"
    assert "--accept-changed-data" in caught.value.fix
    assert steps(run) == [("instruct", n) for n in range(1, 6)]
    accepted = train(run, tiny_config(), [stage(data)], accept_changed=True)
    assert_equal(accepted, train(tmp_path / "fresh", tiny_config(), [stage(data)]))
    assert steps(run) == [("instruct", n) for n in range(1, 7)]
    ledger = json.loads((run / "ledger.json").read_text())["stages"]["instruct"]
    assert ledger["used"] == 6 * 8


def test_what_is_still_the_same_goes_on_to_the_same_bits(data, tiny_config, tmp_path):
    """Accepting changes where there are none, and data that lie elsewhere, change nothing."""
    whole = train(tmp_path / "whole", tiny_config(), [stage(data)])
    for name in ("accepted", "moved"):
        stopped(tmp_path / name, tiny_config(), [stage(data)])
    again = train(tmp_path / "accepted", tiny_config(), [stage(data)], accept_changed=True)
    assert_equal(again, whole)
    elsewhere = data.rename(tmp_path / "elsewhere")
    assert_equal(train(tmp_path / "moved", tiny_config(), [stage(elsewhere)]), whole)


@pytest.mark.slow
def test_a_later_stage_starts_anew_from_what_the_one_before_it_learned(data, tiny_config, tmp_path):
    """The checkpoint that a stage begins with is kept while it runs."""
    shutil.copytree(data, tmp_path / "second")
    first = stage(data, name="align", learn={"connector": {}}, num_steps=4)
    stages = [first, stage(tmp_path / "second")]
    run = tmp_path / "run"
    stopped(run, tiny_config(), stages)
    kept = sorted(p.name for p in (run / "checkpoints").iterdir() if p.name[0].isdigit())
    assert kept == ["01-00000000", "01-00000002", "01-00000004"]
    add_rows(tmp_path / "second")
    with pytest.raises(DataChanged, match="stage instruct"):
        train(run, tiny_config(), stages)
    accepted = train(run, tiny_config(), stages, accept_changed=True)
    assert_equal(accepted, train(tmp_path / "fresh", tiny_config(), stages))
    assert len(steps(run)) == 4 + 6


def test_without_the_checkpoint_it_began_with_a_stage_cannot_start_anew(
    data, tiny_config, tmp_path
):
    first = stage(data, name="align", learn={"connector": {}}, num_steps=4)
    stages = [first, stage(data)]
    stopped(tmp_path, tiny_config(), stages)
    shutil.rmtree(tmp_path / "checkpoints" / "01-00000000")
    add_rows(data)
    with pytest.raises(CheckpointError, match="cannot start anew"):
        train(tmp_path, tiny_config(), stages, accept_changed=True)


@pytest.mark.parametrize("moved", [False, True])
def test_a_finished_stage_whose_data_changed(moved, data, tiny_config, tmp_path, caplog):
    """A warning; where the recipe names another place for them, they must be the same."""
    shutil.copytree(data, tmp_path / "second")
    first = stage(data, name="align", learn={"connector": {}}, num_steps=4)
    run = tmp_path / "run"
    stopped(run, tiny_config(), [first, stage(tmp_path / "second")])
    add_rows(data)
    stages = [first, stage(tmp_path / "second")]
    if moved:
        with pytest.raises(DataChanged, match="align is finished and learned from other data"):
            train(run, tiny_config(), stages, moved=True)
        return
    with caplog.at_level(logging.WARNING, "diptych"):
        train(run, tiny_config(), stages)
    assert "align is finished and learned from data that changed since" in caplog.text
    assert "48 rows then, 52 now" in caplog.text


def test_between_two_stages_what_rests_must_be_what_the_first_one_learned_beside(
    data, tiny_config, tmp_path, monkeypatch
):
    """The checkpoint at the end of a stage holds what learned; the encoder is read again."""
    stages = [stage(data, name=name, learn={"connector": {}}) for name in ("align", "instruct")]
    stages[0]["evaluate_every_steps"] = None
    run_stage = Trainer._run_stage

    def dies(self, number, *rest):
        if number == 1:
            raise Stopped
        run_stage(self, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_run_stage", dies)
        with pytest.raises(Stopped):
            train(tmp_path, tiny_config(), stages)
    assert resume.newest(tmp_path / "checkpoints").name == "01-00000000"
    with pytest.raises(StartChanged, match="weights of language_model, the weights of vision"):
        train(tmp_path, tiny_config(), stages, seed=1)
    train(tmp_path, tiny_config(), stages)
    # Trained to the end and not saved: the same.
    with pytest.raises(StartChanged, match="since stage instruct was trained"):
        train(tmp_path, tiny_config(), stages, seed=1)
    train(tmp_path, tiny_config(), stages, seed=1, accept_changed=True)


def test_held_out_data_that_changed(data, tiny_config, tmp_path):
    """The best validation loss so far is about other rows."""
    shutil.copytree(data, tmp_path / "held_out")
    held_out = tiny_run.stage(tmp_path / "held_out")["data"]
    stages = [stage(data, validation=held_out)]
    stopped(tmp_path / "run", tiny_config(), stages)
    add_rows(tmp_path / "held_out")
    with pytest.raises(DataChanged, match=r"held_out/train\.json: 48 rows then, 52 now"):
        train(tmp_path / "run", tiny_config(), stages)


def test_another_tokenizer_template_frozen_part_or_beginning(
    data, tiny_config, tokenizer_folder, tmp_path
):
    learn = {"connector": {}, "language_model": {}}
    stages = [stage(data, learn=learn)]
    folder = tmp_path / "tokenizer"
    shutil.copytree(tokenizer_folder, folder)
    config = tiny_config()
    config["language_model"]["tokenizer"] = str(folder)
    run = tmp_path / "run"
    origins = {"model.connector.weights": "one"}
    stopped(run, config, stages, origins=origins)
    # Weights that the checkpoint holds may begin as they like: they are overwritten.
    with pytest.raises(StartChanged, match="the weights of vision_encoder\n"):
        train(run, config, stages, seed=1, origins=origins)
    with pytest.raises(StartChanged, match=r"what model\.connector\.weights names\n"):
        train(run, config, stages, origins={"model.connector.weights": "two"})
    other = tiny_config(template="vicuna")
    other["language_model"]["tokenizer"] = str(folder)
    with pytest.raises(StartChanged, match="the tokenizer or chat template\n"):
        train(run, other, stages, origins=origins)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    values = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = values["model"]["vocab"]
    one, two = list(vocabulary)[300:302]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (folder / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(StartChanged, match="the tokenizer or chat template\n"):
        train(run, config, stages, origins=origins)
    accepted = train(run, config, stages, origins=origins, accept_changed=True)
    assert_equal(accepted, train(tmp_path / "fresh", config, stages, origins=origins))


@pytest.mark.parametrize("first", [True, False])
def test_the_decision_to_cache_features_is_held_to(first, data, tiny_config, tmp_path, monkeypatch):
    """A run may go on where there is a GPU, or none; other versions may reckon otherwise."""
    seconds = {"encode": 1e3 if first else 0.0}
    monkeypatch.setattr(feature_cache, "encode_seconds", lambda *a: seconds["encode"])
    stages = [stage(data, learn={"connector": {}}, num_steps=60, num_epochs=None)]
    run = tmp_path / "run"
    newest = stopped(run, tiny_config(), stages)
    assert resume.position_of(newest).belongs["instruct"]["cached"] is first
    seconds["encode"] = 0.0 if first else 1e3
    shutil.rmtree(run / "cache", ignore_errors=True)
    train(run, tiny_config(), [{**stages[0], "cache_bytes": 0} if first else stages[0]])
    newest = resume.newest(run / "checkpoints")
    assert resume.position_of(newest).belongs["instruct"]["cached"] is first
    assert (run / "cache" / "features").is_dir() is first


def edited(checkpoint, change):
    """The checkpoint with another position, whole."""
    file = checkpoint / "state.json"
    state = json.loads(file.read_text())
    change(state["position"])
    file.write_text(json.dumps(state))
    hashes = json.loads((checkpoint / HASHES).read_text())
    hashes["state.json"] = file_hash(file)
    (checkpoint / HASHES).write_text(json.dumps(hashes))


def test_checkpoints_of_other_versions_are_refused_by_name(data, tiny_config, tmp_path):
    newest = stopped(tmp_path, tiny_config(), [stage(data)])
    edited(newest, lambda position: position.pop("belongs"))
    with pytest.raises(DataChanged, match="an earlier version"):
        train(tmp_path, tiny_config(), [stage(data)])
    edited(newest, lambda position: position.update(belongs={}, shards=2))
    with pytest.raises(CheckpointError, match="a later version: it has shards"):
        train(tmp_path, tiny_config(), [stage(data)])


def test_a_stop_while_data_are_read_is_not_kept_waiting(data, tiny_config, tmp_path, monkeypatch):
    """A notice of two minutes is over before a large data set has been read."""
    stages = [stage(data, learn={"connector": {}}, cache_features="on")]
    before = signal.getsignal(signal.SIGTERM)
    whole = train(tmp_path / "whole", tiny_config(), stages)
    run = tmp_path / "run"
    for owner, name in ((StageData, "open"), (feature_cache, "_encode"), (image, "decode")):
        real, calls = getattr(owner, name), []

        def signalled(*args, real=real, calls=calls, **settings):
            if not calls:
                calls.append(args)
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
                raise AssertionError("the signal was not obeyed")
            return real(*args, **settings)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, signalled)
            if owner is image:
                patch.setattr(feature_cache, "decode", signalled)
            with pytest.raises(Interrupted, match="before the first step"):
                train(run, tiny_config(), stages)
        assert not (run / "metrics.jsonl").exists()
    assert signal.getsignal(signal.SIGTERM) == before
    assert_equal(train(run, tiny_config(), stages), whole)
