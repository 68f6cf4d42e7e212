"""One run from recipe to report: compose, measure, train, measure again, show.

Every phase leaves its files in the run folder; a run that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

import diptych
from diptych.data.index import Index
from diptych.data.sample import Sample
from diptych.errors import ConfigError
from diptych.eval.benchmarks.questions import Questions
from diptych.eval.compare import Comparison, compare
from diptych.eval.result import Result
from diptych.eval.retriever import Example, retrieve
from diptych.eval.runner import evaluate
from diptych.eval.text import TextAbility, text_ability
from diptych.model.architecture import ArchitectureConfig, Model, build
from diptych.model.checkpoint import load_model, save_model
from diptych.model.language_model import TRAINED_ON_DATA
from diptych.recipe import EvaluationConfig, Recipe
from diptych.train.feed import open_index
from diptych.train.journal import memory_bytes
from diptych.train.progress import Progress
from diptych.train.trainer import Trainer

log = logging.getLogger(__name__)
_CHINESE = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]+")


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
    _write(run / "environment.json", environment(command))
    finished = run / "model" / "config.json"
    measured = _Measured(recipe, run, phases, progress)
    if finished.is_file():
        log.info("this run is trained already; its model is %s", run / "model")
        model = load_model(run / "model")
    else:
        with phases("compose"):
            model = build(with_tokenizer(recipe, run), seed=recipe.seed)
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
    summary = summarize(run, measured.results, comparison, phases, recipe.evaluation)
    from diptych.report.page import write

    with phases("report"):
        write(run)
    summary["seconds"] = phases.seconds
    return summary


def with_tokenizer(recipe: Recipe, run: Path) -> ArchitectureConfig:
    """The recipe's model with a tokenizer trained on its data, where it asks for one.

    Trained once and kept in the run folder, so that a resumed run reads the same tokens.
    """
    from diptych.data.source import rows
    from diptych.data.tokenizer import train

    config = recipe.model.text
    if config.tokenizer != TRAINED_ON_DATA:
        return recipe.model
    folder = run / "tokenizer"

    if not (folder / "tokenizer.json").is_file():
        texts, answers = [], Counter[str]()
        for data in dict.fromkeys(d for stage in recipe.stages for d in stage.data):
            for row in rows(data.path, data.format, data.images):
                if isinstance(row, Sample):
                    for turn in row.turns:
                        # As the template writes them: an answer starts with a blank.
                        texts.append(turn.text if turn.role == "user" else f" {turn.text}")
                    answers[row.answer.strip()] += 1
        size = (config.config or {}).get("vocab_size", 2048)
        train(texts, folder, vocab_size=size, words=_names(answers))
    text = config.model_copy(update={"tokenizer": str(folder.absolute())})
    return recipe.model.model_copy(update={recipe.model.text_part: text})


def _names(answers: Counter[str]) -> list[str]:
    """Words in a script without blanks that are often the whole answer."""
    return [a for a, n in answers.items() if n >= 5 and len(a) <= 8 and _CHINESE.fullmatch(a)]


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
            result, examples = evaluate_data(
                model,
                self.config,
                self.run / "data",
                train=self._training_samples(model),
                seed=self.recipe.seed,
                blind=blind,
            )
            ability = measure_text(model, self.config.choices)
            result = replace(result, text=ability)
        if examples:
            _write(self.run / f"retrieval_{name}.json", {"examples": [asdict(e) for e in examples]})
        result.save(folder)
        self.results[name] = result

    def _training_samples(self, model: Model) -> Iterator[Sample]:
        """What the last stage learns from, for the majority answer."""
        stage = self.recipe.stages[-1]
        for config in stage.data:
            index = open_index(config, stage, self.run / "data", model)
            for row in range(len(index)):
                yield index[row]


def evaluate_data(
    model: Any,
    config: EvaluationConfig,
    cache: Path,
    *,
    train: Iterator[Sample] | None = None,
    seed: int = 0,
    blind: bool = True,
) -> tuple[Result, list[Example]]:
    """Ask a model every question of a data set, or let it search there.

    Returns:
        The result, and for retrieval some queries with what they found.

    Raises:
        ConfigError: the model cannot be measured so.
    """
    index = Index.build(
        config.data.path, cache, format=config.data.format, images=config.data.images
    )
    index.ledger.enforce(0.01)
    samples = [index[row] for row in range(len(index))]
    answers = hasattr(model, "generate")
    if config.how == "retrieval":
        if not hasattr(model, "encode_texts"):
            raise ConfigError(
                f"a {model.config.name} has no vectors to search with",
                where="evaluation.how",
                fix="use generate or likelihood",
            )
        return retrieve(
            model,
            samples,
            images=index.image_bytes,
            name=Path(config.data.path).stem,
            seed=seed,
            limit=config.limit,
        )
    if config.how == "generate" and not answers:
        raise ConfigError(
            f"a {model.config.name} writes no answers",
            where="evaluation.how",
            fix="use retrieval, or likelihood (zero-shot classification)",
        )
    benchmark = Questions(
        samples,
        metric=config.metric,
        how=config.how,
        max_new_tokens=config.max_new_tokens,
        name=Path(config.data.path).stem,
    )
    if config.templates != ("{}",):
        model = _Filled(model, config.templates)
    result = evaluate(
        model,
        benchmark,
        images=index.image_bytes,
        train=train,
        limit=config.limit,
        seed=seed,
        # Without a picture a dual encoder has nothing to say at all.
        blind=blind and answers,
        batch_size=config.batch_size,
    )
    return result, []


@dataclass(frozen=True)
class _Filled:
    """A dual encoder whose classes stand in templates."""

    model: Any
    templates: tuple[str, ...]

    def log_likelihoods(self, *args: Any, **settings: Any) -> list[list[float]]:
        return self.model.log_likelihoods(*args, templates=self.templates, **settings)

    def generate(self, *args: Any, **settings: Any) -> list[str]:
        raise ConfigError("templates are for classes to choose from", where="evaluation.templates")

    def text_log_likelihood(self, text: str) -> tuple[float, int]:
        return self.model.text_log_likelihood(text)


def measure_text(model: Any, choices: str | None) -> TextAbility | None:
    """Text-only ability: perplexity on held-out text, and a multiple-choice file when given.

    None for a model that writes nothing.
    """
    if not hasattr(model, "text_log_likelihood"):
        return None
    return text_ability(model, choices=choices)


def summarize(
    run: Path,
    results: dict[str, Result],
    comparison: Comparison | None,
    phases: Phases,
    config: EvaluationConfig | None,
) -> dict[str, Any]:
    """Write `evaluation.json` and the records; returns the machine-readable summary."""
    summary: dict[str, Any] = {"run": str(run)}
    after = results.get("after")
    if after is not None:
        before = results.get("before")
        summary |= {
            "before": before.overall.to_dict() if before else None,
            "after": after.overall.to_dict(),
            "blind": after.blind.to_dict() if after.blind else None,
            "majority": after.majority.to_dict(),
            "by_kind": _by_kind(before, after),
            "aggregates": after.aggregates,
        }
        evaluation = {
            **summary,
            "benchmark": after.benchmark,
            "metric": after.metric,
            "n": after.n,
            "blind_method": "the same trained model, image withheld" if after.blind else None,
            "names": {"majority": "Chance"} if after.majority_from == "chance" else {},
            "majority_method": after.majority_from,
            "failures": after.failures,
            "images": _images_folder(config),
            "text": _text(before, after),
        }
        if comparison is not None:
            evaluation |= _paired(comparison)
            summary["difference"] = evaluation["difference"]
        _write(run / "evaluation.json", evaluation)
        _write_records(run, before, after)
    summary["text"] = _text(results.get("before"), after) if after else None
    summary["seconds"] = phases.seconds
    summary["peak_memory_bytes"] = phases.peak
    return summary


def _by_kind(before: Result | None, after: Result) -> dict[str, Any]:
    kinds = {}
    for kind, score in after.by_kind.items():
        kinds[kind] = {
            "after": {"score": score.score, "low": score.low, "high": score.high, "n": score.n},
            "blind": {"score": score.blind, "n": score.n} if score.blind is not None else None,
            "majority": {"score": score.majority, "n": score.n},
        }
        if before is not None and kind in before.by_kind:
            old = before.by_kind[kind]
            kinds[kind]["before"] = {
                "score": old.score,
                "low": old.low,
                "high": old.high,
                "n": old.n,
            }
    return kinds


def _paired(comparison: Comparison) -> dict[str, Any]:
    overall = comparison.overall
    return {
        "difference": {
            "score": overall.difference,
            "low": overall.low,
            "high": overall.high,
            "n": overall.n,
        },
        "p_value": overall.p_value,
        "gained": len(comparison.gained_ids),
        "lost": len(comparison.lost_ids),
    }


def _text(before: Result | None, after: Result | None) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, result in (("before", before), ("after", after)):
        if result is not None and result.text is not None:
            values[f"perplexity_{name}"] = result.text.perplexity
            if result.text.choices is not None:
                values[f"choices_{name}"] = result.text.choices.score
    return values


def _images_folder(config: EvaluationConfig | None) -> str:
    """Where the pictures of the evaluated questions are, for the report's gallery."""
    if config is None:
        return "images"
    return config.data.images or str(Path(config.data.path).parent)


def _write_records(run: Path, before: Result | None, after: Result) -> None:
    def lines(result: Result, output: str, score: str) -> str:
        rows = []
        for record in result.records:
            rows.append(
                json.dumps(
                    {
                        "id": record.id,
                        "question": record.question,
                        "truth": record.truth,
                        "output": getattr(record, output) or "",
                        "score": getattr(record, score),
                        "kind": record.kind,
                        "image": record.image,
                    },
                    ensure_ascii=False,
                )
            )
        return "".join(row + "\n" for row in rows)

    if before is not None:
        text = lines(before, "output", "score")
        (run / "records_before.jsonl").write_text(text, encoding="utf-8")
    (run / "records_after.jsonl").write_text(lines(after, "output", "score"), encoding="utf-8")
    if after.blind is not None:
        text = lines(after, "blind_output", "blind_score")
        (run / "records_blind.jsonl").write_text(text, encoding="utf-8")


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
    if not (folder / ".git").exists():
        return {"commit": None, "dirty": None}

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True)
        return done.stdout.strip()

    return {"commit": git("rev-parse", "HEAD") or None, "dirty": bool(git("status", "--porcelain"))}


def _write(file: Path, values: Any) -> None:
    staged = file.with_name(f".{file.name}.new")
    staged.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    staged.rename(file)
