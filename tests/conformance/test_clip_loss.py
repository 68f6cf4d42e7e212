"""The pair losses are open_clip's, on one rank and on two."""

from __future__ import annotations

import json
import multiprocessing
import re
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diptych.train.pair_losses import clip_loss, sigmoid_loss

TOLERANCE = 2e-6


def compute(tensors, name: str, rows: slice):
    """(mean loss, {input: gradient}) of some rows, gradients of the whole batch's mean."""
    inputs = {
        "image_features": tensors["image_features"][rows],
        "text_features": tensors["text_features"][rows],
        "logit_scale": tensors[f"{name}.logit_scale"],
    }
    if name == "siglip":
        inputs["logit_bias"] = tensors["siglip.logit_bias"]
    inputs = {key: value.clone().requires_grad_() for key, value in inputs.items()}
    loss = (clip_loss if name == "clip" else sigmoid_loss)(*inputs.values())
    loss = loss / len(tensors["image_features"])
    gradients = torch.autograd.grad(loss, list(inputs.values()))
    return loss.detach(), dict(zip(inputs, gradients, strict=True))


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_one_process(conformance, name):
    tensors = load_file(conformance("clip_loss") / "tensors.safetensors")
    loss, gradients = compute(tensors, name, slice(None))
    assert abs(loss - tensors[f"{name}.loss"]) <= TOLERANCE
    for key, gradient in gradients.items():
        expected = tensors[f"{name}.grad.{key}"]
        torch.testing.assert_close(gradient, expected, atol=TOLERANCE, rtol=0, msg=key)


def rank_of_two(rank: int, port: int, source: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    tensors = load_file(source)
    half = len(tensors["image_features"]) // 2
    rows = slice(rank * half, (rank + 1) * half)
    found = {name: compute(tensors, name, rows) for name in ("clip", "siglip")}
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks(conformance, tmp_path):
    """Our losses are sums over ranks, so gradients need no averaging: half of the raw ones."""
    source = conformance("clip_loss") / "tensors.safetensors"
    meta = json.loads((conformance("clip_loss") / "meta.json").read_text())
    fresh = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        fresh.Process(target=rank_of_two, args=(rank, port, source, tmp_path)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    tensors = load_file(source)
    # Every exchange whose halved gradients are those of one process is a way to be right.
    equal = re.compile(r"rank2\.(clip)\..*gather_with_grad=True|rank2\.(siglip)\.")
    checked = 0
    for key, expected in tensors.items():
        if not (match := equal.match(key)):
            continue
        name, feature = match[1] or match[2], key.rsplit(".", 1)[1]
        ours = torch.cat([part[name][1][feature] for part in parts])
        torch.testing.assert_close(ours, expected / 2, atol=TOLERANCE, rtol=0, msg=key)
        checked += 1
    assert checked > 0
    for name in ("clip", "siglip"):
        loss = sum(part[name][0] for part in parts)
        assert abs(loss - meta["single_process"][f"{name}_loss"]) <= TOLERANCE
