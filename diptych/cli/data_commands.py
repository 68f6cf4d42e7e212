"""`diptych data ...`: the commands on data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from diptych.cli.shell import (
    Debug,
    Device,
    Failed,
    Format,
    Images,
    Json,
    Precision,
    command,
    out,
)

data_app = typer.Typer(no_args_is_help=True, help="Check, convert and make data sets.")


@data_app.command("check")
@command
def data_check(
    path: Annotated[str, typer.Argument(help="File, folder, shards or URL.")],
    images: Images = None,
    format: Format = None,
    model: Annotated[
        str | None, typer.Option(help="Model whose tokenizer counts tokens (or its folder).")
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=8, help="Longest sample in tokens (with --model).")
    ] = None,
    fix: Annotated[
        Path | None, typer.Option(help="Write the good rows here and a reject file beside.")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> dict[str, Any] | Failed:
    """Read every row and picture once and name every fault, with its line.

    Exits 1 when something was rejected.

    Examples:

        diptych data check train.json --images photos

        diptych data check train.json --fix good.json
    """
    from diptych.cli.data import check_data

    report, bad = check_data(path, images, format, model, context, fix, show=not json)
    return Failed(report) if bad else report


@data_app.command("convert")
@command
def data_convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="File to read.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="File to write.")],
    to: Annotated[str, typer.Option(help="Format to write.")],
    from_: Annotated[str | None, typer.Option("--from", help="Format to read.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Rewrite a data file in another format; streams, so files may exceed memory.

    Example:

        diptych data convert llava.json messages.jsonl --from llava --to messages
    """
    from diptych.cli.data import convert_data

    return convert_data(source, output, from_, to, show=not json)


@data_app.command("charts")
@command
def data_charts(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    num: Annotated[int, typer.Option(min=1, help="Number of charts.")] = 2000,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    side: Annotated[
        int, typer.Option(min=160, max=2048, help="Nominal side of a picture in pixels.")
    ] = 224,
    working: Annotated[
        bool, typer.Option("--working", help="Training answers show what is looked up for them.")
    ] = False,
    pages: Annotated[
        int, typer.Option(min=0, help="Pictures full of words besides, to learn reading by.")
    ] = 0,
    practice: Annotated[
        bool, typer.Option("--practice", help="Training charts have drills of single look-ups too.")
    ] = False,
    writer: Annotated[
        str | None, typer.Option(help="OpenAI-style endpoint that writes topics and questions.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model name at that endpoint.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Draw a chart-question set: tables, pictures, questions, computed answers.

    Examples:

        diptych data charts charts --num 2000 --seed 0

        diptych data charts charts --num 2000 --working --practice --pages 500

        diptych data charts charts --writer http://localhost:8000/v1 --model mine
    """
    from diptych.cli.data import draw_charts

    return draw_charts(
        output, num, seed, writer, model,
        show=not json, side_pixels=side, working=working, practice=practice, pages=pages,
    )  # fmt: skip


@data_app.command("pictures")
@command
def data_pictures(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    collections: Annotated[
        str | None, typer.Option(help="Comma separated; all by default.")
    ] = None,
    languages: Annotated[str, typer.Option(help="Of the captions, comma separated.")] = "en",
    size: Annotated[int, typer.Option(min=16, max=1024, help="Side in pixels.")] = 128,
    num_test: Annotated[int, typer.Option(min=1, help="Held-out pictures.")] = 500,
    num_validation: Annotated[int, typer.Option(min=0, help="Pictures to decide by.")] = 300,
    seed: Annotated[int, typer.Option(help="Of the split; same seed, same bytes.")] = 0,
    json: Json = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Make a corpus of drawings with captions from packages: emoji, stamps, clip art.

    Fetches some 300 MB through pip, npm and apt, verified and kept. Every row names its licence,
    author and source; pictures that are nearly the same stay on one side of the split.

    Examples:

        diptych data pictures pictures

        diptych data pictures pictures --collections openmoji,fluent --languages en,zh,de
    """
    from diptych.cli.data import make_pictures

    return make_pictures(
        output,
        names=collections.split(",") if collections else None,
        languages=tuple(languages.split(",")),
        size_pixels=size,
        num_test=num_test,
        num_validation=num_validation,
        seed=seed,
        show=not json,
    )


@data_app.command("capfilt")
@command
def data_capfilt(
    noisy: Annotated[str, typer.Argument(help="Noisy pairs of pictures and texts.")],
    clean: Annotated[str, typer.Option(help="Clean pairs to tune on.")],
    model: Annotated[str, typer.Option(help="A captioner: model or run folder.")],
    output: Annotated[Path, typer.Option("--out", help="Folder to write, or to go on in.")],
    images: Images = None,
    clean_images: Annotated[str | None, typer.Option(help="Folder of the clean pictures.")] = None,
    by: Annotated[
        str, typer.Option(help="Score: match, similarity, or both (their mean).")
    ] = "both",
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Least score that is kept; default: found on clean pairs."),
    ] = None,
    epochs: Annotated[
        float, typer.Option(min=0.01, help="Passes over the clean pairs, of both tunings.")
    ] = 2.0,
    learning_rate: Annotated[float, typer.Option(min=1e-9, help="Of both tunings.")] = 1e-4,
    batch_size: Annotated[int, typer.Option(min=2, help="Of both tunings.")] = 64,
    top_p: Annotated[
        float, typer.Option(min=0.01, max=1, help="Of the sampling that writes captions.")
    ] = 0.9,
    max_reject_share: Annotated[
        float, typer.Option(min=0, max=1, help="Of noisy rows that cannot be read, to go on.")
    ] = 0.5,
    seed: Annotated[int, typer.Option(help="Of order and sampling.")] = 0,
    device: Device = None,
    precision: Precision = None,
    json: Json = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Clean noisy captions: a captioner writes new ones, a filter keeps what fits.

    Both are tuned from MODEL on the clean pairs. decisions.jsonl says of every text, written or
    found, where it came from, its score and whether it was kept. Stopped? The same command goes on.

    Example:

        diptych data capfilt web.jsonl --clean coco.json --model runs/blip-small-0123 --out better
    """
    from diptych.cli.capfilt import capfilt
    from diptych.errors import ConfigError
    from diptych.progress import Progress
    from diptych.train import processes

    if by not in ("both", "match", "similarity"):
        raise ConfigError(f"a score is not '{by}'", where="--by", fix="both, match or similarity")

    with processes.on(device):
        summary = capfilt(
            noisy, clean, model, output, images=images, clean_images=clean_images, by=by,  # type: ignore[arg-type]
            threshold=threshold, epochs=epochs, learning_rate=learning_rate, batch_size=batch_size,
            top_p=top_p, max_reject_share=max_reject_share, seed=seed, precision=precision,
            progress=Progress(output / "capfilt.log"),
        )  # fmt: skip
    if not json:
        for kind in ("original", "synthetic"):
            counts = summary[kind]
            out.print(f"{kind}: kept {counts['kept']:,}, dropped {counts['dropped']:,}")
        if summary["rejected"]:
            out.print(f"rows that could not be read: {summary['rejected']:,} (rejects.jsonl)")
        out.print(f"kept from a score of {summary['threshold']:.3f} on")
        out.print(f"written to {output}; its images are in {summary['images']}", soft_wrap=True)
    return summary
