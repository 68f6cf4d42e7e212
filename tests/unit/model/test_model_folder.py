"""Model folders: whole or not there, safetensors only, and what is wrong is named."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import diptych
from diptych import staging
from diptych.errors import CheckpointError, ConfigError, DiptychError, UnsafeFile, WeightsNotFound
from diptych.model.architectures.vlm import VlmConfig
from diptych.model.folder import build, load_model, save_model
from diptych.staging import file_hash, is_valid, staged_folder
from tests.equivalence.test_packing import SAMPLES, losses_by_sample


@pytest.fixture
def folder(tiny_model, tmp_path):
    return save_model(tiny_model(), tmp_path / "model")


def edit(folder, change):
    file = folder / "config.json"
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def tensors(folder, change):
    file = folder / "model.safetensors"
    values = load_file(file)
    change(values)
    save_file(values, file)
    (folder / "hashes.json").unlink()


@pytest.mark.parametrize(
    ("text", "vision", "more"),
    [
        ("llama", "clip_vision_model", {"tie_word_embeddings": True}),
        ("llama", "resnet", {"tie_word_embeddings": False}),
        ("t5", "clip_vision_model", {"tie_word_embeddings": True}),
        ("t5", "clip_vision_model", {"tie_word_embeddings": False}),
        ("qwen2", "clip_vision_model", {}),
    ],
)
def test_loaded_equals_saved(tiny_config, tmp_path, text, vision, more):
    values = tiny_config(text=text, vision=vision)
    values["language_model"]["config"].update(more)
    model = build(VlmConfig.from_dict(values), seed=3)
    first, _, _ = losses_by_sample(model, SAMPLES)
    save_model(model.eval(), tmp_path / "model")
    loaded = diptych.load(tmp_path / "model")
    second, _, _ = losses_by_sample(loaded, SAMPLES)
    assert first == second
    assert is_valid(tmp_path / "model")
    output = loaded.language_model.module.get_output_embeddings().weight
    tied = output is loaded.language_model.module.get_input_embeddings().weight
    names = load_file(tmp_path / "model" / "model.safetensors").keys()
    assert tied == (sum("lm_head" in n for n in names) == 0)
    again = load_model(tmp_path / "model")
    assert again.config == loaded.config


def test_run_folders_and_home(folder, monkeypatch):
    assert load_model(folder.parent).tokens_per_image == load_model(folder).tokens_per_image
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load_model("~/model").tokens_per_image == 16


@pytest.mark.parametrize("name", ["./nothing", "/nothing/there", "~/nothing"])
def test_no_folder(name):
    with pytest.raises(WeightsNotFound):
        load_model(name)


def test_pickles_are_refused_by_name(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsafeFile, match=r"pytorch_model\.bin is a pickle"):
        load_model(folder)


def rename(values):
    values["stranger"] = values.pop(next(iter(values)))


@pytest.mark.parametrize(
    ("break_it", "error", "says"),
    [
        (lambda f: (f / "config.json").write_text("{"), CheckpointError, "config.json cannot"),
        (lambda f: (f / "config.json").write_text("[]"), CheckpointError, "no Diptych model"),
        (lambda f: (f / "config.json").unlink(), CheckpointError, "no config.json"),
        (lambda f: (f / "model.safetensors").unlink(), CheckpointError, "is missing"),
        (lambda f: edit(f, lambda v: v.pop("language_model")), ConfigError, "required"),
        (lambda f: edit(f, lambda v: v.update(language_model=3)), ConfigError, "language_model|dict"),
        (lambda f: edit(f, lambda v: v["vision_encoder"].update(weights="a/b")), CheckpointError, "elsewhere"),
        (lambda f: tensors(f, lambda v: v.pop("connector.linear_1.bias")), CheckpointError, "1 weights are missing"),
        (lambda f: tensors(f, lambda v: v.update(extra=torch.ones(1))), CheckpointError, "1 are unknown"),
        (lambda f: tensors(f, rename), CheckpointError, "1 weights are missing and 1 are unknown"),
        (lambda f: tensors(f, lambda v: v.update({"connector.linear_1.bias": torch.ones(3)})), CheckpointError, "shape"),
        (lambda f: (f / "tokenizer.json").write_text("{"), DiptychError, "tokenizer"),
    ],
)  # fmt: skip
def test_broken_folders(folder, break_it, error, says):
    break_it(folder)
    with pytest.raises(error, match=says):
        load_model(folder)


@pytest.mark.parametrize("place", [3, 60, -5])
def test_a_flipped_byte_is_found(folder, place):
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[place] ^= 0x10
    file.write_bytes(data)
    with pytest.raises(CheckpointError):
        load_model(folder)


def test_the_folder_cannot_bring_code(folder, tmp_path):
    trace = tmp_path / "trace"
    (folder / "evil.py").write_text(f"open({str(trace)!r}, 'w')\nclass T: pass\n")
    for name in ("tokenizer_config.json", "config.json"):
        values = json.loads((folder / name).read_text())
        place = values if name.startswith("tok") else values["language_model"]["config"]
        place["auto_map"] = {"AutoTokenizer": ["evil.T", None], "AutoConfig": "evil.T"}
        (folder / name).write_text(json.dumps(values))
    with contextlib.suppress(DiptychError):
        load_model(folder)
    assert not trace.exists()


def save_and_die(target, point):
    """In a process of its own: save, and be killed at the `point`-th flush or rename."""
    steps = 0

    def die(*_):
        nonlocal steps
        steps += 1
        if steps == point:
            os.kill(os.getpid(), signal.SIGKILL)

    rename = Path.rename
    Path.rename = lambda self, to: (die(), rename(self, to))[1]
    staging.flush = die
    with staged_folder(target) as folder:
        (folder / "a").write_text("new")


def test_a_killed_save_leaves_the_old_folder(tmp_path):
    target = tmp_path / "model"
    points = 0
    while True:
        points += 1
        with staged_folder(target) as stage:
            (stage / "a").write_text("old")
        pid = os.fork()
        if not pid:
            save_and_die(target, points)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        staging.recover(target)
        assert is_valid(target), f"kill at point {points}"
        assert (target / "a").read_text() in ("old", "new")
        if not os.WIFSIGNALED(status):
            break
    assert (target / "a").read_text() == "new" and points > 5
    with staged_folder(target) as stage:
        (stage / "a").write_text("again")
    left = [p.name for p in tmp_path.iterdir() if ".new-" in p.name]
    assert left == [], "what killed saves left is removed"


def test_a_failing_save_changes_nothing(folder):
    before = file_hash(folder / "model.safetensors")
    with pytest.raises(OSError, match="full"):
        with staged_folder(folder) as stage:
            (stage / "x").write_text("x")
            raise OSError("disk full")
    assert file_hash(folder / "model.safetensors") == before and is_valid(folder)
    assert [p for p in os.listdir(folder.parent) if p.startswith(".")] == []
