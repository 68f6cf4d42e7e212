"""Checkpoints of a run, and going on from the newest valid one.

A checkpoint holds what has learned so far, the optimizer's moments, the random states and
the position. All tensors are safetensors, everything else is JSON. It is staged, flushed,
hashed and renamed (`diptych/staging.py`), so one that exists is whole; one that
was damaged later is passed over for the one before.
"""

from __future__ import annotations

import json
import logging
import random
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from diptych.errors import CheckpointError
from diptych.model.tensors import save_tensors
from diptych.staging import is_valid, staged_folder

log = logging.getLogger(__name__)
_NAME = re.compile(r"^(\d{2})-(\d{8})$")


@dataclass
class Position:
    """How far a run has come.

    Attributes:
        stage: number of the stage.
        step: optimizer steps done in it.
        stage_ended: early stop said so.
        best_loss: lowest validation loss of the stage.
        num_worse: evaluations since then.
        ledgers: ledger of every stage so far, as plain data.
        seconds: training time spent.
        steps_before: optimizer steps of the finished stages.
        belongs: what each stage so far reads, which resuming is held to (see `identity`): `data`
            (hashes of `data` and `validation`), `text`, `weights`, `origins`; and `cached`, whether
            a frozen encoder's features are kept, which a stopwatch may have decided.
    """

    stage: int = 0
    step: int = 0
    stage_ended: bool = False
    best_loss: float | None = None
    num_worse: int = 0
    ledgers: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    steps_before: int = 0
    belongs: dict[str, dict[str, Any]] = field(default_factory=dict)


def save(
    folder: Path,
    position: Position,
    learned: dict[str, Tensor],
    optimizer: torch.optim.Optimizer | None,
    parameter_names: dict[int, str],
    drawing: Sequence[Mapping[str, Any]] = (),
    *,
    keep: int = 2,
) -> Path:
    """Write the checkpoint of a position and remove old ones.

    The one that its stage began with stays until the stage ends, so that it can begin anew.

    Args:
        drawing: `random_state` of every process, by rank; none where a stage begins.
    """
    target = folder / _name(position.stage, position.step)
    with staged_folder(target) as stage:
        save_tensors(learned, stage / "weights.safetensors")
        for rank, state in enumerate(drawing):
            save_tensors(state["tensors"], stage / _random_file(rank))
        if optimizer is not None:
            save_tensors(_moments(optimizer, parameter_names), stage / "optimizer.safetensors")
        python = [state["python"] for state in drawing]
        state = {"position": asdict(position), "python_random": python}
        (stage / "state.json").write_text(json.dumps(state) + "\n")
    for old in _checkpoints(folder)[:-keep]:
        if old.name != _name(position.stage, 0):
            shutil.rmtree(old, ignore_errors=True)
    return target


def start_of(folder: Path, stage: int) -> Path | None:
    """The checkpoint that a stage began with; None for the first one, which begins without any.

    Raises:
        CheckpointError: it is not there any more, or damaged.
    """
    if stage == 0:
        return None
    path = folder / _name(stage, 0)
    if not is_valid(path):
        raise CheckpointError(
            "what the stage began with is not kept, so it cannot start anew",
            where=str(path),
            fix="begin a new run: give another name, or remove the run folder",
        )
    return path


def forget(folder: Path, stage: int) -> None:
    """Remove the checkpoints in the middle of a stage, which starts anew."""
    for path in _checkpoints(folder):
        if path.name > _name(stage, 0):
            shutil.rmtree(path)


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that is whole, or None."""
    for path in reversed(_checkpoints(folder)):
        if is_valid(path):
            return path
        log.warning("checkpoint %s is damaged, trying the one before", path.name)
    return None


def position_of(path: Path) -> Position:
    """Where a checkpoint stands.

    Raises:
        CheckpointError: another version wrote it, and it says what this one does not know.
    """
    values = json.loads((path / "state.json").read_text())["position"]
    unknown = sorted(values.keys() - {f.name for f in fields(Position)})
    if unknown:
        raise CheckpointError(
            f"the checkpoint was written by a later version: it has {', '.join(unknown)}",
            where=str(path),
            fix="go on with that version, or begin a new run",
        )
    return Position(**values)


def load(
    path: Path,
    learner: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    parameter_names: dict[int, str],
    *,
    rank: int = 0,
) -> int:
    """Put weights, moments and this process's random states back, where it had any.

    Returns:
        How many processes wrote the checkpoint.
    """
    load_weights(path / "weights.safetensors", learner)
    if optimizer is not None and (path / "optimizer.safetensors").is_file():
        _restore_moments(optimizer, parameter_names, load_file(path / "optimizer.safetensors"))
    drawing = json.loads((path / "state.json").read_text())["python_random"]
    if rank < len(drawing):
        _restore_random(load_file(path / _random_file(rank)))
        version, numbers, gauss = drawing[rank]
        random.setstate((version, tuple(numbers), gauss))
    return len(drawing)


def load_weights(path: Path, learner: nn.Module) -> None:
    """Copy saved weights into the learner.

    Raises:
        CheckpointError: a weight that the learner does not have, or of another shape.
    """
    own = learner.state_dict()
    with torch.no_grad():
        for name, tensor in load_file(path).items():
            if name not in own or own[name].shape != tensor.shape:
                raise CheckpointError(
                    f"the checkpoint's {name} does not fit this recipe's model",
                    where=str(path),
                    fix="start a new run folder, or repeat the run with its own recipe.json",
                )
            own[name].copy_(tensor)


def random_state() -> dict[str, Any]:
    """What this process draws next: `tensors` (PyTorch's, NumPy's) and `python`."""
    version, numbers, gauss = random.getstate()
    return {"tensors": _random_tensors(), "python": [version, list(numbers), gauss]}


def _random_file(rank: int) -> str:
    return f"random-{rank:04d}.safetensors"


def _name(stage: int, step: int) -> str:
    return f"{stage:02d}-{step:08d}"


def _checkpoints(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if _NAME.match(p.name) and p.is_dir())


def _moments(optimizer: torch.optim.Optimizer, names: dict[int, str]) -> dict[str, Tensor]:
    tensors = {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            tensors[f"{names[id(parameter)]}/{key}"] = torch.as_tensor(value).detach().cpu()
    return tensors


def _restore_moments(
    optimizer: torch.optim.Optimizer, names: dict[int, str], tensors: dict[str, Tensor]
) -> None:
    by_name = {names[id(p)]: p for group in optimizer.param_groups for p in group["params"]}
    optimizer.state.clear()
    for key, tensor in tensors.items():
        name, _, what = key.rpartition("/")
        if name not in by_name:
            raise CheckpointError(f"the checkpoint's optimizer knows {name}, this stage does not")
        parameter = by_name[name]
        # AdamW keeps its step counter on the CPU unless fused on a GPU.
        where = "cpu" if what == "step" and not parameter.is_cuda else parameter.device
        # Moments of an earlier version's bfloat16 weights, which are float32 now.
        kept = tensor.dtype if what == "step" else parameter.dtype
        optimizer.state[parameter][what] = tensor.to(where, kept)


def _random_tensors() -> dict[str, Tensor]:
    _kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # type: ignore[misc]
    tensors = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.asarray(keys, dtype=np.uint32).view(np.int32).copy()),
        "numpy_rest": torch.tensor([position, has_gauss, gauss], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    return tensors


def _restore_random(tensors: dict[str, Tensor]) -> None:
    torch.set_rng_state(tensors["torch"])
    position, has_gauss, gauss = tensors["numpy_rest"].tolist()
    keys = tensors["numpy"].numpy().view(np.uint32)
    np.random.set_state(("MT19937", keys, int(position), int(has_gauss), gauss))
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])


def without_aliases(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor once, under the first of its names: tied weights share their memory."""
    seen: set[tuple[int, torch.Size]] = set()
    kept = {}
    for name, tensor in tensors.items():
        key = (tensor.data_ptr(), tensor.shape)
        if tensor.numel() and key in seen:
            continue
        seen.add(key)
        kept[name] = tensor
    return kept
