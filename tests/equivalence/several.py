"""A run of several processes in which something may go wrong; tests start them."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diptych.data.batching.collate import Prepared
from diptych.data.batching.picture_loader import PictureLoader
from diptych.errors import ImageError, MissingImage
from tests.equivalence import tiny_run


def inject(fault: str) -> None:
    """Make this process fail in its second step (`killed 5`: its fifth), or where the fault says."""
    import torch

    from diptych.train import stage_data, trainer

    fault, _, when = fault.partition(" ")
    forward, calls = trainer.Learner.forward, []

    def failing(self: Any, batch: Any) -> Any:
        calls.append(1)
        losses = forward(self, batch)
        if len(calls) < int(when or 2):
            return losses
        if fault == "memory":
            raise torch.OutOfMemoryError("tried to allocate 20 GiB")
        if fault == "stopped":
            os.kill(os.getpid(), signal.SIGTERM)
            return losses
        if fault == "busy":
            time.sleep(100)
        if fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        return {name: value * float("nan") for name, value in losses.items()}

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "weights.safetensors")

    def vanished(*_: Any) -> Any:
        time.sleep(1)  # the others wait for this process by then
        raise ImageError("the picture is not there any more", where="000.png")

    def rejecting(self: Any, items: Any) -> Any:
        keys = [[] for _ in items]
        return keys, {}, {n: MissingImage("no such picture", where="x") for n in range(len(items))}

    if fault in ("loss", "memory", "busy", "stopped", "killed"):
        trainer.Learner.forward = failing  # type: ignore[method-assign]
    elif fault == "disk":
        trainer.resume.save_tensors = full  # type: ignore[attr-defined]
    elif fault == "reading":
        stage_data.open_index = vanished
    elif fault == "stopped-reading":
        stage_data.open_index = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
    elif fault == "validation":
        opened = stage_data.StageData.validation

        def empty(*given: Any) -> Any:
            data = opened(*given)
            data.collator = lambda _: Prepared()
            return data

        stage_data.StageData.validation = empty  # type: ignore[method-assign]
    elif fault == "rejects":
        PictureLoader.load = rejecting  # type: ignore[method-assign]


def train(
    rank: int, num: int, port: int, faults: Mapping[int, str], folder: Path, *run: Any
) -> None:
    """Train with the others; how that ended stands in `folder` / RANK.json."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num),
        "LOCAL_WORLD_SIZE": str(num), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(filename=folder / f"{rank}.log", level=logging.INFO)
    if rank in faults:
        inject(faults[rank])
    ended: dict[str, Any] = {"error": None}
    try:
        tiny_run.run(folder, *run)
    except BaseException as error:
        ended = {"error": type(error).__name__, "text": str(error)}
    (folder / f"{rank}.json").write_text(json.dumps({**ended, "at": time.time()}))
    if ended["error"]:
        os._exit(1)


def together(
    context: Any, num: int, folder: Path, *run: Any, faults: Mapping[int, str] | None = None
) -> list[dict[str, Any] | None]:
    """Run in so many processes; what each one wrote about its end, None where it could not."""
    files = [folder / f"{rank}.json" for rank in range(num)]
    for file in files:
        file.unlink(missing_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = [
        context.Process(target=train, args=(rank, num, port, faults or {}, folder, *run))
        for rank in range(num)
    ]
    for process in found:
        process.start()
    end = time.monotonic() + 120
    for process in found:
        process.join(max(0.0, end - time.monotonic()))
    hung = [process.is_alive() for process in found]
    for process in found:
        process.kill()
    assert not any(hung), f"processes that wait for ever: {hung}"
    return [json.loads(f.read_text()) if f.is_file() else None for f in files]


def preloaded(context: Any) -> Any:
    """A context that starts processes quickly: a server imports everything once, then forks."""
    context.set_forkserver_preload(
        ["tests.equivalence.several", "diptych.train.objectives.next_token", "peft", "accelerate"]
    )
    return context
