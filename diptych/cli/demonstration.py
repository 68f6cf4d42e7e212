"""What `diptych report embeddings` and `demonstration` do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diptych.cli.run import compose, run_recipe
from diptych.embed import atlas
from diptych.embed.embedder import EmbedConfig, Embedder
from diptych.embed.job import JobConfig, embed
from diptych.embed.vector_index import open_vectors
from diptych.errors import ConfigError, InputError
from diptych.eval.result import Result
from diptych.model.folder import save_model
from diptych.model.opened import open_model
from diptych.progress import Progress
from diptych.recipe import load
from diptych.report.embeddings import write_embeddings
from diptych.train.claim import working_in

RECIPE = "blip2-demonstration"


def compare_places(
    before: str,
    after: str,
    out: Path,
    *,
    num: int,
    field: str | None,
    method: str,
    seed: int,
    names: tuple[str, str],
    extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Compare the vectors of two places; returns what `--json` prints.

    Raises:
        ConfigError: no such method, or no such field.
        DataError: the two share too few rows.
    """
    if method not in ("tsne", "umap"):
        raise ConfigError(f"there is no map '{method}'", where="--method", fix="tsne or umap")
    sides = [open_vectors(before), open_vectors(after)]
    try:
        ids = atlas.sample(sides[0].ids(), sides[1].ids(), num, seed)
        taken = [side.take(ids) for side in sides]
        rows = taken[1][1]
        roots = sides[1].roots
    finally:
        for side in sides:
            side.close()
    if field is not None and not any(field in row for row in rows):
        raise ConfigError(
            f"the rows have no field '{field}'",
            where="--field",
            fix="keep it when embedding: `diptych embed ... --field NAME`",
        )
    groups = [row.get(field) for row in rows] if field is not None else None
    drawn = atlas.draw(taken[0][0], taken[1][0], groups, method=method, seed=seed)  # type: ignore[arg-type]
    shown = [
        {
            "id": key,
            "text": row.get("text"),
            "image": row.get("image"),
            "root": roots.get(str(row.get("data")), ""),
        }
        for key, row in zip(ids, rows, strict=True)
    ]
    page = write_embeddings(out, drawn, shown, names=names, field=field, extra=extra)
    return {
        "rows": len(ids),
        "dim": int(taken[1][0].shape[1]),
        "figures": drawn["figures"],
        "neighbours_kept": drawn["neighbours"]["share_kept"],
        "page": str(page),
    }


def demonstrate(
    pictures: Path,
    out: Path,
    *,
    num: int,
    field: str | None,
    method: str,
    overrides: list[str],
    seed: int,
    precision: str | None = None,
) -> dict[str, Any]:
    """Train the demonstration's recipe, embed before and after, compare; returns the figures.

    Raises:
        InputError: `pictures` is no corpus of `diptych data pictures`.
        RunTaken: `out` holds a demonstration of other settings, or another process works in it.
    """
    train, test = pictures / "train.jsonl", pictures / "test.jsonl"
    if not train.is_file() or not test.is_file():
        raise InputError(
            "the folder has no train.jsonl and test.jsonl",
            where=str(pictures),
            fix="make it with `diptych data pictures OUT`",
        )
    recipe = load(RECIPE).override(
        [
            f"stages.represent.data=[{{path: '{train.resolve()}'}}]",
            f"evaluation.data.path={test.resolve()}",
            f"seed={seed}",
            *overrides,
        ]
    )
    with working_in(out):
        progress = Progress(out / "demonstration.log")
        run = out / "run"
        run_recipe(recipe, run, progress=progress, precision=precision)
        models = {"before": out / "before" / "model", "after": run / "model"}
        if not (models["before"] / "config.json").is_file():
            save_model(compose(recipe, run), models["before"])
        settings = EmbedConfig(what="multimodal", space="states", pool="mean")
        for name, folder in models.items():
            embedder = Embedder(open_model(folder), settings, str(folder.resolve()))
            place = out / name / "vectors"
            job = JobConfig(
                to=(f"parquet:{place}",), state=place / "_job", limit=num,
                fields=(field,) if field else (),
            )  # fmt: skip
            embed(embedder, str(train), job, progress=progress)
        scores = [Result.load(run / "eval" / name) for name in models]
        recall = [s.score for s in scores]
        found = compare_places(
            f"parquet:{out / 'before' / 'vectors'}", f"parquet:{out / 'after' / 'vectors'}",
            out / "page", num=num, field=field, method=method, seed=seed, names=("before", "after"),
            extra={"Held-out pairs, recall@1": recall},
        )  # fmt: skip
        return {**found, "recall@1": recall, "steps": recipe.stages[0].num_steps, "run": str(run)}
