"""The fake run that the report's tests share; building it takes half a second."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def fake_run():
    """The module `fake_run.py`, loaded by path so that any import mode works."""
    spec = importlib.util.spec_from_file_location(
        "fake_run", Path(__file__).with_name("fake_run.py")
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def built(fake_run, tmp_path_factory) -> Path:
    """A complete run folder; read only."""
    return fake_run.build(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture
def run(built, tmp_path) -> Path:
    """A copy of the complete run folder to damage."""
    return Path(shutil.copytree(built, tmp_path / "run"))
