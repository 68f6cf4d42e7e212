"""One run from recipe to report: compose, measure, train, measure again, show.

Every phase leaves its files in the run folder; a run that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import torch

import diptych
from diptych.cli.evaluation import evaluate_data, measure_text, summarize, write_json
from diptych.data.index import Index
from diptych.data.sample import Sample
from diptych.eval import embedding_map
from diptych.eval.compare import Comparison, compare
from diptych.eval.result import Result
from diptych.machine import memory_bytes
from diptych.model.architecture import ArchitectureConfig, Model, build
from diptych.model.checkpoint import load_model, save_model
from diptych.model.language_model import TRAINED_ON_DATA
from diptych.progress import Progress
from diptych.recipe import Recipe, chained
from diptych.recipe import load as load_recipe
from diptych.train.feed import open_index
from diptych.train.trainer import Trainer

log = logging.getLogger(__name__)
_NAME = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]+|(19|20)\d\d")
_WORD = re.compile(r"\D*[^\W\d_]\D*|[a-z]\d\d|\d{1,2}[\u4e00-\u9fff]")
"""A word that is no number; also a month in Chinese, and a word for numbers that begin alike."""
READ_ROWS = 8_000
"""Most rows of a data set that its tokenizer is trained on: the first."""

OFTEN = 100
"""Times that a word told of pictures counts when pieces of words are counted: they are the same
few hundred again and again, and would cost most of the time."""


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
        self.file.write_text(json.dumps(values, indent=2) + "\n")


def run_folder(recipe: Recipe, root: Path) -> Path:
    """Folder of a recipe's run: its name and fingerprint."""
    return root / f"{recipe.name}-{recipe.fingerprint()}"


def run_recipe(
    recipe: Recipe,
    run: Path,
    *,
    progress: Progress,
    phases: Phases | None = None,
    command: list[str] | None = None,
) -> dict[str, Any]:
    """Run (or go on with) a recipe; returns what `--json` prints.

    Writes `recipe.json environment.json parameters.json metrics.jsonl ledger.json
    evaluation.json records_*.jsonl timings.json checkpoints/ model/ report.html`.
    """
    run.mkdir(parents=True, exist_ok=True)
    phases = phases or Phases(run)
    (run / "recipe.json").write_text(recipe.to_json(), encoding="utf-8")
    before = _before(recipe, run.parent)
    for first, folder in before.values():
        if not (folder / "model" / "config.json").is_file():
            log.info("recipe %s comes first, in %s", first.name, folder)
            run_recipe(first, folder, progress=progress, command=command)
    write_json(run / "environment.json", environment(command))
    finished = run / "model" / "config.json"
    measured = _Measured(recipe, run, phases, progress)
    if finished.is_file():
        log.info("this run is trained already; its model is %s", run / "model")
        for file in sorted((run / "data").glob("*/index.json")):
            index = Index(file.parent)
            if not index.is_current:
                log.warning(
                    "%s has changed since; to train on it as it is now, give another name= or "
                    "remove the run",
                    index.files[0][0],
                )
        model = load_model(run / "model")
    else:
        with phases("compose"):
            model = compose(recipe, run)
        measured.before(model)
        with phases("train"):
            trainer = Trainer(
                model,
                recipe.stages,
                run,
                seed=recipe.seed,
                trackers=recipe.trackers,
                progress=progress,
            )
            trainer.train()
        save_model(model, run / "model")
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


def with_tokenizer(recipe: Recipe, run: Path) -> ArchitectureConfig:
    """The recipe's model with a tokenizer trained on its data, where it asks for one.

    Trained once and kept in the run folder, so that a resumed run reads the same tokens.
    """
    from diptych.data.source import rows
    from diptych.data.tokenizer import VOCAB_SIZE, train

    config = recipe.model.text_config
    if config.tokenizer != TRAINED_ON_DATA:
        return recipe.model
    folder = run / "tokenizer"

    if not (folder / "tokenizer.json").is_file():
        texts, answers, words = [], Counter[str](), Counter[str]()
        every = [data for stage in recipe.stages for data in stage.data]
        for data in {(d.path, d.format, d.images): d for d in every}.values():
            for row in islice(rows(data.path, data.format, data.images), READ_ROWS):
                if isinstance(row, Sample):
                    for turn in row.turns:
                        # As the template writes them: an answer starts with a blank.
                        texts.append(turn.text if turn.role == "user" else f" {turn.text}")
                    answers[row.answer.strip()] += 1
                    for told, written in _told(row):
                        for word in told.split():
                            if words[word] < OFTEN:
                                texts.append(f" {word}")
                            words[word] += 1
                        answers[written] += 1
                    if not row.question:  # of a list of captions, the others
                        texts += [f" {text}" for text in row.texts[1:]]
        size = (config.config or {}).get("vocab_size", VOCAB_SIZE)
        train(texts, folder, vocab_size=size, words=_names(answers), whole=_whole(words))
    text = config.model_copy(update={"tokenizer": str(folder.absolute())})
    return recipe.model.model_copy(update={recipe.model.text_part: text})


def _told(row: Sample) -> list[tuple[str, str]]:
    """What the regions of a row tell, and what of it is written there."""
    regions = row.meta.get("regions")
    if not isinstance(regions, list):
        return []
    return [
        (str(region[0]), str(region[-1] if len(region) > 5 else region[0]))
        for region in regions
        if isinstance(region, list) and region
    ]


def _names(answers: Counter[str]) -> list[str]:
    """Years, and words in a script without blanks, that often are the whole of an answer or of
    what is written in one place.
    """
    return [a for a, n in answers.items() if n >= 5 and len(a) <= 8 and _NAME.fullmatch(a)]


def _whole(words: Counter[str]) -> list[str]:
    """Words that regions often tell, the most frequent first; numbers are spelled."""
    often = [(word, n) for word, n in words.items() if n >= 6 and _WORD.fullmatch(word)]
    return [word for word, _ in sorted(often, key=lambda pair: (-pair[1], pair[0]))]


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
        if self.config.before and (self.run / "eval" / "before").is_dir():
            self.results["before"] = Result.load(self.run / "eval" / "before")
        self._measure("after", model, blind=True)
        if "before" not in self.results:
            return None
        return compare(self.results["before"], self.results["after"])

    def _measure(self, name: str, model: Model, *, blind: bool) -> None:
        folder = self.run / "eval" / name
        if (folder / "result.json").is_file():
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
        self.results[name] = result

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
