"""The evaluations of a run: before training, on schedule, after it.

The first one makes the headline: its results lie in `eval/before` and `eval/after`, its answers in
`records_*.jsonl`. The others lie in `eval/NAME/`. What was measured on schedule lies beside them
in `step-NNNNNN`. `evaluations.json` sums up all of them.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from diptych.cli.evaluation import evaluate_data, measure_text, paired
from diptych.data.checking.index import Index
from diptych.data.sample import Sample
from diptych.eval import benchmark as benchmarks
from diptych.eval import embedding_map
from diptych.eval.compare import Comparison, compare
from diptych.eval.result import Result
from diptych.model.architecture import Model
from diptych.recipe import EvaluationConfig, Recipe
from diptych.staging import file_hash, write_json
from diptych.train import identity
from diptych.train.feed import open_index

log = logging.getLogger(__name__)
Phases = Callable[[str], AbstractContextManager[None]]


class Measured:
    """All evaluations of a recipe, in a run folder; the trainer's hook for those on schedule."""

    def __init__(self, recipe: Recipe, run: Path, phases: Phases):
        self.run = run
        self.each = [
            _Evaluation(config, recipe, run, phases, leads=number == 0)
            for number, config in enumerate(recipe.measured)
        ]

    @property
    def results(self) -> dict[str, Result]:
        """Of the first evaluation, `before` and `after` training."""
        return self.each[0].results if self.each else {}

    def before(self, model: Model) -> None:
        """Measure what is to be measured before the first step."""
        for one in self.each:
            if one.config.before:
                one.measure("before", model, blind=False)

    def after(self, model: Model) -> Comparison | None:
        """Measure the trained model; the first evaluation's comparison with before."""
        for one in self.each:
            one.after(model)
        if len(self.each) > 1 or any(one.config.every_steps for one in self.each):
            write_json(self.run / "evaluations.json", {"evaluations": self.summary()})
        return self.each[0].comparison() if self.each else None

    def summary(self) -> list[dict[str, Any]]:
        """Each evaluation with its scores, as `--json` and the report have them."""
        return [one.summary() for one in self.each]

    def is_due(self, step: int) -> bool:
        """Whether any is to be measured after so many optimizer steps of the run."""
        return any(one.is_due(step) for one in self.each)

    def is_missing(self, step: int) -> bool:
        """Whether one that is due after that step has no result: the run was stopped before."""
        return step > 0 and any(
            one.is_due(step) and not (one.at(step) / "result.json").is_file() for one in self.each
        )

    def at(self, model: Model, step: int) -> dict[str, float]:
        """Measure those that are due; figures for `metrics.jsonl` and the trackers.

        Training goes on as if nobody had looked: its random state is put back.
        """
        figures = {}
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            for one in (one for one in self.each if one.is_due(step)):
                # Anew even where there is a result: a stage that began again has other weights.
                result = one.measure(one.at(step).name, model, blind=False, anew=True)
                figures[f"evaluations.{one.config.label}"] = result.overall.score
        return figures


class _Evaluation:
    """One evaluation of a run."""

    def __init__(
        self, config: EvaluationConfig, recipe: Recipe, run: Path, phases: Phases, *, leads: bool
    ):
        self.config = config
        self.recipe = recipe
        self.run = run
        self.phases = phases
        self.leads = leads
        self.folder = run / "eval" if leads else run / "eval" / config.label
        self.results: dict[str, Result] = {}

    def is_due(self, step: int) -> bool:
        every = self.config.every_steps
        return every is not None and step % every == 0

    def at(self, step: int) -> Path:
        """Folder of what is measured after so many steps of the run."""
        return self.folder / f"step-{step:06d}"

    def after(self, model: Model) -> None:
        """Measure after training where the recipe says so, and read what was measured before."""
        if self.config.before and self._is_measured("before"):
            self.results["before"] = Result.load(self.folder / "before")
        elif self.leads:  # a report must not show answers to other questions beside these
            for name in ("records_before.jsonl", "retrieval_before.json", "map_before.json"):
                (self.run / name).unlink(missing_ok=True)
        if self.config.after:
            self.measure("after", model, blind=True)

    def comparison(self) -> Comparison | None:
        """After against before, where both were measured."""
        if not {"before", "after"} <= self.results.keys():
            return None
        return compare(self.results["before"], self.results["after"])

    def measure(self, name: str, model: Model, *, blind: bool, anew: bool = False) -> Result:
        """Measure and keep the result in the folder of that name, where it is not there already."""
        folder = self.folder / name
        if not anew and self._is_measured(name):
            self.results[name] = Result.load(folder)
            return self.results[name]
        what = f"evaluate {name}" if self.leads else f"evaluate {self.config.label} {name}"
        # What is measured on schedule is part of the phase of training.
        with nullcontext() if anew else self.phases(what):
            result, found = evaluate_data(
                model,
                self.config,
                self.run / "data",
                train=self._training_samples(model),
                seed=self.recipe.seed,
                blind=blind,
            )
            if self.leads and not anew:
                result = replace(result, text=measure_text(model, self.config.choices))
        if found is not None and self.leads and not anew:
            self._show(name, found)
        result.save(folder)
        write_json(folder / "data.json", self._data())
        self.results[name] = result
        return result

    def _show(self, name: str, found: Any) -> None:
        """What else of a retrieval the report shows."""
        shown = {"examples": [asdict(e) for e in found.examples]}
        write_json(self.run / f"retrieval_{name}.json", shown)
        if embedding_map.available():
            drawn = embedding_map.draw(found.vectors, seed=self.recipe.seed)
            write_json(self.run / f"map_{name}.json", drawn)
        else:
            log.info("no map of the shared space: pip install 'diptych[maps]'")

    def summary(self) -> dict[str, Any]:
        """Scores at every time it was measured, and the controls of the last."""
        before, after = self.results.get("before"), self.results.get("after")
        schedule = [
            {
                "step": int(file.parent.name.removeprefix("step-")),
                **Result.load(file.parent).overall.to_dict(),
            }
            for file in sorted(self.folder.glob("step-*/result.json"))
        ]
        values: dict[str, Any] = {
            "name": self.config.label,
            "benchmark": self.config.benchmark,
            "before": before.overall.to_dict() if before else None,
            "after": after.overall.to_dict() if after else None,
            "schedule": schedule,
        }
        if after is not None:
            values |= {
                "metric": after.metric,
                "how": after.how,
                "n": after.n,
                "blind": after.blind.to_dict() if after.blind else None,
                "majority": after.majority.to_dict(),
                "lookup": after.lookup.to_dict() if after.lookup else None,
                "best_control": after.best_control,
                "gain": after.gain.to_dict() if after.gain else None,
            }
        comparison = self.comparison()
        return values | (paired(comparison) if comparison else {})

    def _is_measured(self, name: str) -> bool:
        """Whether there is a result about the questions as they are now."""
        folder = self.folder / name
        if not (folder / "result.json").is_file():
            return False
        file = folder / "data.json"
        if not file.is_file() or json.loads(file.read_text())["sha256"] == self._data()["sha256"]:
            return True
        log.warning("the questions changed since the score %s training; it counts no more", name)
        return False

    def _data(self) -> dict[str, Any]:
        """Identity of the questions."""
        data, kind = self.config.data, benchmarks.find(self.config.benchmark)
        if data is not None and kind.reads_rows:
            index = Index.build(
                data.path, self.run / "data", format=data.format, images=data.images
            )
            return identity.of_data(data, index)
        digest = hashlib.sha256(self.config.benchmark.encode())
        path = None if data is None else Path(data.path)
        files = [] if path is None else sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in (f for f in files if f.is_file()):
            digest.update(f"{file.name} {file_hash(file)}\n".encode())
        return {"path": data and data.path, "sha256": digest.hexdigest()}

    def _training_samples(self, model: Model) -> Iterator[Sample]:
        """What the last stage learns from, for the majority answer."""
        stage = self.recipe.stages[-1]
        for config in stage.data:
            index = open_index(config, stage, self.run / "data", model)
            for row in range(len(index)):
                yield index[row]
