"""`diptych report ...`: pages that are not a training run's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from diptych.cli.shell import Debug, Device, Json, Precision, Set, command, err, out

report_app = typer.Typer(no_args_is_help=True, help="Write pages about runs and vectors.")

Num = Annotated[int, typer.Option(min=3, help="Rows to show at most.")]
Field = Annotated[str | None, typer.Option(help="Field of the rows to colour by.")]
Method = Annotated[str, typer.Option(help="tsne, or umap (pip install umap-learn).")]
Seed = Annotated[int, typer.Option(help="Of the choice of rows and of the map.")]


@report_app.command("run")
@command
def report_run(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    json: Json = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Write a run's report.html anew from its files.

    Example:

        diptych report run runs/mine-0123456789ab
    """
    from diptych.report.page import write

    page = write(run)
    if not json:
        out.print(str(page), highlight=False, markup=False, soft_wrap=True)
    return {"page": str(page)}


@report_app.command("embeddings")
@command
def report_embeddings(
    before: Annotated[str, typer.Argument(metavar="A", help="parquet:FOLDER, lance: or redis:")],
    after: Annotated[str, typer.Argument(metavar="B", help="The same rows from another model.")],
    output: Annotated[Path, typer.Option("--out", help="Folder for the page.")] = Path("maps"),
    num: Num = 2000,
    field: Field = None,
    method: Method = "tsne",
    seed: Seed = 0,
    json: Json = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Compare how two models see the same rows: maps, neighbours that changed, signs of collapse.

    Where a place has several kinds of vectors, name one behind a #.

    Examples:

        diptych report embeddings parquet:before parquet:after --field category

        diptych report embeddings parquet:all#image-0123456789ab parquet:all#image-ba9876543210
    """
    from diptych.cli.demonstration import compare_places

    found = compare_places(
        before, after, output, num=num, field=field, method=method, seed=seed,
        names=("before", "after"),
    )  # fmt: skip
    if not json:
        err.print(f"page: {found['page']}", highlight=False, markup=False)
    return found


@report_app.command("demonstration")
@command
def report_demonstration(
    pictures: Annotated[Path, typer.Argument(help="Folder of `diptych data pictures`.")],
    output: Annotated[Path, typer.Option("--out", help="Folder for everything.")] = Path("demo"),
    num: Num = 2000,
    field: Field = "category",
    method: Method = "tsne",
    set: Set = None,
    seed: Seed = 0,
    device: Device = None,
    precision: Precision = None,
    json: Json = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Fine-tune a Q-Former for 100 steps and show what that does to [2000, 768] vectors.

    The recipe blip2-demonstration, vectors of picture and caption together before and after, and
    the page that compares them. Stopped? The same command goes on.

    Example:

        diptych data pictures pictures && diptych report demonstration pictures
    """
    from diptych.cli.demonstration import demonstrate
    from diptych.train import processes

    with processes.on(device):
        found = demonstrate(
            pictures, output, num=num, field=field, method=method, overrides=set or [], seed=seed,
            precision=precision,
        )  # fmt: skip
    if not json:
        out.print(
            f"{found['rows']:,} vectors of width {found['dim']}; "
            f"recall@1 {found['recall@1'][0]:.1%} before, {found['recall@1'][1]:.1%} after"
        )
        err.print(f"page: {found['page']}", highlight=False, markup=False)
    return found
