"""`diptych quickstart`: the main job in one command."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

from diptych.cli import pace
from diptych.cli.run import Phases, run_folder, run_recipe
from diptych.cli.shell import err
from diptych.data.checking.index import Index
from diptych.errors import DataError
from diptych.families import quickstart as family
from diptych.progress import Progress
from diptych.staging import put_in_place
from diptych.train.stage import DataConfig

NUM_CHARTS = 5_600
FEW_CHARTS, FEW_MINUTES, FEW_QUESTIONS = 1_400, 6.0, 300
"""For impatient people: in so few minutes most of the time would go into drawing and measuring."""
PAGES_PER_CHART = 1 / 8
"""Pages of words to learn reading by."""
SIDE_PIXELS = 176
"""Somewhat less than the encoder's 192, so that no text is scaled down below what it can read."""
TEST_SHARE = 0.15
CHART_TEST_SHARE = 0.05
MIN_TEST_CHARTS = 600
"""Enough for 600 questions from different charts; the more are trained on."""


def run_quickstart(
    *,
    data: str | None,
    images: str | None,
    runs: Path,
    num: int | None,
    seed: int,
    minutes: float,
    overrides: list[str],
    precision: str | None = None,
) -> dict[str, Any]:
    """Draw (or split) the data, then run the quickstart recipe on it."""
    runs.mkdir(parents=True, exist_ok=True)
    is_short = minutes < FEW_MINUTES
    num = num or (FEW_CHARTS if is_short else NUM_CHARTS)
    size = num / NUM_CHARTS if data is None else 1.0
    effort = pace.effort(runs, minutes, size)
    drawing: dict[str, Any] = {"seconds": 0.0}
    if data is None:
        folder = runs / f"charts-{num}-{seed}"
        drawing = _draw(folder, num, seed)
        recipe = family.on_data(
            "quickstart",
            train=_data(folder / "train.json", folder / "images"),
            captions=_data(folder / "captions_train.json", folder / "images"),
            pages=_data(folder / "pages.json", folder / "images"),
            drills=_data(folder / "drills.json", folder / "images"),
            test=_data(folder / "test.json", folder / "images"),
            seed=seed,
            effort=effort,
            limit=FEW_QUESTIONS if is_short else family.QUESTIONS,
        )
    else:
        train, test, num_train = split_rows(data, images, runs, seed)
        recipe = family.on_data(
            "quickstart-own",
            train=train,
            captions=None,
            test=test,
            num_rows=num_train,
            seed=seed,
            effort=effort,
        )
    recipe = recipe.override(overrides)
    run = run_folder(recipe, runs)
    run.mkdir(parents=True, exist_ok=True)
    err.print(f"run folder: {run}", highlight=False)
    phases = Phases(run)
    if drawing["seconds"] and not phases.phases:
        phases.phases.append({"name": "draw charts", "seconds": drawing["seconds"]})
    return run_recipe(
        recipe, run, progress=Progress(run / "train.log"), phases=phases, precision=precision
    )


def _data(path: Path, images: Path) -> DataConfig:
    return DataConfig(path=str(path.absolute()), images=str(images.absolute()))


def _draw(folder: Path, num: int, seed: int) -> dict[str, Any]:
    """Draw the charts once; a half-drawn folder is drawn anew."""
    from diptych.cli.data import draw_charts

    if (folder / "charts.json").is_file():
        return {**json.loads((folder / "charts.json").read_text()), "seconds": 0.0}
    staged = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(staged, ignore_errors=True)
    summary = draw_charts(
        staged, num, seed, None, None, show=False, side_pixels=SIDE_PIXELS,
        working=True, practice=True, pages=max(12, round(num * PAGES_PER_CHART)),
        test_fraction=max(CHART_TEST_SHARE, min(TEST_SHARE, MIN_TEST_CHARTS / num)),
        validation_fraction=0.02,
    )  # fmt: skip
    put_in_place(staged, folder)
    return summary


def split_rows(
    data: str, images: str | None, runs: Path, seed: int
) -> tuple[DataConfig, DataConfig, int]:
    """Training data, test data, and the number of training rows.

    One picture in so many is held out for the test. Rows about one picture stay on one side,
    so no test picture was trained on.

    Raises:
        DataError: too few pictures to hold any out.
    """
    import random

    from diptych.data.format import write

    index = Index.build(data, runs / "data", images=images)
    index.ledger.enforce(0.01, advice="or allow them in a recipe of your own")
    groups: dict[Any, list[int]] = {}
    for row in range(len(index)):
        sample = index[row]
        key = tuple((i.path, i.span) for i in sample.images()) or sample.id
        groups.setdefault(key, []).append(row)
    keys = list(groups)
    random.Random(seed).shuffle(keys)
    held_out = math.ceil(len(keys) * TEST_SHARE)
    if len(keys) < 8:
        raise DataError(
            f"{len(keys)} pictures are too few to train on some and measure on others",
            where=data,
            fix="give at least 8 pictures with questions",
        )
    folder = runs / f"data-{index.folder.name}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"test": keys[:held_out], "train": keys[held_out:]}
    root = index.root
    configs = {}
    for name, chosen in parts.items():
        rows = sorted(r for k in chosen for r in groups[k])
        path = folder / f"{name}.jsonl"
        write((index[r] for r in rows), str(path), "messages")
        configs[name] = DataConfig(path=str(path.absolute()), images=root)
    return configs["train"], configs["test"], sum(len(groups[k]) for k in parts["train"])
