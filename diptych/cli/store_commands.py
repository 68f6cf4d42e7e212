"""`diptych search`, `query` and `store`: using the vectors that `diptych embed` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from diptych.cli.shell import Debug, Device, Failed, Json, command, err, out

store_app = typer.Typer(no_args_is_help=True, help="Look after a feature store.")

Version = Annotated[
    str | None,
    typer.Option("--vectors", metavar="VERSION", help="Which, where there are several."),
]
Offline = Annotated[str, typer.Argument(help="parquet:FOLDER")]
Online = Annotated[str, typer.Argument(help="redis://HOST/GROUP")]


@command
def search(
    index: Annotated[
        str, typer.Argument(help="parquet:FOLDER, lance:FOLDER or redis://HOST/GROUP.")
    ],
    text: Annotated[str | None, typer.Argument(help="What to look for.")] = None,
    image: Annotated[
        str | None, typer.Option(help="A picture to look for: a file or an address.")
    ] = None,
    k: Annotated[int, typer.Option(min=1, help="How many to find.")] = 10,
    exact: Annotated[
        bool, typer.Option("--exact", help="Compare with every vector, also with an index.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="The model that made the vectors; default: as noted there.")
    ] = None,
    vectors: Version = None,
    page: Annotated[
        Path | None, typer.Option(help="Folder for a page that shows what was found.")
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="Folder of the pictures, for --page, when they moved.")
    ] = None,
    device: Device = None,
    recall: Annotated[
        int | None,
        typer.Option(min=1, help="Measure instead: ask with so many of its own vectors."),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Find the rows nearest to a text or a picture.

    Finds pictures among image vectors, texts among text vectors; the score is a cosine.

    Examples:

        diptych search parquet:vectors "a red umbrella"

        diptych search lance:vectors --image umbrella.png --k 20 --page found

        diptych search lance:vectors --recall 500
    """
    from diptych.data.pixels.image import given
    from diptych.embed import vector_index as indexes
    from diptych.errors import ConfigError

    opened = indexes.open_vectors(index, vectors)
    try:
        if recall is not None:
            measured = indexes.recall(opened, k, recall)
            if not json:
                out.print(
                    f"recall@{k} {measured['recall']:.3f} over {measured['questions']} questions; "
                    f"{1000 * measured['seconds'] / measured['questions']:.2f} ms a question, "
                    f"{1000 * measured['exact_seconds'] / measured['questions']:.2f} ms comparing "
                    "with all"
                )
            return measured
        if (text is None) == (image is None):
            raise ConfigError("look for one thing", fix="give a text, or --image FILE")
        from diptych.convert.published import ready
        from diptych.embed.search import Search

        source = model or opened.about.model
        asked = Search(opened, source and ready(source), device)
        if text is not None:
            hits = asked.text(text, k, exact=exact)
        else:
            shown = given(image)
            hits = asked.image(shown, k, exact=exact)
        found = {
            "question": text if text is not None else image,
            "truncated": asked.cut_tokens,
            "version": opened.about.version,
            "found": [{**h.row, "id": h.id, "score": round(h.score, 6)} for h in hits],
        }
        if page is not None:
            from diptych.report.found import write_found

            roots = {name: images or root for name, root in opened.roots.items()}
            file = None if image is None else _kept(page, shown)
            written = write_found(page, found, roots, asked_image=file)
            found["page"] = str(written)
    finally:
        opened.close()
    if not json:
        # Ids whole, whatever the width: SQL and the feature store are asked by them.
        longest = max((len(hit.id) for hit in hits), default=0)
        for hit in hits:
            words = Text(f"{hit.score:6.3f}  {hit.id:{longest}}  {hit.row.get('text') or ''}")
            is_cut = out.is_terminal and longest + 20 < out.width
            out.print(words, soft_wrap=not is_cut, no_wrap=is_cut, overflow="ellipsis")
        if page is not None:
            err.print(f"page: {found['page']}", highlight=False, markup=False)
    return found


def _kept(page: Path, shown: Any) -> Path:
    """The file of a picture that was looked for; one from an address is kept beside the page."""
    from diptych.data.reading.files import is_url
    from diptych.staging import replacing

    if not is_url(shown.path):
        return Path(shown.path).expanduser()
    file = page / "asked_image"
    with replacing(file) as temporary:
        temporary.write_bytes(shown.data)
    return file


@command
def query(
    sql: Annotated[str, typer.Argument(help="One SQL statement; tables: vectors, history.")],
    store: Annotated[Path, typer.Option(help="Folder of `--to parquet:FOLDER`.")] = Path("vectors"),
    save: Annotated[
        Path | None, typer.Option("--out", help="Write the whole result: .parquet, .csv, .json.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Rows to show.")] = 100,
    json: Json = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Ask the offline half of the feature store in SQL (DuckDB).

    `vectors` has every entity once with its newest vector, `history` every row ever written.
    Files of your own join by path.

    Examples:

        diptych query "select id, text from vectors limit 5"

        diptych query "select v.id, s.sold from vectors v join 'sales.csv' s using (id)" --out a.csv

        diptych query "select text, count(*) from vectors group by text" --store items
    """
    from diptych.embed.query import query as ask

    found = ask(store, sql, out=save, limit=limit)
    if json:
        return found
    if save is not None:
        out.print(f"{found['rows']:,} rows in {found['out']}", highlight=False)
        return found
    table = Table()
    for name in found["columns"]:
        table.add_column(Text(name))
    for row in found["rows"]:
        table.add_row(*(Text(_cell(value)) for value in row))
    out.print(table)
    if found["more"]:
        err.print(f"the first {limit} rows; --limit or --out for more")
    return found


def _cell(value: Any) -> str:
    if isinstance(value, list | tuple) and len(value) > 4:
        return f"[{', '.join(_cell(v) for v in value[:3])}, ... {len(value)}]"
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


@store_app.command("check")
@command
def store_check(
    offline: Offline,
    online: Online,
    vectors: Version = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Write online what is missing, older or different.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> dict[str, Any] | Failed:
    """Compare the offline half with the online half, entity by entity.

    Exits 1 while they differ; what is newer or extra online is never repaired.

    Examples:

        diptych store check parquet:vectors redis://localhost/items

        diptych store check parquet:vectors redis://localhost/items --repair
    """
    from diptych.embed.consistency import compare

    found = compare(offline, online, version=vectors, repair=repair)
    if not json:
        table = Table(box=None, padding=(0, 2, 0, 0))
        meanings = {
            "equal": "the same on both sides",
            "missing": "offline only",
            "older": "the online one is older",
            "newer": "the online one is newer: embed into both with --again",
            "different": "the same time, other numbers or kept fields",
            "extra": "online only",
            "repaired": "written online now",
        }
        for name, meaning in meanings.items():
            some = ", ".join(found.examples.get(name, []))
            table.add_row(name, f"{getattr(found, name):,}", meaning, Text(some))
        out.print(table)
    return found.to_dict() if found.consistent else Failed(found.to_dict())


@store_app.command("versions")
@command
def store_versions(online: Online, json: Json = False, debug: Debug = False) -> dict[str, Any]:
    """List the versions of a group, and which one is live.

    Example:

        diptych store versions redis://localhost/items
    """
    from diptych.embed.store import FeatureStore

    store = FeatureStore(online)
    live, versions = store.version, store.versions()
    if not json:
        for name, about in versions.items():
            mark = "live" if name == live else "    "
            out.print(f"{mark}  {name}  {about.get('dim')} wide", highlight=False, markup=False)
    shown = {n: {k: v for k, v in a.items() if k != "embedder"} for n, a in versions.items()}
    return {"live": live, "versions": shown}


@store_app.command("switch")
@command
def store_switch(
    online: Online,
    version: Annotated[str, typer.Argument(help="As `diptych store versions` lists it.")],
    json: Json = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Let readers see another version, in one step; the same command with the old one goes back.

    Example:

        diptych store switch redis://localhost/items image-0123456789ab
    """
    from diptych.embed.store import FeatureStore

    before = FeatureStore(online).switch(version)
    if not json:
        out.print(f"live: {version} (before: {before or 'none'})", highlight=False)
    return {"live": version, "before": before}
