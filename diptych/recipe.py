"""Recipe = model + stages + benchmarks + seed: one frozen tree that is a run.

A recipe comes from a function in a family file, from a YAML or JSON file, or from the
`recipe.json` of an earlier run. A file may start from another recipe with `base: NAME` and
give only what differs; items of lists are matched by their `name`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from diptych import parts
from diptych.config import SAME_RESULT, Config, inner_error, read_file
from diptych.errors import ConfigError, DiptychError, PartNotFound
from diptych.eval import benchmark as benchmarks
from diptych.eval import metric as metrics
from diptych.model.architecture import ArchitectureField
from diptych.model.text_config import TRAINED_ON_DATA
from diptych.train.stage import DataConfig, Stage


class EvaluationConfig(Config):
    """How the model is measured, and when."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    """What it is called in overrides, folders and the report; null takes the name of its data, or
    of its benchmark."""
    benchmark: str = "questions"
    """A file in eval/benchmarks, or a module of a package that DIPTYCH_PARTS names: questions (any
    data set), choices (MMLU's form)."""
    data: DataConfig | None = None
    """Held-out questions; null for a benchmark that brings its own."""
    metric: str = "exact"
    """A file in eval/metrics: exact, relaxed, vqa_official ..."""
    how: Literal["generate", "likelihood", "retrieval"] = "generate"
    """Write an answer; choose the likeliest candidate (for a dual encoder: zero-shot
    classification); or find the text of every picture and the picture of every text."""
    templates: tuple[str, ...] = ("{}",)
    """Texts with {} for a class of zero-shot classification, such as "a picture of {}"; the vectors
    of all of them are averaged."""

    @field_validator("templates")
    @classmethod
    def _name_the_class(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        if not templates or not all("{}" in t for t in templates):
            raise ValueError("every template needs {}, where the name of the class goes")
        return templates

    rerank: int | None = Field(default=None, ge=1)
    """Retrieval: put the first so many finds in order again by the matching head."""
    max_new_tokens: int = Field(default=32, ge=1)
    """Longest answer."""
    answer_after: str | None = None
    """What stands between a model's working and its answer, such as " = "; the text after the last
    one is scored. Null is what the model itself says (`language_model.answer_after`), else all of
    it is scored."""
    num_beams: int = Field(default=1, ge=1)
    """Width of the beam search for an answer; 1 takes the likeliest token each time (greedy)."""
    batch_size: int = Field(default=32, ge=1, json_schema_extra=SAME_RESULT)
    """Questions asked at once."""
    limit: int | None = Field(default=None, ge=1)
    """At most so many questions, drawn with the recipe's seed; null takes all."""
    max_failure_share: float = Field(default=0.01, ge=0, le=1)
    """Share of the questions that may fail (a picture that cannot be read, memory that runs out);
    with more there is no score but an error. A prompt that is too long is no failure: it is
    wrong."""
    before: bool = True
    """Measure before training too; false saves time."""
    after: bool = True
    """Measure after training."""
    every_steps: int | None = Field(default=None, ge=1)
    """Measure during training too, every so many optimizer steps, counted over all stages."""
    choices: str | None = None
    """A multiple-choice file in MMLU's CSV form, for text-only ability before and after (of a
    recipe's first evaluation)."""

    @model_validator(mode="after")
    def _can_be_measured(self) -> Self:
        key = "benchmark"
        try:  # said before a run has trained for days
            kind = benchmarks.find(self.benchmark)
            key = "metric"
            metrics.find(self.metric)
        except DiptychError as error:
            raise inner_error(error.what, key, error.fix) from None
        if self.data is None and (kind.needs_data or self.how == "retrieval"):
            raise inner_error(f"'{self.benchmark}' needs data", "data", "give data.path")
        if self.how == "retrieval" and self.benchmark != "questions":
            raise inner_error(f"'{self.benchmark}' is no retrieval", "how", "leave benchmark out")
        if not (self.before or self.after or self.every_steps):
            raise ValueError("it is measured neither before nor after nor every_steps")
        if self.label in ("before", "after"):
            raise inner_error(f"'{self.label}' means a time", "name", "give it another name")
        return self

    @property
    def label(self) -> str:
        """Its name; without one, that of its data or its benchmark."""
        if self.name is not None:
            return self.name
        if self.data is None:
            return self.benchmark.rsplit(".", 1)[-1]
        return re.sub(r"[^A-Za-z0-9_-]+", "-", Path(self.data.path).stem).strip("-") or "data"


class Recipe(Config):
    """Everything that determines a run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run folder, before its fingerprint."""
    model: ArchitectureField
    """What is composed; `name` is a file in model/architectures, vlm when left out."""
    stages: tuple[Stage, ...] = Field(min_length=1)
    """What it learns, in order."""
    evaluation: EvaluationConfig | None = None
    """How it is measured: one evaluation; null for none, or for a list."""
    evaluations: tuple[EvaluationConfig, ...] = ()
    """Several evaluations, each with a benchmark, a metric, a limit and its times. Behind
    `evaluation`, where that is given too; the first one makes the report's headline."""
    seed: int = Field(default=0, ge=0)
    """Of initial weights, data order and everything random."""
    trackers: tuple[str, ...] = Field(default=("tensorboard",), json_schema_extra=SAME_RESULT)
    """Experiment trackers that Accelerate knows: tensorboard, wandb, mlflow."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        names = [s.name for s in self.stages]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"two stages are named '{twice[0]}'; give each its own name")
        labels = [e.label for e in self.measured]
        if again := sorted({n for n in labels if labels.count(n) > 1}):
            raise ValueError(f"two evaluations are called '{again[0]}'; give each its own name")
        known = self.model.parts
        for stage in self.stages:
            for part in stage.learn:
                if part not in known:
                    raise inner_error(
                        f"the model has no part '{part}'; parts: {', '.join(known)}",
                        f"stages.{stage.name}",
                    )
        if len({s.precision for s in self.stages}) > 1:
            raise ValueError("the stages differ in precision; use one for the whole run")
        return self

    @property
    def measured(self) -> tuple[EvaluationConfig, ...]:
        """All evaluations, the one of the headline first."""
        return (*([self.evaluation] if self.evaluation else []), *self.evaluations)

    def override(self, assignments: Iterable[str]) -> Self:
        """As `Config.override`; a value that would change nothing is an error, too.

        Raises:
            ConfigError: see there; or another setting makes this one idle (names it).
        """
        given = list(assignments)
        changed = super().override(given)
        _refuse_idle(changed, [assignment.partition("=")[0].strip() for assignment in given])
        return changed

    def located(self, folder: Path) -> Recipe:
        """The same recipe with its data paths absolute, read as relative to `folder`."""
        return Recipe.from_dict(_absolute(self.to_dict(), folder))


def of_a_hub(weights: str) -> Callable[[Callable[[], Recipe]], Callable[[], Recipe]]:
    """Marks a recipe function whose model is read from the configs of that published model.

    Calling it asks the hub or its cache, so lists and documentation do not.
    """

    def marked(function: Callable[[], Recipe]) -> Callable[[], Recipe]:
        function.published = weights  # type: ignore[attr-defined]
        return function

    return marked


def named() -> dict[str, Callable[[], Recipe]]:
    """All recipes of the families by name; debug ones included."""
    found = parts.functions("families", "Recipe")
    return {
        name.replace("_", "-"): getattr(parts.find("families", family), name)
        for name, (family, _) in found.items()
    }


def load(reference: str) -> Recipe:
    """The recipe of that name, file, or run folder.

    Raises:
        PartNotFound: neither a file nor a known name (with the nearest one).
        ConfigError: the file does not describe a recipe; names the key.
    """
    path = Path(reference)
    if path.is_dir() and (path / "recipe.json").is_file():
        path = path / "recipe.json"
    if path.is_file():
        recipe = Recipe.from_dict(_read(path, ()), where=str(path))
        _refuse_idle(recipe, _changes_of(path), where=str(path))
        return recipe
    known = parts.functions("families", "Recipe")
    recipes = [name.replace("_", "-") for name in known]
    name = reference.replace("-", "_")
    if name in known:
        made: Recipe = getattr(parts.find("families", known[name][0]), name)()
        return made
    close = difflib.get_close_matches(name, recipes, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    raise PartNotFound(
        f"'{reference}' is neither a recipe file nor a known recipe",
        fix=f"{hint}known: {', '.join(sorted(recipes))}",
    )


def _changes_of(path: Path) -> list[str]:
    """Dotted keys that a recipe file changes in the stages of its base."""
    values = read_file(path)
    stages = values.get("stages")
    if "base" not in values or not isinstance(stages, dict):
        return []
    keys: list[str] = []

    def walk(node: Any, key: str) -> None:
        if isinstance(node, dict) and node:
            for name, value in node.items():
                walk(value, f"{key}.{name}")
        else:
            keys.append(key)

    walk(stages, "stages")
    return keys


def _refuse_idle(recipe: Recipe, keys: Iterable[str], where: str | None = None) -> None:
    """Refuse changes of settings that another setting of the same stage makes idle.

    Raises:
        ConfigError: names the setting that counts instead.
    """
    numbered = {str(number): stage for number, stage in enumerate(recipe.stages)}
    stages = {**numbered, **{stage.name: stage for stage in recipe.stages}}
    for key in keys:
        room, _, rest = key.partition(".")
        name, _, rest = rest.partition(".")
        if room != "stages" or name not in stages:
            continue
        idle = _idle(stages[name], rest, f"stages.{name}")
        if idle is not None:
            what, fix = idle
            raise ConfigError(what, where=f"{where}: {key}" if where else key, fix=fix)


def _idle(stage: Stage, key: str, place: str) -> tuple[str, str] | None:
    """What makes a key of a stage idle, and what to set instead; None where it counts."""
    own = [part for part, how in stage.learn.items() if how.learning_rate is not None]
    if key == "learning_rate" and len(own) == len(stage.learn) and not stage.objective.learns:
        rates = ", ".join(f"{place}.learn.{part}.learning_rate" for part in own)
        return (
            f"every part of this stage names its own rate ({', '.join(own)}), so the stage's "
            "changes nothing",
            f"set {rates}; null takes the stage's",
        )
    if key == "num_epochs" and stage.num_steps is not None and stage.num_epochs is not None:
        return (
            f"num_steps is {stage.num_steps} and wins over num_epochs",
            f"set {place}.num_steps=null too",
        )
    words = key.split(".")
    if len(words) > 2 and words[0] == "learn" and words[2] == "lora":
        how = stage.learn.get(words[1])
        if how is not None and how.how != "lora":
            return (
                f"the {words[1]} learns in full, without adapters",
                f"set {place}.learn.{words[1]}.how=lora too",
            )
    return None


CHAINED = "recipe:"
"""Weights named so are those that another recipe ends with."""


def chained(recipe: Recipe) -> dict[str, str]:
    """Recipes that must be run before this one, by the key of the model that takes their weights.

    `model.connector.weights=recipe:blip2-small-stage1` gives {"connector.weights":
    "blip2-small-stage1"}.
    """
    found: dict[str, str] = {}

    def walk(values: Any, keys: tuple[str, ...]) -> None:
        if isinstance(values, dict):
            for key, value in values.items():
                walk(value, (*keys, key))
        elif isinstance(values, str) and keys[-1] == "weights" and values.startswith(CHAINED):
            found[".".join(keys)] = values.removeprefix(CHAINED)

    walk(recipe.model.to_dict(), ())
    return found


def _read(path: Path, readers: tuple[Path, ...]) -> dict[str, Any]:
    """A recipe file over its base, data paths absolute."""
    path = path.absolute()
    where = f"{path}: base"
    if path in readers:
        raise ConfigError("the recipe is its own base", where=where)
    values = read_file(path)
    values.pop("fingerprint", None)  # of the tree that `diptych show --json` printed
    own = values.get("model")
    base = values.pop("base", None)
    if base is not None:
        if not isinstance(base, str):
            raise ConfigError("base must name a recipe", where=where)
        file = path.parent / base
        if file.is_file():
            below = _read(file, (*readers, path))
        else:
            below = load(base).to_dict()
        values = _merge(below, values, ())
    values = _absolute(values, path.parent)
    if isinstance(own, dict) and own.keys() <= {"weights", "revision"}:
        if isinstance(own.get("weights"), str):
            whole = going_on_from(values["model"]["weights"], own.get("revision"))
            values["model"] = whole.to_dict()
    return values


def going_on_from(weights: str, revision: str | None = None) -> Any:
    """The composition of a model that a recipe goes on from, whole, as what stands under `model`.

    Read from configs; of a published model nothing else is fetched.

    Raises:
        ConfigError: another recipe is named, which may not have been run yet; or a model that is
            not read whole.
        WeightsNotFound, CheckpointError: there is no such model.
    """
    from diptych.convert.published import described
    from diptych.model.folder import composition, model_folder
    from diptych.model.weights import locate, of_a_model

    if weights.startswith(CHAINED):
        raise ConfigError(
            "a recipe has no composition before it has run",
            where="model.weights",
            fix="run it first and name its folder; parts alone may name recipes",
        )
    place = Path(weights).expanduser()
    if of_a_model(place) or (not place.is_dir() and weights.startswith((".", "/", "~"))):
        whole = composition(model_folder(weights))
    elif of_a_model(folder := locate(weights, revision=revision, described=True)):
        whole = composition(folder)
    else:
        whole = described(weights, revision)
    # Adapters are merged before training goes on.
    update: dict[str, Any] = {"weights": weights, "revision": revision, "adapters": {}}
    return whole.model_copy(update=update)


def _merge(old: Any, new: Any, keys: tuple[str, ...]) -> Any:
    if isinstance(old, dict) and isinstance(new, Mapping):
        if keys and "name" in new and "name" in old and new["name"] != old["name"]:
            return dict(new)  # another part altogether: none of the old one's settings fit
        merged = dict(old)
        for key, value in new.items():
            merged[key] = _merge(old.get(key), value, (*keys, str(key)))
        return merged
    if isinstance(old, list) and isinstance(new, Mapping):
        names = [i.get("name") if isinstance(i, dict) else None for i in old]
        merged_list = list(old)
        for name, value in new.items():
            if name not in names:
                raise ConfigError(
                    f"the base has no item named '{name}'",
                    where=".".join(keys),
                    fix=f"its items: {', '.join(str(n) for n in names)}; a list replaces them all",
                )
            place = names.index(name)
            merged_list[place] = _merge(old[place], value, (*keys, name))
        return merged_list
    return new


def _absolute(values: Any, folder: Path) -> Any:
    """Data paths in a recipe file are relative to that file."""
    if isinstance(values, dict):
        return {
            key: _placed(value, folder)
            if isinstance(value, str)
            and (
                key in ("path", "images", "choices")
                # Weights may be hub names; what is a folder beside the file is meant as one. But
                # `tokenizer: data` is always one that is trained, and runs have a folder data.
                or (key == "weights" and value and (folder / value).is_dir())
                or (
                    key == "tokenizer"
                    and value not in ("", TRAINED_ON_DATA)
                    and (folder / value).is_dir()
                )
            )
            else _absolute(value, folder)
            for key, value in values.items()
        }
    if isinstance(values, list):
        return [_absolute(v, folder) for v in values]
    return values


def _placed(path: str, folder: Path) -> str:
    if "://" in path:
        return path
    # A pair of files (VQA) is written with a comma; each stands for itself.
    files = (os.path.join(folder, os.path.expanduser(p)) for p in path.split(","))
    return ",".join(os.path.abspath(p) for p in files)
