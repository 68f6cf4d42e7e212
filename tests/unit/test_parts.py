"""Parts are found by file; code from outside is imported only when the user allows it."""

from __future__ import annotations

import json
import sys

import pytest
from typer.testing import CliRunner

import diptych
from diptych import parts
from diptych.cli.main import app
from diptych.errors import ConfigError, PartNotFound
from diptych.model.architectures.vlm import VlmConfig
from diptych.model.folder import save_model

EVIL = "from pathlib import Path\nPath({!r}).write_text('executed')\n"


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module on the path that leaves a trace when it is imported."""
    trace = tmp_path / "trace"
    (tmp_path / "evil_part.py").write_text(EVIL.format(str(trace)))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("DIPTYCH_PARTS", raising=False)
    yield trace
    sys.modules.pop("evil_part", None)


def test_names_and_descriptions():
    names = parts.names("model.connectors")
    assert {"linear", "mlp", "downsample", "pixel_shuffle", "resampler"} <= set(names)
    assert names == sorted(names) and "__init__" not in names
    assert all(parts.describe("model.connectors").values())
    assert parts.find("model.connectors", "mlp").Config().name == "mlp"


@pytest.mark.parametrize("name", ["mpl", "", "__init__", "MLP", "a/mlp"])
def test_unknown_names(name):
    with pytest.raises(PartNotFound) as caught:
        parts.find("model.connectors", name)
    assert "mlp" in str(caught.value.fix)


@pytest.mark.parametrize(
    "name", ["os.path", "evil_part.x", "diptych.cli", ".mlp", "a..b", "../connector"]
)
def test_modules_from_outside_are_refused(trap, name):
    with pytest.raises(PartNotFound, match="not imported unless you allow it"):
        parts.find("model.connectors", name)
    assert not trap.exists()


def test_allowed_packages(tmp_path, monkeypatch):
    package = tmp_path / "my_parts"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "wide.py").write_text(
        "from diptych.model.connectors.mlp import Config as Mlp\n\n\nclass Config(Mlp):\n"
        "    name: str = 'my_parts.wide'\n"
    )
    (package / "empty.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("DIPTYCH_PARTS", "other, my_parts")
    assert parts.find("model.connectors", "my_parts.wide").Config().num_tokens((2, 3)) == 6
    with pytest.raises(PartNotFound, match="there is no module"):
        parts.find("model.connectors", "my_parts.wider")
    with pytest.raises(PartNotFound):
        parts.find("model.connectors", "my_parts_too.wide")
    base = {"vision_encoder": {}, "language_model": {}}
    config = VlmConfig.from_dict({**base, "connector": "my_parts.wide"})
    assert VlmConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ConfigError, match="has no Config"):
        VlmConfig.from_dict({**base, "connector": "my_parts.empty"})


def test_a_recipe_cannot_import(trap, tiny_config, tmp_path):
    values = {
        "name": "evil",
        "model": {**tiny_config(), "connector": {"name": "evil_part.x"}},
        "stages": [{"name": "a", "data": [{"path": "x.json"}], "learn": {"connector": {}}}],
    }
    file = tmp_path / "evil.json"
    for key in ("connector", "objective"):
        if key == "objective":
            values["model"]["connector"] = "mlp"
            values["stages"][0]["objective"] = "evil_part.x"
        file.write_text(json.dumps(values))
        result = CliRunner().invoke(app, ["train", str(file), "--json"])
        assert result.exit_code == 2
        assert "DIPTYCH_PARTS" in result.output and not trap.exists()


def test_a_model_folder_cannot_import(trap, tiny_model, tmp_path):
    folder = tmp_path / "model"
    save_model(tiny_model(), folder)
    config = json.loads((folder / "config.json").read_text())
    config["connector"]["name"] = "evil_part.x"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="not imported unless"):
        diptych.load(folder)
    assert not trap.exists()
