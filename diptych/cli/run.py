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
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

import diptych
from diptych.cli.claimed_run import check_finished, claim, note, origins
from diptych.cli.evaluation import evaluate_data, measure_text, summarize, write_json
from diptych.cli.own_tokenizer import with_tokenizer
from diptych.data.index import Index
from diptych.data.sample import Sample
from diptych.eval import embedding_map
from diptych.eval.compare import Comparison, compare
from diptych.eval.result import Result
from diptych.machine import memory_bytes
from diptych.model.architecture import Model, build
from diptych.model.checkpoint import load_model, save_model
from diptych.progress import Progress
from diptych.recipe import Recipe, chained
from diptych.recipe import load as load_recipe
from diptych.train import identity, processes
from diptych.train.claim import working_in
from diptych.train.feed import open_index
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
) -> dict[str, Any]:
    """Run (or go on with) a recipe; returns what `--json` prints.

    Writes `recipe.json environment.json parameters.json metrics.jsonl ledger.json
    evaluation.json records_*.jsonl timings.json checkpoints/ model/ report.html`.
    Of several processes all train; the first one alone measures, writes and returns a summary, the
    others return nothing.

    Args:
        progress: progress display; None writes `train.log` into the run folder.
        accept_changed: as for `Trainer`.

    Raises:
        RunTaken: the folder holds another recipe's run, or another process works in it.
        ProcessLost: of several processes another one ended without a word.
        DataChanged, StartChanged: what a stopped run reads is not what it was.
    """
    if not processes.is_first():
        return _follow(recipe, run, accept_changed)
    with working_in(run):
        moved = claim(recipe, run)
        processes.agreed(moved)
        progress = progress or Progress(run / "train.log")
        phases = phases or Phases(run)
        before = _before(recipe, run.parent)
        _run_first(before, progress, command, accept_changed)
        write_json(run / "environment.json", environment(command))
        measured = _Measured(recipe, run, phases, progress)
        finished = processes.agreed((run / "model" / "config.json").is_file())
        if finished:
            log.info("this run is trained already; its model is %s", run / "model")
            model = load_model(run / "model")
            check_finished(recipe, run, model, before, moved)
        else:
            with phases("compose"):
                with_tokenizer(recipe, run)
                processes.wait()
                model = compose(recipe, run)
            measured.before(model)
            with phases("train"):
                _train(recipe, run, model, before, progress, accept_changed, moved)
            save_model(model, run / "model")
            processes.wait()
        if moved:
            note(recipe, run)
        comparison = measured.after(model)
        phases.save()
        summary = summarize(
            run, measured.results, comparison, phases.seconds, phases.peak, recipe.evaluation
        )
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
    _run_first(before, Progress(quiet=True), None, accept_changed)
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
) -> None:
    """Run the recipes whose weights this one begins with, where they have not been run."""
    for first, folder in before.values():
        if not processes.agreed((folder / "model" / "config.json").is_file()):
            log.info("recipe %s comes first, in %s", first.name, folder)
            run_recipe(
                first, folder, progress=progress, command=command, accept_changed=accept_changed
            )


def _train(
    recipe: Recipe,
    run: Path,
    model: Model,
    before: dict[str, tuple[Recipe, Path]],
    progress: Progress,
    accept_changed: bool,
    moved: bool,
) -> None:
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
    return build(with_tokenizer(recipe.override(weights), run), seed=recipe.seed)


class _Measured:
    """The evaluations of a run."""

    def __init__(self, recipe: Recipe, run: Path, phases: Phases, progress: Progress):
        self.recipe = recipe
        self.config = recipe.evaluation
        self.run = run
        self.phases = phases
        self.progress = progress
        self.results: dict[str, Result] = {}
        self._index: Index | None = None

    def before(self, model: Model) -> None:
        if self.config is None or not self.config.before:
            return
        self._measure("before", model, blind=False)

    def after(self, model: Model) -> Comparison | None:
        if self.config is None:
            return None
        if self.config.before and self._is_measured("before"):
            self.results["before"] = Result.load(self.run / "eval" / "before")
        else:  # a report must not show answers to other questions beside these
            for name in ("records_before.jsonl", "retrieval_before.json", "map_before.json"):
                (self.run / name).unlink(missing_ok=True)
        self._measure("after", model, blind=True)
        if "before" not in self.results:
            return None
        return compare(self.results["before"], self.results["after"])

    def _measure(self, name: str, model: Model, *, blind: bool) -> None:
        folder = self.run / "eval" / name
        if self._is_measured(name):
            self.results[name] = Result.load(folder)
            return
        assert self.config is not None
        with self.phases(f"evaluate {name}"):
            result, found = evaluate_data(
                model,
                self.config,
                self.run / "data",
                train=self._training_samples(model),
                seed=self.recipe.seed,
                blind=blind,
            )
            ability = measure_text(model, self.config.choices)
            result = replace(result, text=ability)
        if found is not None:
            shown = {"examples": [asdict(e) for e in found.examples]}
            write_json(self.run / f"retrieval_{name}.json", shown)
            if embedding_map.available():
                drawn = embedding_map.draw(found.vectors, seed=self.recipe.seed)
                write_json(self.run / f"map_{name}.json", drawn)
            else:
                log.info("no map of the shared space: pip install 'diptych[maps]'")
        result.save(folder)
        write_json(folder / "data.json", self._data())
        self.results[name] = result

    def _is_measured(self, name: str) -> bool:
        """Whether there is a result about the questions as they are now."""
        folder = self.run / "eval" / name
        if not (folder / "result.json").is_file():
            return False
        file = folder / "data.json"
        if not file.is_file() or json.loads(file.read_text())["sha256"] == self._data()["sha256"]:
            return True
        log.warning("the questions changed since the score %s training; it counts no more", name)
        return False

    def _data(self) -> dict[str, Any]:
        """Identity of the questions."""
        assert self.config is not None
        data = self.config.data
        index = Index.build(data.path, self.run / "data", format=data.format, images=data.images)
        return identity.of_data(data, index)

    def _training_samples(self, model: Model) -> Iterator[Sample]:
        """What the last stage learns from, for the majority answer."""
        stage = self.recipe.stages[-1]
        for config in stage.data:
            index = open_index(config, stage, self.run / "data", model)
            for row in range(len(index)):
                yield index[row]


def environment(command: list[str] | None = None) -> dict[str, Any]:
    """What the run ran on."""
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
