"""`diptych embed`: vectors of a whole data set."""

from __future__ import annotations

import hashlib
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from diptych.cli.shell import Debug, Device, Failed, Format, Images, Json, command, err, out


@command
def embed(
    model: Annotated[str, typer.Argument(help="Run or model folder.")],
    data: Annotated[str, typer.Argument(help="File, folder, shards or URL.")],
    to: Annotated[
        list[str],
        typer.Option(
            metavar="PLACE",
            help="parquet:OUT, lance:OUT, redis://HOST/GROUP or sagemaker:GROUP; repeatable.",
        ),
    ],
    what: Annotated[str, typer.Option(help="image, text or multimodal.")] = "image",
    space: Annotated[
        str, typer.Option(help="shared (what the model compares by) or states.")
    ] = "shared",
    pool: Annotated[str, typer.Option(help="mean, cls, max, or none (a matrix a row).")] = "mean",
    layer: Annotated[int, typer.Option(help="Hidden state of a language model.")] = -1,
    normalize: Annotated[bool, typer.Option(help="Vectors of length one.")] = True,
    dtype: Annotated[str, typer.Option(help="float32, float16 or int8.")] = "float32",
    precision: Annotated[
        str,
        typer.Option(
            help="float32, bf16, or auto: bf16 where it is faster here and the vectors' cosine to "
            "float32 stays above 0.9995, measured on the first rows."
        ),
    ] = "float32",
    batch_size: Annotated[int, typer.Option(min=1, help="Rows computed at once.")] = 32,
    shard_rows: Annotated[int, typer.Option(min=1, help="Rows of a file, and of a commit.")] = 4096,
    field: Annotated[
        list[str] | None, typer.Option(help="Field of the rows to keep; may be repeated.")
    ] = None,
    images: Images = None,
    format: Format = None,
    state: Annotated[
        Path | None,
        typer.Option(help="Folder for manifest and rejects; default: OUT/_job, or embed-jobs."),
    ] = None,
    engine: Annotated[str, typer.Option(help="local, or ray (a cluster: RAY_ADDRESS).")] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads; with ray, copies of the model.")
    ] = None,
    verify: Annotated[
        bool, typer.Option(help="Look whether all written shards are whole; repair.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Write every row again, also what is there.")
    ] = False,
    device: Device = None,
    patience_seconds: Annotated[
        float, typer.Option(min=0, help="How long to wait for a place that has gone away.")
    ] = 300.0,
    event_time_ns: Annotated[
        int | None, typer.Option(help="When the vectors are true; default: now.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many rows.")] = None,
    since: Annotated[
        datetime | None, typer.Option(help="Leave out rows from before this time (UTC).")
    ] = None,
    time_field: Annotated[
        str | None,
        typer.Option(help="Field that says when a row is from; default: its picture's file."),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> dict[str, Any] | Failed:
    """One vector for every row of a data set, into Parquet, LanceDB, Redis, SageMaker.

    Rows that are there already are skipped; a job that was stopped or killed goes on where it
    was, and no key is there twice. Rows that cannot be read are listed with their reasons; exits
    1 when that is all of them.

    Examples:

        diptych embed runs/clip-small-0123456789ab pictures/train.jsonl --to parquet:vectors

        diptych embed mine items.jsonl --what multimodal --space states --to parquet:vectors --to redis://localhost/items
    """
    from diptych.machine import share_one_heap

    share_one_heap()  # before anything below starts a thread
    from diptych.convert.published import ready
    from diptych.embed.embedder import EmbedConfig, Embedder
    from diptych.embed.job import JobConfig, aware
    from diptych.embed.job import embed as run
    from diptych.embed.pace import first_rows, settled
    from diptych.model.opened import open_model
    from diptych.progress import Progress

    auto = precision == "auto"
    precision = "float32" if precision in ("auto", "fp32") else precision
    config = EmbedConfig.from_dict(
        {
            "what": what, "space": space, "pool": pool, "layer": layer, "normalize": normalize,
            "dtype": dtype, "precision": precision, "batch_size": batch_size,
        }
    )  # fmt: skip
    name, model = model, ready(model)
    # A cluster's nodes open what every one of them can read; the vectors name what a person named.
    named = model if engine == "ray" else name
    source = str(Path(named).resolve()) if Path(named).exists() else named
    embedder = Embedder(open_model(model, device), config, source)
    pace = None
    if auto:
        rows = first_rows(data, what, format=format, images=images)
        pace = settled(embedder, rows, auto=True)
        embedder = embedder.in_precision(pace.precision)
    place = state or _state(to, embedder.fingerprint, data)
    job = JobConfig(
        to=tuple(to), state=place, shard_rows=shard_rows, engine=engine, workers=workers,
        fields=tuple(field or ()), verify=verify, again=again, patience_seconds=patience_seconds,
        event_time_ns=event_time_ns, limit=limit,
        since=aware(since) if since else None, time_field=time_field, pace=pace,
    )  # fmt: skip
    summary = run(
        embedder, data, job, progress=Progress(place / "embed.log"), format=format, images=images
    )
    if not json:
        out.print(
            f"{summary['written']:,} vectors written in {summary['shards']} shards, "
            f"{summary['skipped']:,} were there, {summary['rejected']:,} rows rejected"
            + (f" (reasons in {place / 'rejects'})" if summary["rejected"] else "")
        )
        rate = summary["written"] / summary["seconds"]
        out.print(
            f"fingerprint {summary['fingerprint']}, {summary['seconds']:.1f} s, {rate:.1f} rows/s"
        )
    if summary["rejected"] and not summary["written"] + summary["skipped"]:
        if not json:
            err.print(f"no row could be embedded; the first: {_first_reason(place / 'rejects')}",
                      highlight=False, markup=False)  # fmt: skip
        return Failed(summary)
    return summary


def _first_reason(rejects: Path) -> str:
    import json

    for file in sorted(rejects.glob("*.jsonl")):
        row = json.loads(file.read_text(encoding="utf-8").splitlines()[0])
        return f"{row.get('where') or row.get('id')}: {row.get('message')}"
    return "no reason was kept"


def _state(to: list[str], fingerprint: str, data: str) -> Path:
    """Beside the first Parquet folder, else in the working folder by place; one a data set."""
    stem = "".join(c if c.isalnum() else "-" for c in Path(data).name)[:40]
    folders = [t.partition(":")[2] for t in to if t.startswith("parquet:")]
    if folders:
        return Path(folders[0]).expanduser() / "_job" / f"{stem}-{fingerprint}"
    from diptych.embed.sink import settled

    places = hashlib.sha256("\n".join(sorted(map(settled, to))).encode()).hexdigest()[:6]
    return Path("embed-jobs") / f"{stem}-{fingerprint}-{places}"
