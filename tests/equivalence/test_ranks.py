"""What several ranks compute together is what one process computes."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from diptych.errors import ProcessesDisagree
from diptych.train import processes
from diptych.train.pair_losses import clip_loss, sigmoid_loss
from tests.equivalence import several, tiny_run

pytestmark = pytest.mark.slow

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


def started(*command, num=2):
    """`diptych` in so many processes, as a user starts it on a machine without an accelerator."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("ACCELERATE_")}
    return subprocess.Popen(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
            str(num), "-m", "--", "diptych", *map(str, command),
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**kept, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def torchrun(*command, num=2):
    """`started`, and what came of it."""
    process = started(*command, num=num)
    try:
        out, err = process.communicate(timeout=300)
    finally:
        kill(process)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def kill(process):
    """SIGKILL for the launcher and all that it started, as a machine that is taken away."""
    if process.poll() is None:
        for child in [*psutil.Process(process.pid).children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        process.wait()


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


@pytest.mark.skipif(torch.accelerator.is_available(), reason="counts processes without one")
def test_torchrun_killed_and_resumed_ends_in_the_same_weights(recipe, tmp_path):
    settings = ("--set", "stages.pairs.num_steps=40", "--set", "evaluation=null")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = torchrun("train", recipe, "--run", whole, *settings)
    assert done.returncode == 0, done.stderr
    first = started("train", recipe, "--run", broken, *settings)
    try:
        end = time.monotonic() + 120
        while not list((broken / "checkpoints").glob("00-*[02468]")) and time.monotonic() < end:
            time.sleep(0.01)
    finally:
        kill(first)
    assert not (broken / "model").exists(), "it was killed too late"
    again = torchrun("train", recipe, "--run", broken, *settings, "--json")
    assert again.returncode == 0 and "resuming from checkpoint 00-" in again.stderr, again.stderr
    assert steps(broken) == steps(whole)
    ends = [load_file(run / "model" / "model.safetensors") for run in (whole, broken)]
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


@pytest.mark.skipif(torch.accelerator.is_available(), reason="counts processes without one")
def test_torchrun_says_once_what_ended_the_run(recipe, tmp_path):
    """The launcher ends the others as soon as one leaves; the first one answers all the same."""
    changes = {"learning_rate": 1e38, "max_gradient_norm": None, "num_steps": 30}
    settings = [f"--set=stages.pairs.{key}={json.dumps(v)}" for key, v in changes.items()]
    done = torchrun("train", recipe, "--run", tmp_path / "run", "--json", *settings)
    assert done.returncode != 0 and done.stdout.count("\n") == 1, done.stderr
    assert json.loads(done.stdout)["error"] == "LossNotFinite"


@pytest.mark.skipif(torch.accelerator.is_available(), reason="starts processes without one")
@pytest.mark.parametrize(("num", "killed"), [(2, 0), (3, 2)])
def test_each_rank_draws_its_own_dropout_and_goes_on_drawing(
    num, killed, tiny_config, squares, tmp_path
):
    """Killed and resumed on as many ranks, the run ends in the weights of the undisturbed one."""
    fresh = several.preloaded(multiprocessing.get_context("forkserver"))
    lora = {"how": "lora", "lora": {"rank": 2, "dropout": 0.5}}
    stage = tiny_run.stage(
        squares,
        num_steps=8,
        checkpoint_every_steps=3,
        learn={"connector": {}, "language_model": lora},
    )
    whole, broken = (tmp_path / name for name in ("whole", "broken"))
    given = (tiny_config(), [stage])
    assert [e["error"] for e in several.together(fresh, num, whole, *given)] == [None] * num
    ends = several.together(fresh, num, broken, *given, faults={killed: "killed 5"})
    assert ends[killed] is None and ends[1]["error"] == "ProcessLost"
    place = broken / "checkpoints" / "00-00000003"
    drawn = [load_file(place / f"random-{rank:04d}.safetensors") for rank in range(num)]
    assert not any(torch.equal(drawn[0]["torch"], other["torch"]) for other in drawn[1:])
    assert [e["error"] for e in several.together(fresh, num, broken, *given)] == [None] * num
    assert "resuming from checkpoint 00-00000003" in (broken / "0.log").read_text()
    ends = [load_file(run / "model" / "model.safetensors") for run in (whole, broken)]
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


@pytest.mark.skipif(torch.accelerator.is_available(), reason="starts processes without one")
def test_going_on_with_another_number_of_ranks_is_said(tiny_config, squares, tmp_path):
    fresh = several.preloaded(multiprocessing.get_context("forkserver"))
    given = (tiny_config(), [tiny_run.stage(squares, num_steps=5, checkpoint_every_steps=2)])
    several.together(fresh, 2, tmp_path, *given, faults={1: "killed 4"})
    assert [e["error"] for e in several.together(fresh, 3, tmp_path, *given)] == [None] * 3
    said = (tmp_path / "0.log").read_text()
    assert "was written by 2 processes and 3 go on" in said and "dropout" in said


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


@pytest.mark.skipif(torch.accelerator.is_available(), reason="starts processes without one")
@pytest.mark.parametrize("learns", [True, False], ids=["encoder learns", "encoder rests"])
def test_a_rank_of_words_and_one_of_twelve_tiles(learns, tiny_config, tmp_path):
    """A sample each: in most steps one rank has thirteen tiles and the other none. No rank waits
    for ever, and the losses are those of one process."""
    from PIL import Image

    Image.new("RGB", (112, 84), "red").save(tmp_path / "red.png")
    says = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "red"}]
    shown = [{"from": "human", "value": "<image>\nwhat?"}, says[1]]
    rows = [
        {"id": str(n), "conversations": says} if n % 2 else
        {"id": str(n), "image": "red.png", "conversations": shown}
        for n in range(20)
    ]  # fmt: skip
    (tmp_path / "train.json").write_text(json.dumps(rows))
    config = tiny_config()
    tiling = {"name": "dynamic", "tile": 28}
    config["vision_encoder"]["image"]["tiling"] = tiling
    learn = {"connector": {}, "language_model": {}, **({"vision_encoder": {}} if learns else {})}
    stage = {
        "name": "instruct", "data": [{"path": str(tmp_path / "train.json")}], "learn": learn,
        "num_steps": 50, "global_batch_size": 2, "learning_rate": 1e-4, "num_workers": 0,
        "cache_features": "off",
    }  # fmt: skip
    fresh = several.preloaded(multiprocessing.get_context("forkserver"))
    losses = {}
    for num in (1, 2):
        run = tmp_path / str(num)
        ends = several.together(fresh, num, run, config, [stage])
        assert [end["error"] for end in ends] == [None] * num
        lines = [json.loads(t) for t in (run / "metrics.jsonl").read_text().splitlines()]
        losses[num] = [line["loss"] for line in lines if "loss" in line]
    assert len(losses[1]) == len(losses[2]) == 50
    assert losses[1] == pytest.approx(losses[2], abs=1e-4)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="starts processes without one")
def test_killed_and_resumed_with_tiles_ends_in_the_same_weights(tiny_config, squares, tmp_path):
    fresh = several.preloaded(multiprocessing.get_context("forkserver"))
    config = tiny_config()
    config["vision_encoder"]["image"]["tiling"] = {"name": "anyres", "tile": 28}
    learn = {"connector": {}, "language_model": {}}
    stage = tiny_run.stage(
        squares, num_steps=8, checkpoint_every_steps=3, learn=learn, cache_features="on",
        tokens_per_row=256,
    )  # fmt: skip
    whole, broken = (tmp_path / name for name in ("whole", "broken"))
    assert [e["error"] for e in several.together(fresh, 1, whole, config, [stage])] == [None]
    assert several.together(fresh, 1, broken, config, [stage], faults={0: "killed 5"}) == [None]
    assert [e["error"] for e in several.together(fresh, 1, broken, config, [stage])] == [None]
    assert "resuming from checkpoint 00-00000003" in (broken / "0.log").read_text()
    ends = [load_file(run / "model" / "model.safetensors") for run in (whole, broken)]
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())
