"""What the hub's cache holds: whole, completed, or refused by name; revisions; one kind of weights.

Each step is a process of its own, because the hub's library reads its settings on import.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save

from diptych.model import hub
from tests.mirror import COMMIT, Mirror, commit, environment

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}
    ).encode(),
    SHARDS[0]: b"first" * 1000,
    SHARDS[1]: b"second" * 1000,
    "pytorch_model.bin": b"pickle",
    "consolidated.safetensors": b"for another library",
    "onnx/config.json": b"{}",
}
WANTED = sorted([*list(FILES)[:5]])

CODE = """
import json, os, sys
from diptych.errors import DiptychError
from diptych.model.weights import locate, origin
settings = json.loads(sys.argv[1])
try:
    folder = locate("some/model", **settings)
    about = origin("some/model", settings.get("revision")) if "described" not in settings else None
    print(json.dumps([sorted(os.listdir(folder)), about]))
except DiptychError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


def ask(mirror: Mirror, folder: Path, *, offline: bool = False, **settings):
    env = environment(mirror, folder)
    if offline:
        env["DIPTYCH_OFFLINE"] = "1"
    command = [sys.executable, "-c", CODE, json.dumps(settings)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def left_by_another(folder: Path, names: list[str]) -> Path:
    """A snapshot as another library leaves it: a branch, and links to what it needed."""
    repo = folder / "hub" / "hub" / "models--some--model"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    for name in names:
        (snapshot / name).write_bytes(FILES[name])
    return snapshot


@pytest.mark.parametrize(
    ("there", "lacks"),
    [
        (["config.json"], "model.safetensors is missing"),
        (
            ["config.json", "model.safetensors.index.json"],
            f"{SHARDS[0]} and 1 more files are missing",
        ),
        (
            ["config.json", "model.safetensors.index.json", SHARDS[0]],
            rf"{SHARDS[1]} is missing",
        ),
        (["config.json", SHARDS[1]], f"{SHARDS[0]} is missing"),
    ],
)
def test_a_part_left_by_another_library(tmp_path, there, lacks):
    """Refused by name offline, completed by a download, and whole from then on."""
    snapshot = left_by_another(tmp_path, there)
    with Mirror({"some/model": FILES}) as mirror:
        kind, says = ask(mirror, tmp_path, offline=True)
        assert kind == "WeightsNotFound" and lacks in says and str(snapshot) in says
        found, about = ask(mirror, tmp_path)
        assert found == WANTED
        assert sorted(mirror.sent) == sorted(set(WANTED) - set(there))
        assert about == {
            "weights": "some/model", "source": "hub", "revision": None, "commit": COMMIT,
        }  # fmt: skip
        mirror.sent.clear()
        assert ask(mirror, tmp_path, offline=True)[0] == WANTED
    (snapshot / SHARDS[1]).resolve().unlink()  # a link that leads nowhere is left
    with Mirror({"some/model": FILES}) as mirror:  # also what was whole once
        assert ask(mirror, tmp_path)[0] == WANTED
        assert mirror.sent == [SHARDS[1]]


def test_a_tokenizer_that_is_lacking_is_fetched(tmp_path):
    """No index names a tokenizer; the hub's list does."""
    left_by_another(tmp_path, ["config.json", "model.safetensors.index.json", *SHARDS])
    with Mirror({"some/model": FILES}) as mirror:
        assert ask(mirror, tmp_path, described=True)[0] == WANTED
        assert mirror.sent == ["tokenizer.json"]
        assert ask(mirror, tmp_path)[0] == WANTED and mirror.sent == ["tokenizer.json"]


@pytest.mark.slow
def test_a_download_that_breaks_off_goes_on_where_it_was(tmp_path):
    large = b"second" * 4_000_000  # the hub's library writes blocks of 10 MiB
    with Mirror({"some/model": {**FILES, SHARDS[1]: large}}) as mirror:
        mirror.cut = {SHARDS[1]}
        assert ask(mirror, tmp_path)[0] == WANTED
        assert [s for s in mirror.sent if s.startswith(SHARDS[1])] == [
            SHARDS[1], f"{SHARDS[1]}+{10 << 20}",
        ]  # fmt: skip
        (file,) = (tmp_path / "hub").rglob(SHARDS[1])
        assert file.read_bytes() == large
        shutil.rmtree(tmp_path / "cache")
        mirror.sent.clear()
        assert ask(mirror, tmp_path)[0] == WANTED and not mirror.sent


def test_revisions(tmp_path):
    one = {"config.json": b"{}", "model.safetensors": save({})}
    repos = {"some/model": {**one, "main.txt": b""}, "some/model@v1": {**one, "v1.txt": b""}}
    with Mirror(repos) as mirror:
        assert ask(mirror, tmp_path)[0][-1] == "model.safetensors"
        for revision in ("v1", commit("v1")):
            found, about = ask(mirror, tmp_path, revision=revision)
            assert "v1.txt" in found and about["commit"] == commit("v1")
            assert about["revision"] == revision
        kind, says = ask(mirror, tmp_path, revision="v2")
        assert kind == "WeightsNotFound" and "at the revision 'v2'" in says
        assert "v1.txt" in ask(mirror, tmp_path, revision="v1", offline=True)[0]


@pytest.mark.parametrize(
    ("files", "weights"),
    [
        (["model.safetensors", "pytorch_model.bin", "tf_model.h5"], ["model.safetensors"]),
        (["pytorch_model.bin", "training_args.bin", "flax_model.msgpack"], ["pytorch_model.bin"]),
        (["a/model.safetensors", "openvino/openvino_model.bin"], []),
        ([*SHARDS, "consolidated.safetensors"], SHARDS),
        (["weights.safetensors", "optimizer.pt"], ["weights.safetensors"]),
        (["checkpoint.pth", "model.onnx"], ["checkpoint.pth"]),
    ],
)
def test_one_kind_of_weights_is_chosen(files, weights):
    assert hub.chosen(files) == weights


def test_a_hub_that_does_not_answer_is_a_named_error(tmp_path):
    """In a process of its own: the hub's library reads its address when it is imported."""
    code = "from diptych.model.weights import locate; locate('some/model')"
    nowhere = {
        "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0",
        "DIPTYCH_OFFLINE": "0", "DIPTYCH_CACHE": str(tmp_path / "cache"),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **nowhere}, capture_output=True, text=True
    )
    last = done.stderr.strip().splitlines()
    assert any("WeightsNotFound" in line and "hub is not reachable" in line for line in last), last
