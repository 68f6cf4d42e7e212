"""Which run a folder is for, and whether what a finished run began with is still there."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

from diptych.config import read_file
from diptych.data.checking.index import Index
from diptych.errors import DataChanged, DiptychError, RunTaken
from diptych.model.architecture import Model
from diptych.recipe import Recipe
from diptych.staging import file_hash, write_json
from diptych.train import identity, resume
from diptych.train.claim import hold
from diptych.train.feed import open_index

log = logging.getLogger(__name__)

_PLACES = re.compile(
    r"(stages\.[^.]+\.(data|validation)\.\d+|evaluation\.data|evaluations\.[^.]+\.data)"
    r"\.(path|images)"
)
"""Where data lie, in a recipe's dotted keys. What they hold is compared by content."""
_MADE = ("model", "checkpoints", "eval", "tokenizer", "metrics.jsonl")
"""What a run has made that another recipe must not take for its own."""


def claim(recipe: Recipe, run: Path) -> bool:
    """Note which recipe a run folder is for.

    Returns:
        Whether data lie elsewhere than when the run began; `note` replaces the recipe once they
        have been found to be the same.

    Raises:
        RunTaken: the folder holds another recipe's run.
    """
    file = run / "recipe.json"
    moved = False
    if file.is_file() and any((run / name).exists() for name in _MADE):
        try:
            known = Recipe.from_dict(read_file(file), where=str(file))
        except DiptychError as error:
            raise RunTaken(
                f"the folder holds a run whose recipe this version does not read: {error.what}",
                where=str(file),
                fix="name a new folder",
            ) from None
        moved = bool(hold(run, known.deciding(), recipe.deciding(), passes=_is_place))
    if moved and not any((run / name).exists() for name in ("model", "checkpoints")):
        # Nothing has learned yet, so what was made of the other data is made again.
        for name in ("tokenizer", "eval"):
            shutil.rmtree(run / name, ignore_errors=True)
    if not moved:
        note(recipe, run)
    return moved


def note(recipe: Recipe, run: Path) -> None:
    """Write the recipe into its run folder."""
    write_json(run / "recipe.json", recipe.to_dict())


def _is_place(key: str) -> bool:
    return _PLACES.fullmatch(key) is not None


def check_finished(
    recipe: Recipe,
    run: Path,
    model: Model,
    before: dict[str, tuple[Recipe, Path]],
    moved: bool,
) -> None:
    """Warn where the data of a finished run, or the weights that it began with, changed since.

    Raises:
        DataChanged: the recipe names another place for data, and they are others, or nothing says
            what they were.
    """
    for file in sorted((run / "data").glob("*/index.json")):
        index = Index(file.parent)
        if not moved and not index.is_current:
            log.warning(
                "%s has changed since; to train on it as it is now, give another name= or "
                "remove the run",
                index.files[0][0],
            )
    newest = resume.newest(run / "checkpoints") if moved or before else None
    belongs = resume.position_of(newest).belongs if newest is not None else {}
    now = origins(before)
    for stage in recipe.stages:
        known = belongs.get(stage.name)
        if known is None:
            if moved:
                raise DataChanged(
                    f"nothing says what stage {stage.name} learned from, and the recipe names "
                    "another place for its data",
                    where=str(run),
                    fix="name the place that recipe.json has, or a new run folder",
                )
            continue
        if known["origins"] != now:
            log.warning("what stage %s began with was trained anew since", stage.name)
        if moved:
            data, validation = (
                [open_index(config, stage, run / "data", model) for config in configs]
                for configs in (stage.data, stage.validation)
            )
            identity.check_finished(
                stage.name, known["data"], identity.of_stage(stage, data, validation), run
            )


def origins(before: dict[str, tuple[Recipe, Path]]) -> dict[str, str]:
    """Hashes of the weights that recipes before this one ended with, by key of this one."""
    return {
        f"model.{key}": file_hash(folder / "model" / "model.safetensors")
        for key, (_, folder) in before.items()
    }
