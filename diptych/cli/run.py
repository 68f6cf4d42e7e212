"""One run from recipe to report: compose, measure, train, measure again, show.

Every phase leaves its files in the run folder; a run that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

import diptych
from diptych.cli.claimed_run import check_finished, claim, note, origins
from diptych.cli.evaluation import summarize
from diptych.cli.measured import Measured
from diptych.cli.own_tokenizer import with_tokenizer
from diptych.convert.published import ready
from diptych.machine import memory_bytes
from diptych.model.architecture import Model
from diptych.model.folder import build, save_model
from diptych.model.opened import open_model, place
from diptych.progress import Progress
from diptych.recipe import Recipe, chained
from diptych.recipe import load as load_recipe
from diptych.staging import write_json
from diptych.train import processes
from diptych.train.claim import working_in
from diptych.train.trainer import Trainer

log = logging.getLogger(__name__)


class Phases:
    """Times the phases of a run; what a resumed run spent before is kept."""

    def __init__(self, run: Path):
        self.file = run / "timings.json"
        self.phases: list[dict[str, Any]] = []
        self.peak = 0
        if self.file.is_file():
            known = json.loads(self.file.read_text())
            self.phases, self.peak = known["phases"], known["peak_memory_bytes"]

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - start
            known = next((p for p in self.phases if p["name"] == name), None)
            if known is None:
                self.phases.append({"name": name, "seconds": seconds})
            else:
                known["seconds"] += seconds
            self.peak = max(self.peak, memory_bytes())
            self.save()

    @property
    def seconds(self) -> float:
        return sum(p["seconds"] for p in self.phases)

    def save(self) -> None:
        values = {
            "phases": self.phases,
            "seconds": self.seconds,
            "peak_memory_bytes": self.peak,
        }
        write_json(self.file, values)


def run_folder(recipe: Recipe, root: Path) -> Path:
    """Folder of a recipe's run: its name and fingerprint."""
    return root / f"{recipe.name}-{recipe.fingerprint()}"


@processes.one_fate()
def run_recipe(
    recipe: Recipe,
    run: Path,
    *,
    progress: Progress | None = None,
    phases: Phases | None = None,
    command: list[str] | None = None,
    accept_changed: bool = False,
    precision: str | None = None,
) -> dict[str, Any]:
    """Run (or go on with) a recipe; returns what `--json` prints.

    Writes `recipe.json environment.json parameters.json metrics.jsonl ledger.json
    evaluation.json records_*.jsonl timings.json checkpoints/ model/ report.html`.
    Of several processes all train; the first one alone measures, writes and returns a summary, the
    others return nothing.

    Args:
        progress: progress display; None writes `train.log` into the run folder.
        accept_changed: as for `Trainer`.
        precision: in which the model is measured, as for `open_model`; None: that of the stages on
            a GPU, fp32 on a CPU. The device is that of training (`processes.on`).

    Raises:
        RunTaken: the folder holds another recipe's run, or another process works in it.
        ProcessLost: of several processes another one ended without a word.
        DataChanged, StartChanged: what a stopped run reads is not what it was.
    """
    if not processes.is_first():
        return _follow(recipe, run, accept_changed)
    if precision is None and recipe.stages[-1].precision == "float32":
        precision = "fp32"
    with working_in(run):
        moved = claim(recipe, run)
        processes.agreed(moved)
        progress = progress or Progress(run / "train.log")
        phases = phases or Phases(run)
        before = _before(recipe, run.parent)
        _run_first(before, progress, command, accept_changed, precision)
        write_json(run / "environment.json", environment(command))
        measured = Measured(recipe, run, phases)
        finished = processes.agreed((run / "model" / "config.json").is_file())
        if finished:
            log.info("this run is trained already; its model is %s", run / "model")
            model = open_model(run / "model", precision=precision, widen=False)
            check_finished(recipe, run, model, before, moved)
            write_json(run / "environment.json", environment(command, model))
        else:
            with phases("compose"):
                with_tokenizer(recipe, run)
                processes.wait()
                model = place(compose(recipe, run), precision=precision)
            write_json(run / "environment.json", environment(command, model))
            measured.before(model)
            with phases("train"):
                _train(recipe, run, model, before, progress, accept_changed, moved, measured)
            save_model(model, run / "model")
            processes.wait()
        if moved:
            note(recipe, run)
        comparison = measured.after(model)
        phases.save()
        summary = summarize(
            run, measured.results, comparison, phases.seconds, phases.peak,
            recipe.measured[0] if recipe.measured else None,
        )  # fmt: skip
        summary["evaluations"] = measured.summary()
        from diptych.report.page import write

        with phases("report"):
            write(run)
        summary["seconds"] = phases.seconds
        summary["ask"] = model.command and model.command.format(run)
        summary["before_it"] = {first.name: str(folder) for first, folder in before.values()}
        return summary


def _follow(recipe: Recipe, run: Path, accept_changed: bool) -> dict[str, Any]:
    """What the other processes do beside `run_recipe`: they train with the first one."""
    moved = processes.agreed(False)
    before = _before(recipe, run.parent)
    _run_first(before, Progress(quiet=True), None, accept_changed, None)
    if processes.agreed(False):
        return {}
    processes.wait()  # for the tokenizer that the first one may train
    model = compose(recipe, run)
    _train(recipe, run, model, before, Progress(quiet=True), accept_changed, moved)
    processes.wait()  # until the model is saved: another recipe may begin with it
    return {}


def _run_first(
    before: dict[str, tuple[Recipe, Path]],
    progress: Progress,
    command: list[str] | None,
    accept_changed: bool,
    precision: str | None,
) -> None:
    """Run the recipes whose weights this one begins with, where they have not been run."""
    for first, folder in before.values():
        if not processes.agreed((folder / "model" / "config.json").is_file()):
            log.info("recipe %s comes first, in %s", first.name, folder)
            run_recipe(
                first, folder, progress=progress, command=command, accept_changed=accept_changed,
                precision=precision,
            )  # fmt: skip


def _train(
    recipe: Recipe,
    run: Path,
    model: Model,
    before: dict[str, tuple[Recipe, Path]],
    progress: Progress,
    accept_changed: bool,
    moved: bool,
    measured: Measured | None = None,
) -> None:
    """Train with the other processes; the one that is given `measured` looks on schedule."""
    Trainer(
        model,
        recipe.stages,
        run,
        seed=recipe.seed,
        trackers=recipe.trackers,
        progress=progress,
        origins=origins(before),
        accept_changed=accept_changed,
        moved=moved,
        recipe=recipe.to_dict(),
        scheduled=measured,
    ).train()


def _before(recipe: Recipe, runs: Path) -> dict[str, tuple[Recipe, Path]]:
    """Recipes that come first and their folders, by the key of the model that takes their weights.

    Data paths are settled as `diptych train` settles them: the same run has the same folder.
    """
    found = {}
    for key, name in chained(recipe).items():
        first = load_recipe(name).located(Path.cwd())
        found[key] = (first, run_folder(first, runs))
    return found


def compose(recipe: Recipe, run: Path) -> Any:
    """The recipe's model before its first step; recipes before it have run beside `run`."""
    weights = [
        f"model.{key}={folder / 'model'}"
        for key, (_, folder) in _before(recipe, run.parent).items()
    ]
    config = with_tokenizer(recipe.override(weights), run)
    if config.weights is not None:
        whole = ready(config.weights, config.revision)
        if whole != config.weights:
            text = config.text_config
            if text.tokenizer == config.weights:
                text = text.model_copy(update={"tokenizer": whole})
            update = {"weights": whole, "revision": None, config.text_part: text}
            config = config.model_copy(update=update)
    return build(config, seed=recipe.seed)


def environment(command: list[str] | None = None, model: Model | None = None) -> dict[str, Any]:
    """What the run ran on, and which pretrained weights its model began with."""
    values: dict[str, Any] = {
        "diptych": diptych.__version__,
        "command": command or ["diptych", *sys.argv[1:]],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "num_cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "num_threads": torch.get_num_threads(),
    }
    for package in ("torch", "transformers", "accelerate", "peft", "tokenizers", "numpy", "pillow"):
        try:
            values[package] = version(package)
        except PackageNotFoundError:
            values[package] = None
    values |= _commit()
    if model is not None and model.origins:
        values["weights"] = dict(model.origins)
    return values


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> dict[str, Any]:
    folder = Path(diptych.__file__).parent.parent
    unknown = {"commit": None, "dirty": None}
    # A checkout may be copied to where there is no git.
    if not (folder / ".git").exists() or shutil.which("git") is None:
        return unknown

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True)
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    return {"commit": commit, "dirty": bool(git("status", "--porcelain"))} if commit else unknown
