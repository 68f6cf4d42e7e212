"""The processes of one run end together, with one error, wherever it happened."""

from __future__ import annotations

import json
import multiprocessing
import threading
import time
import urllib.error

import pytest
import torch

from diptych.errors import DiptychError, LossNotFinite, ProcessLost
from diptych.train import together
from tests.equivalence import several, tiny_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        torch.accelerator.is_available(), reason="starts several processes without an accelerator"
    ),
]


@pytest.fixture(scope="module")
def fresh():
    return several.preloaded(multiprocessing.get_context("forkserver"))


@pytest.mark.parametrize(
    ("fault", "rank", "num", "name"),
    [
        ("loss", 1, 2, "LossNotFinite"),
        ("loss", 0, 3, "LossNotFinite"),
        ("memory", 2, 3, "OutOfMemoryError"),
        ("rejects", 1, 2, "TooManyRejects"),
        ("disk", 0, 2, "OSError"),
        ("reading", 0, 3, "ImageError"),
        ("reading", 1, 2, "ImageError"),
        ("killed", 1, 3, "ProcessLost"),
    ],
)
def test_an_error_of_one_process_is_the_error_of_all(
    fault, rank, num, name, fresh, tiny_config, squares, tmp_path
):
    stage = tiny_run.stage(squares, num_steps=8, checkpoint_every_steps=3)
    run = (tmp_path / "run", tiny_config(), [stage])
    ends = several.together(fresh, num, *run, faults={rank: fault})
    told = [end for at, end in enumerate(ends) if fault != "killed" or at != rank]
    assert [end["error"] for end in told] == [name] * len(told)
    assert len({end["text"] for end in told}) == 1 or fault == "killed"
    assert max(e["at"] for e in told) - min(e["at"] for e in told) < 30


def test_one_that_is_busy_is_woken(fresh, tiny_config, squares, tmp_path):
    """The first process may measure for an hour; it ends when another one fails meanwhile."""
    stage = tiny_run.stage(squares, num_steps=8, cache_features="off")
    begun = time.time()
    ends = several.together(
        fresh, 2, tmp_path / "run", tiny_config(), [stage], faults={0: "busy", 1: "memory"}
    )
    assert [end["error"] for end in ends] == ["OutOfMemoryError"] * 2
    assert max(end["at"] for end in ends) - begun < 60


def test_validation_pairs_that_one_process_lacks_are_named(fresh, tiny_dual, squares, tmp_path):
    """The others would wait for its share of the negatives."""
    data = [{"path": str(squares / "captions.json"), "images": str(squares / "images")}]
    stage = tiny_run.stage(
        squares, data=data, validation=data, objective="contrastive", evaluate_every_steps=2,
        learn={"vision_encoder": {}, "text_encoder": {}, "space": {}},
    )  # fmt: skip
    ends = several.together(fresh, 2, tmp_path, tiny_dual(), [stage], faults={1: "validation"})
    assert [end["error"] for end in ends] == ["DataError"] * 2
    assert "1 of 2 processes have no usable sample in the validation data" in ends[0]["text"]


@pytest.mark.parametrize("fault", ["stopped", "stopped-reading"])
def test_a_stop_signal_for_one_stops_all_and_can_go_on(
    fault, fresh, tiny_config, squares, tmp_path
):
    given = (tmp_path / "run", tiny_config(), [tiny_run.stage(squares, num_steps=8)])
    ends = several.together(fresh, 2, *given, faults={1: fault})
    assert [end["error"] for end in ends] == ["Interrupted"] * 2
    assert (given[0] / "checkpoints" / "00-00000002").is_dir() == (fault == "stopped")
    assert [end["error"] for end in several.together(fresh, 2, *given)] == [None] * 2


@pytest.fixture
def first_and_second(monkeypatch):
    """Two processes' knowledge of one another, in one process."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setattr(torch.distributed.distributed_c10d, "_get_default_store", lambda: store)
    return together.Together(0, 2, 0), together.Together(1, 2, 0)


def test_waiting_for_the_first_process_has_a_sign_of_life(first_and_second, monkeypatch, caplog):
    first, second = first_and_second
    for name in ("LOOK_SECONDS", "TELL_SECONDS"):
        monkeypatch.setattr(together, name, 0.05)
    monkeypatch.setattr(together, "LOST_SECONDS", 1.0)
    first._watcher.start()
    threading.Timer(2.0, first.said, ["read"]).start()
    with caplog.at_level("INFO"):
        assert second.said(None) == "read"  # it waited for longer than a silent one may take
    assert "waited 0 min for the first one, which is at work" in caplog.text
    first._left.set()
    first._watcher.join()
    with pytest.raises(ProcessLost, match="no sign of life for 1 s"):
        second.said(None)


def test_errors_cross_processes_with_their_numbers():
    def again(error):
        return together._unpacked({"rank": 1, **together._packed(error)})

    mine = again(LossNotFinite("the loss is nan", where="7", fix="lower the rate"))
    assert isinstance(mine, LossNotFinite) and (mine.where, mine.fix) == ("7", "lower the rate")
    full = again(OSError(28, "No space left on device", "weights.safetensors"))
    assert isinstance(full, OSError) and full.errno == 28

    named = again(OSError(28, "No space left on device"))
    assert str(named) == "[Errno 28] No space left on device"
    memory = again(torch.OutOfMemoryError("tried to allocate 20 GiB"))
    assert type(memory) is torch.OutOfMemoryError and "20 GiB" in str(memory)
    assert isinstance(again(KeyboardInterrupt()), KeyboardInterrupt)
    assert again(SystemExit(75)).code == 75
    away = again(urllib.error.URLError(PermissionError(1, "x")))  # no plain words of its own
    assert isinstance(away, DiptychError) and "URLError" in away.what
    # What comes from another process is words: no name makes anything be called.
    told = {"rank": 1, "name": "eval", "text": "x", "words": ["1 + 1"], "own": None}
    assert isinstance(together._unpacked(told), ProcessLost)
    assert json.loads(json.dumps(together._packed(full)))["name"] == "OSError"

    class Local(Exception):
        pass

    other = again(Local("x"))
    assert isinstance(other, DiptychError) and "process 1 failed with Local: x" in other.what
