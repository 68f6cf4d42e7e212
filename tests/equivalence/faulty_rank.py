"""One process of a run in which something goes wrong; tests start several of them."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from diptych.data.collate import Pictures
from diptych.errors import ImageError, MissingImage
from tests.equivalence import tiny_run


def inject(fault: str) -> None:
    """Make this process fail in its second step, or where the fault says."""
    import torch

    from diptych.train import stage_data, trainer

    forward, calls = trainer.Learner.forward, []

    def failing(self: Any, batch: Any) -> Any:
        calls.append(1)
        losses = forward(self, batch)
        if len(calls) < 2:
            return losses
        if fault == "memory":
            raise torch.OutOfMemoryError("tried to allocate 20 GiB")
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

    if fault in ("loss", "memory", "killed"):
        trainer.Learner.forward = failing  # type: ignore[method-assign]
    elif fault == "disk":
        trainer.resume.save_tensors = full  # type: ignore[attr-defined]
    elif fault == "reading":
        stage_data.open_index = vanished
    elif fault == "rejects":
        Pictures.load = rejecting  # type: ignore[method-assign]


def train(
    rank: int, num: int, port: int, fault: tuple[str, int] | None, folder: Path, *run: Any
) -> None:
    """Train with the others; how that ended stands in `folder` / RANK.json."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num),
        "LOCAL_WORLD_SIZE": str(num), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    if fault is not None and fault[1] == rank:
        inject(fault[0])
    ended: dict[str, Any] = {"error": None}
    try:
        tiny_run.run(folder, *run)
    except BaseException as error:
        ended = {"error": type(error).__name__, "text": str(error)}
    (folder / f"{rank}.json").write_text(json.dumps({**ended, "at": time.time()}))
    if ended["error"]:
        os._exit(1)
