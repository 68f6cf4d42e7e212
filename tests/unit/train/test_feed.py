"""Where a stage's samples come from."""

from __future__ import annotations

import pickle

import pytest

from diptych import machine
from diptych.data.sample import Image
from diptych.errors import ModelError
from diptych.train import feed
from diptych.train.feed import Ahead, ahead, open_index, sharing_keys
from diptych.train.stage import DataConfig, Stage


def opened(squares, tmp_path, tiny_model, pictures):
    config = DataConfig(
        path=str(squares / "train.json"), images=str(squares / "images"), pictures=pictures
    )
    stage = Stage(name="one", data=(config,), learn={"connector": {}})
    return open_index(config, stage, tmp_path, tiny_model())


def test_withheld_pictures_are_the_same_rows_without_them(squares, tmp_path, tiny_model):
    shown = opened(squares, tmp_path, tiny_model, "shown")
    blind = opened(squares, tmp_path, tiny_model, "withheld")
    assert len(blind) == len(shown) and blind.ledger.num_read == shown.ledger.num_read
    assert any(key is not None for key in sharing_keys(shown))
    assert sharing_keys(blind) == [None] * len(blind)
    for number in (0, len(blind) - 1):
        assert blind[number].answer == shown[number].answer
        assert not list(blind[number].images())
    again = pickle.loads(pickle.dumps(blind))
    assert again[0] == blind[0]
    with pytest.raises(ModelError, match="withheld"):
        blind.image_bytes(Image("a.png"))


GB, CLIP = 2**30, 4096 * 3 * 224 * 224


@pytest.mark.parametrize(
    ("step_bytes", "num_workers", "num_cores", "expected"),
    [
        (CLIP, None, 16, Ahead(1, 1, 15)),  # one worker, whose threads decode
        (CLIP, 4, 16, Ahead(1, 1, 15)),  # what is asked for stays within the budget, too
        (32 * 3 * 336 * 336, None, 16, Ahead(15, 3, 1)),
        (32 * 3 * 336 * 336, 4, 16, Ahead(4, 4, 3)),
        (0, None, 2, Ahead(1, 4, 1)),  # text alone
        (0, None, 128, Ahead(16, 4, 7)),
        (CLIP, 0, 16, Ahead(0, 0, 1)),
        (CLIP, None, 1, Ahead(0, 0, 1)),
    ],
)
def test_steps_are_prepared_within_a_budget(step_bytes, num_workers, num_cores, expected):
    chosen = ahead(step_bytes, GB, num_workers, num_cores)
    assert chosen == expected
    in_flight = step_bytes * (chosen.num_workers * (chosen.steps_each + 1) + 1)
    assert in_flight < 2 * GB, "clip-b32 on eight ranks: under 4 GB a rank"


def test_what_waits_in_shared_memory_fits(monkeypatch):
    """Steps that wait lie there too, and the other processes' of this machine."""
    room = 64 * 2**20
    for size, num_cores in ((9 << 20, 8), (4 << 20, 17), (1 << 20, 8), (31 << 20, 8)):
        chosen = feed.within(ahead(size, GB, None, num_cores), size, room)
        assert 0 < chosen.num_workers * (chosen.steps_each + 1) * size <= room
    assert feed.within(Ahead(7, 4), 33 << 20, room) == Ahead(0, 0)
    assert feed.within(Ahead(7, 4), 9 << 20, None) == Ahead(7, 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    whole = feed.shutil.disk_usage("/")._replace(free=room)
    monkeypatch.setattr(feed.shutil, "disk_usage", lambda path: whole)
    assert feed.shared_bytes() in (room // 4, None)


def test_cores_within_a_containers_quota(monkeypatch, tmp_path):
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(machine, "QUOTA", quota)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    for text, expected in (("max 100000\n", 64), ("400000 100000\n", 4), ("50000 100000\n", 1)):
        quota.write_text(text)
        assert machine.cores() == expected
    quota.unlink()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert machine.cores() == 8


def test_what_does_not_fit_into_shared_memory_is_prepared_here(monkeypatch, caplog):
    """A container has 64 MiB of it, and a worker that writes beyond is killed without a word."""
    free = feed.shutil.disk_usage("/")._replace(free=64 * 2**20)
    monkeypatch.setattr(feed.shutil, "disk_usage", lambda path: free)
    steps = [object()] * 3
    data = feed.StepData([], None, lambda items: None, 1, step_bytes=CLIP)
    monkeypatch.setattr(feed.StepData, "__getitem__", lambda self, step: steps[step])
    assert list(feed.feed(data, range(3), 2)) == steps, "the objects themselves: no worker's copies"
    assert "does not fit into shared memory" in caplog.text and "--shm-size" in caplog.text
