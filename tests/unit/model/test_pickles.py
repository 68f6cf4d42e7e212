"""Pickle checkpoints: tensors only, converted once, and what would run code is refused by name."""

from __future__ import annotations

import json
import os
import pickle
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diptych.errors import CheckpointError, UnsafeFile
from diptych.model import pickles, weights
from diptych.model import tensors as tensor_files
from diptych.staging import file_hash


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "converted"


@pytest.fixture
def folder(tmp_path):
    """One pickle with a tied weight, a view, two types and a number."""
    folder = tmp_path / "clip"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "clip"}')
    (folder / "tokenizer.model").write_bytes(b"words")
    (folder / "training_args.bin").write_bytes(b"no weights")
    table = torch.arange(12.0).reshape(3, 4)
    tensors = {"embed": table, "head": table, "view": table.T, "half": table.bfloat16()[1:]}
    torch.save({**tensors, "scale": torch.tensor(2.5)}, folder / "pytorch_model.bin")
    return folder


def test_converted_once_with_its_hash(folder, cache):
    found = weights.locate(str(folder))
    assert found.parent == cache and weights.locate(str(found)) == found
    assert sorted(p.name for p in found.iterdir()) == [
        "config.json", "converted.json", "hashes.json", "model.safetensors", "tokenizer.model",
    ]  # fmt: skip
    told = torch.load(folder / "pytorch_model.bin")
    tensors = load_file(found / "model.safetensors")
    assert tensors.keys() == told.keys()
    for name, tensor in told.items():
        assert torch.equal(tensors[name], tensor) and tensors[name].dtype == tensor.dtype
    sha256 = file_hash(folder / "pytorch_model.bin")
    assert json.loads((found / "converted.json").read_text()) == {
        "pickles": {"pytorch_model.bin": sha256}
    }
    assert weights.origin(str(folder)) == {
        "weights": "clip", "source": "folder", "pickles": {"pytorch_model.bin": sha256},
    }  # fmt: skip
    before = (found / "model.safetensors").stat().st_mtime_ns
    assert weights.locate(str(folder)) == found
    assert (found / "model.safetensors").stat().st_mtime_ns == before
    assert weights.locate(str(folder), as_pickles=True) == folder
    assert weights.locate(str(folder), described=True) == folder


def test_other_pickles_in_that_place_are_converted_anew(folder):
    first = weights.locate(str(folder))
    torch.save({"embed": torch.ones(2, 2)}, folder / "pytorch_model.bin")
    second = weights.locate(str(folder))
    assert second != first and load_file(second / "model.safetensors").keys() == {"embed"}


def test_safetensors_beside_a_pickle_win(folder):
    (folder / "model.safetensors").write_bytes(b"x")
    assert weights.locate(str(folder)) == folder


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before PyTorch 1.6"])
def test_shards_become_shards_with_an_index(tmp_path, old):
    folder = tmp_path / "vicuna"
    folder.mkdir()
    names = [f"pytorch_model-0000{n}-of-00002.bin" for n in (1, 2)]
    for number, name in enumerate(names):
        shard = {f"layer.{number}": torch.full((2, 3), float(number))}
        torch.save(shard, folder / name, _use_new_zipfile_serialization=not old)
    index = {"metadata": {}, "weight_map": {f"layer.{n}": name for n, name in enumerate(names)}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    found = weights.locate(str(folder))
    index = json.loads((found / "model.safetensors.index.json").read_text())
    assert index == {
        "metadata": {"total_size": 48},
        "weight_map": {f"layer.{n}": f"model-0000{n + 1}-of-00002.safetensors" for n in (0, 1)},
    }
    assert not (found / "pytorch_model.bin.index.json").exists()
    assert torch.equal(
        load_file(found / "model-00002-of-00002.safetensors")["layer.1"], torch.ones(2, 3)
    )
    assert weights.origin(str(folder))["pickles"].keys() == set(names)
    (folder / names[1]).unlink()
    with pytest.raises(CheckpointError, match=rf"{names[1]} is missing"):
        weights.locate(str(folder))
    (folder / "pytorch_model.bin.index.json").unlink()  # its numbers say the same
    with pytest.raises(CheckpointError, match=rf"{names[1]} is missing"):
        weights.locate(str(folder))


called: list[str] = []


def call(word: str) -> torch.Tensor:
    """What a pickle would have called."""
    called.append(word)
    return torch.ones(1)


class Calls:
    def __reduce__(self):
        return call, ("I ran",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("way", ["plain 2", "plain 4", "torch", "old torch"])
def test_a_pickle_that_would_run_code_is_refused_and_named(tmp_path, cache, way):
    folder = tmp_path / "evil"
    folder.mkdir()
    file = folder / "pytorch_model.bin"
    weights_of_it = {"b": Calls(), "a": torch.ones(2)}
    if way.startswith("plain"):
        file.write_bytes(pickle.dumps(weights_of_it, protocol=int(way[-1])))
    else:
        torch.save(weights_of_it, file, _use_new_zipfile_serialization=way == "torch")
    called.clear()
    named = "" if way == "plain 4" else r" \(.*call\)"  # PyTorch's reader stops before the name
    with pytest.raises(UnsafeFile, match=rf"pytorch_model\.bin asks for more than tensors{named}"):
        weights.locate(str(folder))
    assert called == []
    assert not [p for p in cache.rglob("*") if p.is_file() and p.suffix != ".lock"]
    # The proof that it would have.
    if way.startswith("plain"):
        pickle.loads(file.read_bytes())
    else:
        torch.load(file, weights_only=False)
    assert called == ["I ran"]


@pytest.mark.parametrize("content", [b"x", b"PK", b"", b"\x80\x04", os.urandom(300)])
def test_what_is_no_checkpoint(folder, content):
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises((CheckpointError, UnsafeFile)):
        weights.locate(str(folder))


def test_a_conversion_that_broke_off_leaves_nothing(folder, cache, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(tensor_files, "save_tensors", full_disk)
        with pytest.raises(OSError, match="No space"):
            weights.locate(str(folder))
    assert not [p for p in cache.rglob("*") if p.is_file() and p.suffix != ".lock"]
    assert (weights.locate(str(folder)) / "model.safetensors").is_file()


def test_two_at_a_time_convert_once(folder, monkeypatch):
    reads = []
    read = pickles.read_tensors
    monkeypatch.setattr(pickles, "read_tensors", lambda path: reads.append(path) or read(path))
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(weights.locate(str(folder)))) for _ in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reads) == 1 and found[0] == found[1]
