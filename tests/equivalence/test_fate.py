"""The processes of one run end together, with one error, wherever it happened."""

from __future__ import annotations

import json
import multiprocessing
import socket
import time

import pytest
import torch
from safetensors.torch import load_file

from tests.equivalence import faulty_rank, tiny_run

pytestmark = pytest.mark.skipif(
    torch.accelerator.is_available(), reason="starts several processes without an accelerator"
)


@pytest.fixture(scope="module")
def fresh():
    """Starts processes quickly: a server imports everything once, then forks."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["tests.equivalence.faulty_rank", "diptych.train.objectives.next_token", "accelerate"]
    )
    return context


def together(fresh, num, folder, *run, fault=None, seconds=120):
    """Run in so many processes; what each one wrote about its end, None where it could not."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = [
        fresh.Process(target=faulty_rank.train, args=(rank, num, port, fault, folder, *run))
        for rank in range(num)
    ]
    for process in found:
        process.start()
    end = time.monotonic() + seconds
    for process in found:
        process.join(max(0.0, end - time.monotonic()))
    hung = [process.is_alive() for process in found]
    for process in found:
        process.kill()
    assert not any(hung), f"processes that wait for ever: {hung}"
    files = [folder / f"{rank}.json" for rank in range(num)]
    return [json.loads(f.read_text()) if f.is_file() else None for f in files]


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
    ends = together(fresh, num, tmp_path / "run", tiny_config(), [stage], fault=(fault, rank))
    told = [end for at, end in enumerate(ends) if fault != "killed" or at != rank]
    assert [end["error"] for end in told] == [name] * len(told)
    assert len({end["text"] for end in told}) == 1 or fault == "killed"
    assert max(e["at"] for e in told) - min(e["at"] for e in told) < 30
