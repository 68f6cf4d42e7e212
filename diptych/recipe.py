"""Recipe = model + stages + benchmarks + seed: one frozen tree that is a run.

A recipe comes from a function in a family file, from a YAML or JSON file, or from the
`recipe.json` of an earlier run. A file may start from another recipe with `base: NAME` and
give only what differs; items of lists are matched by their `name`.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from diptych import parts
from diptych.config import Config, read_file
from diptych.errors import ConfigError, PartNotFound
from diptych.model.vlm import VlmConfig
from diptych.train.stage import DataConfig, Stage


class EvaluationConfig(Config):
    """How the model is measured before and after training."""

    data: DataConfig
    """Held-out questions."""
    metric: str = "exact"
    """A file in eval/metrics: exact, relaxed, vqa_official ..."""
    how: Literal["generate", "likelihood"] = "generate"
    """Write an answer, or choose the likeliest candidate."""
    max_new_tokens: int = Field(default=32, ge=1)
    """Longest answer."""
    batch_size: int = Field(default=32, ge=1)
    """Questions asked at once."""
    limit: int | None = Field(default=None, ge=1)
    """At most so many questions, drawn with the recipe's seed; null takes all."""
    before: bool = True
    """Measure before training too; false saves time."""
    choices: str | None = None
    """A multiple-choice file in MMLU's CSV form, for text-only ability before and after."""


class Recipe(Config):
    """Everything that determines a run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run folder, before its fingerprint."""
    model: VlmConfig
    """What is composed."""
    stages: tuple[Stage, ...] = Field(min_length=1)
    """What it learns, in order."""
    evaluation: EvaluationConfig | None = None
    """How it is measured; null trains only."""
    seed: int = 0
    """Of initial weights, data order and everything random."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Experiment trackers that Accelerate knows: tensorboard, wandb, mlflow."""


def named() -> dict[str, Callable[[], Recipe]]:
    """All recipes of the families by name; debug ones included."""
    found = {}
    for family in parts.names("families"):
        module = parts.find("families", family)
        for name, function in vars(module).items():
            returns = getattr(function, "__annotations__", {}).get("return")
            if inspect.isfunction(function) and returns in ("Recipe", Recipe):
                if function.__module__ == module.__name__:
                    found[name.replace("_", "-")] = function
    return found


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
        values = _with_base(read_file(path), str(path))
        return Recipe.from_dict(_absolute(values, path.parent), where=str(path))
    recipes = named()
    name = reference.replace("_", "-")
    if name in recipes:
        return recipes[name]()
    close = difflib.get_close_matches(name, recipes, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    raise PartNotFound(
        f"'{reference}' is neither a recipe file nor a known recipe",
        fix=f"{hint}known: {', '.join(sorted(recipes))}",
    )


def _with_base(values: dict[str, Any], where: str) -> dict[str, Any]:
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError("base must name a recipe", where=f"{where}: base")
    return _merge(load(base).to_dict(), values, where)


def _merge(old: Any, new: Any, where: str) -> Any:
    if isinstance(old, dict) and isinstance(new, Mapping):
        if "name" in new and "name" in old and new["name"] != old["name"] and where.count(":"):
            return dict(new)  # another part altogether: none of the old one's settings fit
        merged = dict(old)
        for key, value in new.items():
            merged[key] = _merge(old.get(key), value, f"{where}:{key}")
        return merged
    if isinstance(old, list) and isinstance(new, Mapping):
        names = [i.get("name") if isinstance(i, dict) else None for i in old]
        merged_list = list(old)
        for name, value in new.items():
            if name not in names:
                raise ConfigError(
                    f"the base has no item named '{name}'",
                    where=where,
                    fix=f"its items: {', '.join(str(n) for n in names)}; a list replaces them all",
                )
            place = names.index(name)
            merged_list[place] = _merge(old[place], value, f"{where}:{name}")
        return merged_list
    return new


def _absolute(values: Any, folder: Path) -> Any:
    """Data paths in a recipe file are relative to that file."""
    if isinstance(values, dict):
        if isinstance(values.get("path"), str):
            values = dict(values)
            for key in ("path", "images"):
                if isinstance(values.get(key), str) and "://" not in values[key]:
                    values[key] = str((folder / values[key]).resolve())
        return {k: _absolute(v, folder) for k, v in values.items()}
    if isinstance(values, list):
        return [_absolute(v, folder) for v in values]
    return values
