"""What several ranks compute together is what one process computes."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from diptych.errors import ProcessesDisagree
from diptych.train import processes
from diptych.train.pair_losses import clip_loss, sigmoid_loss

NUM, DIM = 7, 5


def pairs():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, NUM, DIM, generator=generator)
    return torch.nn.functional.normalize(rows, dim=-1)


def losses_of(images, texts):
    scale, bias = (torch.tensor(v, requires_grad=True) for v in (14.0, -10.0))
    images, texts = (t.clone().requires_grad_() for t in (images, texts))
    found = {}
    for name, loss in (
        ("clip", lambda: clip_loss(images, texts, scale)),
        ("sigmoid", lambda: sigmoid_loss(images, texts, scale, bias)),
    ):
        value = loss()
        inputs = [images, texts, scale] + ([bias] if name == "sigmoid" else [])
        found[name] = [value.detach(), *torch.autograd.grad(value, inputs)]
    return found


def one_rank(rank: int, world: int, port: int, cuts: list[int], folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world
    )
    images, texts = pairs()[:, cuts[rank] : cuts[rank + 1]]
    torch.save(losses_of(images, texts), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("cuts", [[0, 3, 7], [0, 7, 7], [0, 2, 3, 7]], ids=str)
def test_ranks_together_give_the_loss_and_gradients_of_one_process(cuts, tmp_path):
    fresh = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = len(cuts) - 1
    processes = [
        fresh.Process(target=one_rank, args=(rank, world, port, cuts, tmp_path))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(world)]
    for name, (loss, to_images, to_texts, *rest) in losses_of(*pairs()).items():
        own = [part[name] for part in parts]
        torch.testing.assert_close(sum(o[0] for o in own), loss, atol=2e-5, rtol=0)
        torch.testing.assert_close(torch.cat([o[1] for o in own]), to_images, atol=1e-5, rtol=0)
        torch.testing.assert_close(torch.cat([o[2] for o in own]), to_texts, atol=1e-5, rtol=0)
        for place, expected in enumerate(rest):
            together = sum(o[3 + place] for o in own)
            torch.testing.assert_close(together, expected, atol=2e-5, rtol=0)


@pytest.fixture
def recipe(tiny_dual, squares, tmp_path):
    """A contrastive run, whose loss is off by ln 2 where two processes do not share their pairs."""
    data = {"path": str(squares / "captions.json"), "images": str(squares / "images")}
    rows = json.loads((squares / "captions.json").read_text())
    test = [row for n, row in enumerate(rows) if n < 3]  # a caption a picture
    (tmp_path / "test.json").write_text(json.dumps(test))
    stage = {
        "name": "pairs", "data": [data], "objective": "contrastive",
        "learn": {"vision_encoder": {}, "text_encoder": {}, "space": {}}, "num_steps": 4,
        "global_batch_size": 6, "num_workers": 0, "checkpoint_every_steps": 2,
    }  # fmt: skip
    values = {
        "name": "mine", "model": tiny_dual("clip"), "stages": [stage], "trackers": [],
        "evaluation": {
            "data": {"path": str(tmp_path / "test.json"), "images": str(squares / "images")},
            "how": "retrieval",
        },
    }  # fmt: skip
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def torchrun(*command, num=2):
    """`diptych` in so many processes, as a user starts it on a machine without an accelerator."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("ACCELERATE_")}
    return subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
            str(num), "--module", "--", "diptych.cli.main", *map(str, command),
        ],
        capture_output=True, text=True, timeout=300, env={**kept, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def steps(run):
    lines = [json.loads(t) for t in (run / "metrics.jsonl").read_text().splitlines()]
    return [(x["step"], x["samples"], x["real_tokens"]) for x in lines], [x["loss"] for x in lines]


@pytest.mark.skipif(torch.accelerator.is_available(), reason="counts processes without one")
def test_torchrun_is_one_run_of_two_processes(recipe, tmp_path):
    """Losses, ledger and scores are those of one process; one of them writes and speaks."""
    alone = torchrun("train", recipe, "--run", tmp_path / "one", "--json", num=1)
    both = torchrun("train", recipe, "--run", tmp_path / "two", "--json")
    for done in (alone, both):
        assert done.returncode == 0, done.stderr
    assert both.stdout.count("\n") == 1, "one of them speaks"
    one, two = json.loads(alone.stdout), json.loads(both.stdout)
    assert two["after"]["n"] == one["after"]["n"]
    (counts, losses), (expected_counts, expected) = steps(tmp_path / "two"), steps(tmp_path / "one")
    assert counts == expected_counts and [c[1] for c in counts] == [6, 6, 6, 6]
    assert losses == pytest.approx(expected, abs=1e-5)
    ledgers = [json.loads((tmp_path / n / "ledger.json").read_text()) for n in ("one", "two")]
    assert ledgers[0] == ledgers[1] and ledgers[1]["stages"]["pairs"]["used"] == 24
    again = torchrun("train", recipe, "--run", tmp_path / "two", "--json")
    assert again.returncode == 0 and json.loads(again.stdout)["after"] == two["after"]
    # A refusal ends both of them.
    other = torchrun("train", recipe, "--run", tmp_path / "two", "--json", "--set", "seed=5")
    assert other.returncode != 0 and json.loads(other.stdout)["error"] == "RunTaken"


def test_counts_that_differ_are_an_error(monkeypatch):
    """A process that is told of others and cannot see them would train alone in their folder."""
    processes.start()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ProcessesDisagree, match="Accelerate says 1, WORLD_SIZE says 2"):
        processes.start()
    monkeypatch.setenv("WORLD_SIZE", "1")
    processes.start()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    with pytest.raises(ProcessesDisagree, match=r"torch\.distributed says 3"):
        processes.start()
