"""Every command opens its model in one way, on the device and in the precision it was given."""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

import diptych
from diptych import machine
from diptych.cli.main import app
from diptych.data.sample import Sample, Text, Turn
from diptych.errors import ConfigError
from diptych.model import opened
from diptych.model.architecture import config_from_dict
from diptych.model.folder import build, load_model, save_model
from diptych.model.language_model import LanguageModel
from diptych.model.vision_encoder import VisionEncoder
from diptych.train import processes
from tests.equivalence import tiny_run


class Recorded:
    """What was asked for, where modules went, and in which type products were computed."""

    def __init__(self):
        self.names: list[str | None] = []
        self.moves: list[str] = []
        self.types: list[str] = []

    def type_now(self):
        on = torch.is_autocast_enabled("cpu")
        self.types.append(str(torch.get_autocast_dtype("cpu")) if on else "as stored")


@pytest.fixture
def recorded(monkeypatch):
    """A device `fake:1` that is the CPU, and everything that happens on it."""
    found = Recorded()

    def chosen(name):
        found.names.append(name)
        return "cpu"

    to = torch.nn.Module.to

    def moved(module, *args, **settings):
        if isinstance(module, diptych.model.architecture.Model):
            found.moves.append(str(args[0]))
        return to(module, *args, **settings)

    monkeypatch.setattr(opened, "chosen_device", chosen)
    monkeypatch.setattr(processes, "chosen_device", chosen)
    monkeypatch.setattr(torch.nn.Module, "to", moved)
    for kind, name in (
        (VisionEncoder, "forward"),
        (VisionEncoder, "pooled"),
        (LanguageModel, "embed"),
    ):
        inner = getattr(kind, name)

        # Not the output layer: a candidate's likelihood is taken from whole numbers on purpose.
        def computed(self, *args, _inner=inner, **settings):
            is_probe = next(self.parameters()).is_meta  # of how many tokens a picture has
            if not self.training and not torch.is_grad_enabled() and not is_probe:
                found.type_now()
            return _inner(self, *args, **settings)

        monkeypatch.setattr(kind, name, computed)
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_config, tiny_dual, tiny_captioner, squares):
    place = tmp_path_factory.mktemp("models")
    for name, values in (
        ("vlm", tiny_config()),
        ("dual", tiny_dual()),
        ("captioner", tiny_captioner()),
    ):
        save_model(build(config_from_dict(values)), place / name)
    rows = json.loads((squares / "train.json").read_text())
    chosen = [{**row, "choices": ["red", "yes", "no"]} for row in rows[:4]]
    (place / "choices.json").write_text(json.dumps(chosen))
    return place


def invoke(*words):
    result = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


ASKED = {
    "eval": ["eval", "{models}/vlm", "{data}/train.json", "--images", "{data}/images", "--limit", "3"],
    "eval by likelihood": [
        "eval", "{models}/vlm", "{models}/choices.json", "--images", "{data}/images", "--how", "likelihood",
    ],
    "eval by retrieval": ["eval", "{models}/dual", "{data}/captions.json", "--images", "{data}/images", "--how", "retrieval"],
    "compare pictures and texts": ["eval", "{models}/dual", "--image", "{data}/images/000.png", "--text", "red", "--text", "blue"],
    "chat": ["chat", "{models}/vlm", "{data}/images/000.png", "--ask", "What colour?", "--max-new-tokens", "3"],
}  # fmt: skip


@pytest.mark.parametrize("what", ASKED)
def test_a_model_is_asked_where_and_as_the_command_says(what, folders, squares, recorded):
    words = [w.format(models=folders, data=squares) for w in ASKED[what]]
    invoke(*words, "--device", "fake:1", "--precision", "bf16")
    assert set(recorded.names) == {"fake:1"} and recorded.moves[-1] == "cpu"
    assert set(recorded.types) == {"torch.bfloat16"}
    recorded.types.clear()
    invoke(*words, "--device", "fake:1", "--precision", "fp32")
    assert set(recorded.types) == {"as stored"}


def test_vectors_are_made_and_looked_for_there(folders, squares, recorded, tmp_path):
    vectors = tmp_path / "vectors"
    invoke("embed", folders / "dual", squares / "captions.json", "--images", squares / "images", "--to",
           f"parquet:{vectors}", "--device", "fake:1")  # fmt: skip
    assert set(recorded.names) == {"fake:1"} and recorded.moves == ["cpu"]
    recorded.names.clear()
    invoke("search", f"parquet:{vectors}", "a red square", "--device", "fake:2")
    assert recorded.names == ["fake:2"] * len(recorded.names) and recorded.names


def test_a_run_measures_before_after_and_again_where_it_trains(
    tiny_config, squares, recorded, tmp_path
):
    data = {"path": str(squares / "train.json"), "images": str(squares / "images")}
    values = {
        "name": "tiny", "model": tiny_config(), "trackers": [],
        "stages": [tiny_run.stage(squares, num_steps=1, precision="bf16")],
        "evaluation": {"data": data, "limit": 3},
    }  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
    words = ["train", tmp_path / "tiny.yaml", "--run", tmp_path / "run", "--device", "fake:1"]
    first = invoke(*words, "--precision", "bf16")
    # The device is named once, for training and for everything that is opened meanwhile.
    assert recorded.names[0] == "fake:1" and set(recorded.names[1:]) == {None}
    assert set(recorded.moves) == {"cpu"}
    assert set(recorded.types) == {"torch.bfloat16"}, "before and after"
    recorded.types.clear()
    (tmp_path / "run" / "eval" / "after" / "result.json").unlink()
    again = invoke(*words, "--precision", "bf16")
    assert set(recorded.types) == {"torch.bfloat16"}, "a finished run"
    assert again["after"] == first["after"]


def test_captions_are_written_and_filtered_there(folders, squares, recorded, tmp_path):
    words = [
        "data", "capfilt", squares / "captions.json", "--images", squares / "images", "--clean",
        squares / "captions.json", "--clean-images", squares / "images", "--model", folders / "captioner",
        "--out", tmp_path / "out", "--epochs", "0.1", "--threshold", "0.5", "--batch-size", "4",
    ]  # fmt: skip
    invoke(*words, "--device", "fake:1", "--precision", "bf16")
    assert recorded.names[0] == "fake:1" and set(recorded.names[1:]) == {None}
    assert set(recorded.types) == {"torch.bfloat16"} and set(recorded.moves) == {"cpu"}


def test_no_command_goes_round_it():
    """`load_model` leaves a model on the CPU; only what never asks it anything may use it."""
    package = Path(diptych.__file__).parent
    allowed = {
        "cli/data.py",  # counts tokens
        "cli/capfilt.py",  # trains first, through `place`
    }
    for file in (
        f for room in ("cli", "embed", "report", "eval") for f in (package / room).rglob("*.py")
    ):
        names = {
            alias.name
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        assert "load_model" not in names or str(file.relative_to(package)) in allowed, file


def test_devices_and_precisions_are_named_before_anything_is_loaded(tmp_path):
    with pytest.raises(ConfigError, match="no device 'tpu'"):
        opened.open_model(tmp_path / "none", "tpu")
    with pytest.raises(ConfigError, match="no precision 'int3'"):
        opened.open_model(tmp_path / "none", "cpu", "int3")


def test_fp32_widens_what_is_stored_in_fewer_bits(tiny_model, tmp_path):
    save_model(tiny_model().to(torch.bfloat16), tmp_path / "model")
    # A model's own config decides; here its tensors are written over float32 ones.
    model = opened.open_model(tmp_path / "model", "cpu", "fp32")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert load_model(tmp_path / "model").precision is None


def test_training_goes_where_models_are_opened(monkeypatch):
    for name in ("ACCELERATE_USE_CPU", machine.TRAINING_DEVICE):
        monkeypatch.delenv(name, raising=False)
    with processes.on("cpu"):
        assert processes.on_cpu() and machine.chosen_device("auto") == "cpu"
    assert not machine.cpu_is_asked_for()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "chosen_device", str)
    with processes.on("cuda"):
        assert machine.TRAINING_DEVICE not in os.environ, "each process takes its own"
    with pytest.raises(ConfigError, match="cannot share"):
        with processes.on("cuda:1"):
            pass
    monkeypatch.delenv("WORLD_SIZE")
    with processes.on("cuda:1"):
        assert os.environ[machine.TRAINING_DEVICE] == "cuda:1"
    assert machine.TRAINING_DEVICE not in os.environ


# -- devices without float64 -----------------------------------------------------------------


class NoFloat64(TorchDispatchMode):
    """As Apple's GPU: a tensor of float64 is an error."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else [made]:
            if isinstance(one, torch.Tensor) and one.dtype == torch.float64:
                raise TypeError(f"{function} makes float64, which this device has not")
        return made


@pytest.mark.parametrize("average", ["token", "sqrt"])
def test_nothing_asks_for_float64(average, tiny_model, tiny_config, squares, tmp_path, monkeypatch):
    from diptych.progress import Progress
    from diptych.train.stage import Stage
    from diptych.train.trainer import Trainer

    monkeypatch.setattr(machine, "_WITHOUT_FLOAT64", {"mps", "cpu"})
    # NumPy's random state is written on the host.
    monkeypatch.setattr(
        "diptych.train.resume._random_tensors", lambda: {"torch": torch.get_rng_state()}
    )
    data = {"path": str(squares / "train.json"), "images": str(squares / "images")}
    stage = tiny_run.stage(
        squares, objective={"name": "next_token", "average": average}, num_steps=2, validation=[data],
        evaluate_every_steps=1, max_gradient_norm=1.0,
    )  # fmt: skip
    model = tiny_model()
    trainer = Trainer(
        model, [Stage.from_dict(stage)], tmp_path, trackers=(), progress=Progress(quiet=True)
    )
    sample = Sample("a", (Turn("user", (Text("What colour is the square?"),)),), "", {})
    with NoFloat64():
        trainer.train()
        model.generate([sample], max_new_tokens=3)
        chat = model.log_likelihoods([sample], [["red", "blue"]])
        raw = model.log_likelihoods([sample], [[" red", " blue"]], chat=False)
    assert chat != raw


def test_nor_does_a_dual_encoder(tiny_dual, squares, tmp_path, monkeypatch):
    from diptych.progress import Progress
    from diptych.train.stage import Stage
    from diptych.train.trainer import Trainer

    monkeypatch.setattr(machine, "_WITHOUT_FLOAT64", {"mps", "cpu"})
    monkeypatch.setattr(
        "diptych.train.resume._random_tensors", lambda: {"torch": torch.get_rng_state()}
    )
    data = {"path": str(squares / "captions.json"), "images": str(squares / "images")}
    learn = {"vision_encoder": {}, "text_encoder": {}, "space": {}}
    stage = tiny_run.stage(squares, objective="contrastive", data=[data], learn=learn, num_steps=2)
    model = build(config_from_dict(tiny_dual()))
    trainer = Trainer(
        model, [Stage.from_dict(stage)], tmp_path, trackers=(), progress=Progress(quiet=True)
    )
    with NoFloat64():
        trainer.train()
        cosines = model.similarity([squares / "images" / "000.png"], ["a red square"])
    losses = [json.loads(x).get("loss") for x in (tmp_path / "metrics.jsonl").open()]
    assert len(losses) == 2 and cosines.shape == (1, 1) and bool(cosines.isfinite().all())


def test_every_other_device_counts_in_float64():
    assert machine.widest(torch.device("mps")) == torch.float32
    assert machine.widest(torch.device("cuda")) == torch.float64
