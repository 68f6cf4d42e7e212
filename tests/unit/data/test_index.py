"""The index: random access, reuse, killed builds, flat memory."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from diptych.data.checking.index import Index
from diptych.data.reading.ledger import Ledger
from diptych.data.sample import Image
from diptych.errors import DataError, SampleTooLong
from tests.e2e.faulty_inputs import folder_with_picture, json_lines, png, row, tar


def build(path, cache, **options) -> Index:
    return Index.build(str(path), cache, progress=False, **options)


def test_samples_come_back_as_they_were_read(tmp_path):
    from diptych.data.source import rows

    folder_with_picture(tmp_path)
    path = json_lines(tmp_path, [row(n, score=[n], id=n) for n in range(20)])
    index = build(path, tmp_path / "cache")
    expected = list(rows(str(path)))
    assert list(index) == expected and index[-1] == expected[-1]
    assert index[3:5] == expected[3:5]
    assert index[4].source == f"{path}:5"
    with pytest.raises(IndexError):
        index[20]


def test_workers_read_through_a_pickle(tmp_path):
    folder_with_picture(tmp_path)
    index = build(json_lines(tmp_path, [row(n) for n in range(5)]), tmp_path / "cache")
    copy = pickle.loads(pickle.dumps(index))
    assert copy[2] == index[2]
    with ProcessPoolExecutor(1) as pool:
        assert pool.submit(index.__getitem__, 3).result() == index[3]


def test_content_hashes_and_sizes(tmp_path):
    folder_with_picture(tmp_path)
    (tmp_path / "same.png").write_bytes(png())
    (tmp_path / "other.png").write_bytes(png(5, 7))
    images = ["good.png", "same.png", "other.png"]
    path = json_lines(tmp_path, [row(n, image=name) for n, name in enumerate(images)])
    index = build(path, tmp_path / "cache")
    first, same, other = (index.image_sha256(n)[0] for n in range(3))
    assert first == same != other
    assert index.image_keys[0] == index.image_keys[1] != index.image_keys[2]
    assert index.pictures(2)[0][1:] == (len(png(5, 7)), 5, 7)
    unseen = build(path, tmp_path / "cache", verify="none")
    assert unseen.pictures(0) == () and unseen.image_keys[0] == 0 and len(unseen) == 3


def test_measure_and_truncation_enter_the_ledger(tmp_path):
    folder_with_picture(tmp_path)

    def measure(sample):
        number = int(sample.id[3:])
        if number == 2:
            raise SampleTooLong("no room for an answer")
        return 10 + number, number, 5 if number == 1 else 0

    path = json_lines(tmp_path, [row(n) for n in range(5)])
    index = build(path, tmp_path / "cache", measure=measure, context=13)
    ledger = index.ledger
    assert (ledger.num_used, ledger.num_truncated, ledger.num_cut_tokens) == (2, 1, 5)
    assert ledger.num_supervised_tokens == 0 + 1 + 3
    assert ledger.rejected["SampleTooLong"].count == 2
    assert index.lengths.tolist() == [[10, 0], [11, 1], [13, 3]]


def test_reuse_and_its_limits(tmp_path, monkeypatch):
    folder_with_picture(tmp_path)
    rows = [row(0), row(1, image="late.png")]
    path = json_lines(tmp_path, rows)
    cache = tmp_path / "cache"
    passes = []
    from diptych.data.checking import index as module

    original = module.examine
    monkeypatch.setattr(module, "examine", lambda *a, **k: passes.append(1) or original(*a, **k))
    assert len(build(path, cache)) == 1
    assert len(build(path, cache)) == 1 and len(passes) == 1
    (tmp_path / "late.png").write_bytes(png())
    assert len(build(path, cache)) == 2 and len(passes) == 2, "the missing picture came"
    json_lines(tmp_path, [*rows, row(2)])
    assert len(build(path, cache)) == 3 and len(passes) == 3, "the data changed"
    build(path, cache, verify="header")
    assert len(passes) == 4, "another setting is another index"
    measured = {"measure": lambda s: (1, 1), "measure_key": "one"}
    build(path, cache, **measured)
    build(path, cache, **measured)
    assert len(passes) == 5
    assert len(list(cache.iterdir())) == 3


def test_pictures_of_rows_are_kept_once(tmp_path):
    import gzip

    members = [
        (f"{n}.{kind}", data) for n in range(3) for kind, data in (("txt", b"A"), ("png", png()))
    ]
    path = tmp_path / "shard.tar.gz"
    path.write_bytes(gzip.compress(tar(tmp_path, members).read_bytes()))
    index = build(path, tmp_path / "cache")
    assert (index.folder / "images.bin").read_bytes() == png()
    path.unlink()
    assert index.image_bytes(next(index[2].images())) == png()


def test_no_rows_is_an_error_and_leaves_nothing(tmp_path):
    path = tmp_path / "data.json"
    path.write_text("[]")
    with pytest.raises(DataError, match="no rows"):
        build(path, tmp_path / "cache", format="llava")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_killed_build_leaves_nothing_half_written(tmp_path):
    folder_with_picture(tmp_path)
    path = json_lines(tmp_path, [row(n) for n in range(3000)])
    cache = tmp_path / "cache"
    code = (
        f"from diptych.data.checking.index import Index; Index.build({str(path)!r}, {str(cache)!r})"
    )
    for pause in (0.0, 0.05, 0.15):
        process = subprocess.Popen([sys.executable, "-c", code])
        deadline = time.monotonic() + 20
        while not list(cache.glob(".*/samples.jsonl")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
        complete = [f for f in cache.iterdir() if not f.name.startswith(".")]
        assert all((f / "index.json").is_file() for f in complete)
    index = build(path, cache)
    assert len(index) == 3000
    assert [f.name for f in cache.iterdir()] == [index.folder.name], "leftovers are removed"


_MEMORY = """
import pathlib, sys
from diptych.data.checking.index import Index
index = Index.build(sys.argv[1], sys.argv[2], progress=False)
total = sum(len(index[n].id) for n in range(0, len(index), 7))
status = pathlib.Path("/proc/self/status").read_text()
# Not ru_maxrss: a child starts with its parent's, and that is the whole test suite.
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


def test_memory_does_not_grow_with_the_samples(tmp_path):
    folder_with_picture(tmp_path)
    peaks = []
    for count in (500, 12_000):
        path = json_lines(tmp_path, [row(n) for n in range(count)], f"{count}.jsonl")
        command = [sys.executable, "-c", _MEMORY, str(path), str(tmp_path / f"cache{count}")]
        peaks.append(int(subprocess.check_output(command)) / 1024)
    assert peaks[1] - peaks[0] < 30, f"{peaks} MiB"
    assert peaks[1] < 500


def test_rejects_keep_their_rows(tmp_path):
    folder_with_picture(tmp_path)
    rows = [row(0), row(1, image="gone.png", extra=1), '{"broken']
    index = build(json_lines(tmp_path, rows), tmp_path / "cache")
    lines = (index.folder / "rejects.jsonl").read_text().splitlines()
    kept = [json.loads(line) for line in lines]
    assert json.loads(kept[0]["row"]) == rows[1] and kept[1]["row"] == rows[2]
    assert Ledger.load(index.folder / "ledger.json") == index.ledger


def test_a_picture_that_changed_place_is_an_error(tmp_path):
    folder_with_picture(tmp_path)
    index = build(json_lines(tmp_path, [row(0)]), tmp_path / "cache")
    os.unlink(tmp_path / "good.png")
    with pytest.raises(DataError):
        index.image_bytes(Image("good.png"))
    assert index.lengths.dtype == np.int32
