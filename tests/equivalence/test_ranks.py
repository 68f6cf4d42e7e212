"""What several ranks compute together is what one process computes."""

from __future__ import annotations

import multiprocessing
import socket
from pathlib import Path

import pytest
import torch

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
