"""SQL over the Parquet half of the feature store, with DuckDB.

Views of a folder of vectors:

    vectors    every entity once (of each version), with its newest vector
    history    every row that was ever written
    "image-0123456789ab"   the newest of one version, when there are several

Columns: id, event_time, vector, scale (int8 only), image, text, kept fields, and the partition:
fingerprint, what, data. Vectors are arrays (FLOAT[512]) when all have one width, else lists; one
of zeros, as earlier versions wrote, is NULL: without a cosine it would come first in every order.

Ids are text, and a column of another file that is compared with them is read as text, whatever its
values look like (`diptych.embed.files_as_text`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diptych.embed.files_as_text import files_as_text
from diptych.errors import ConfigError, DataError, MissingExtra
from diptych.staging import replacing


def connect(folder: Path) -> Any:
    """A DuckDB connection with the views of a folder.

    Raises:
        MissingExtra: DuckDB is not installed.
        DataError: the folder has no vectors, or a file of it is damaged.
    """
    duckdb = _duckdb()
    versions = sorted(
        (p.name.partition("=")[2], p.parent.name.partition("=")[2])
        for p in folder.glob("fingerprint=*/what=*")
        if any(p.glob("data=*/*.parquet"))
    )
    if not versions:
        raise DataError(
            "there are no vectors in this folder",
            where=str(folder),
            fix="write some with `diptych embed ... --to parquet:FOLDER`, or name another --store",
        )
    connection = duckdb.connect()
    files = [_files(folder / f"fingerprint={mark}" / f"what={what}") for what, mark in versions]
    try:
        widths = [_width(connection, one) for one in files]
    except duckdb.Error as error:
        connection.close()
        raise DataError(
            f"a file cannot be read: {error}",
            where=str(folder),
            fix="write it again: the same `diptych embed` command with --verify",
        ) from error
    pairs = list(zip(files, widths, strict=True))
    parts = [_with_arrays(one, width) for one, width in pairs]
    alike = parts if len(set(widths)) == 1 else [_with_arrays(f, w and 0) for f, w in pairs]
    every = " union all by name ".join(f"select * from {part}" for part in alike)
    connection.execute(f"create view history as {every}")
    connection.execute(f"create view vectors as {_newest('history')}")
    if len(versions) > 1:
        for (what, mark), part in zip(versions, parts, strict=True):
            connection.execute(f'create view "{what}-{mark}" as {_newest(part)}')
    return connection


def _duckdb() -> Any:
    try:
        import duckdb
    except ImportError:
        raise MissingExtra("SQL needs DuckDB", fix="pip install 'diptych[query]'") from None
    return duckdb


def _files(folder: Path) -> str:
    # By name: a pattern would read brackets in a folder's name as its own.
    names = (str(file) for file in sorted(folder.resolve().glob("data=*/*.parquet")))
    listed = ", ".join("'" + name.replace("'", "''") + "'" for name in names)
    # Fingerprints of digits alone are text too.
    options = "hive_partitioning = true, hive_types_autocast = false, union_by_name = true"
    return f"read_parquet([{listed}], {options})"


def _width(connection: Any, files: str) -> int | None:
    """Numbers of each vector of a version; None of matrices."""
    kind = str(connection.execute(f"describe select vector from {files}").fetchall()[0][1])
    if kind.count("[") > 1:
        return None
    found = connection.execute(f"select len(vector) from {files} limit 1").fetchall()
    return int(found[0][0]) if found else 0


def _with_arrays(files: str, width: int | None) -> str:
    """A version's rows with vectors as arrays; with a width of 0 as lists."""
    if width is None:
        return files
    kind, product = (f"FLOAT[{width}]", "array") if width else ("FLOAT[]", "list")
    vector = f"vector::{kind}"
    # In DuckDB, NaN is above every number.
    square = f"{product}_inner_product({vector}, {vector})"
    has_direction = f"{square} > 0 and {square} < 'infinity'::FLOAT"
    return (
        f"(select * replace (case when {has_direction} then {vector} end as vector) from {files})"
    )


def _newest(source: str) -> str:
    rank = "row_number() over (partition by fingerprint, what, id order by event_time desc)"
    return f"select * from {source} qualify {rank} = 1"


def query(folder: Path, sql: str, *, out: Path | None = None, limit: int = 1000) -> dict[str, Any]:
    """Run one statement.

    Args:
        out: write the whole result here: .parquet, .csv or .json, by its ending.
        limit: rows that are returned at most; `more` says whether there are others.

    Returns:
        `columns`, `rows`, `more`; with `out` the number of rows instead.

    Raises:
        DataError: the folder has no vectors.
        ConfigError: DuckDB does not understand or cannot do it; its words are in the message.
    """
    duckdb = _duckdb()
    connection = connect(folder)
    try:
        sql = files_as_text(connection, sql)
        if out is None:
            found = connection.execute(sql)
            rows = found.fetchmany(limit + 1)
            columns = [column[0] for column in found.description or []]
            return {
                "columns": columns,
                "rows": [list(row) for row in rows[:limit]],
                "more": len(rows) > limit,
            }
        kind = {".parquet": "parquet", ".csv": "csv", ".json": "json"}.get(out.suffix.lower())
        if kind is None:
            raise ConfigError(
                f"'{out.name}' has no known ending", where="--out", fix=".parquet, .csv or .json"
            )
        with replacing(out) as staged:
            relation = connection.sql(sql)
            if relation is None:
                raise ConfigError("there is no result to write", where="--out", fix="give a SELECT")
            relation.create_view("result")
            target = str(staged).replace("'", "''")
            count = connection.execute(
                f"copy (select * from result) to '{target}' (format {kind})"
            ).fetchone()
        return {"rows": int(count[0]), "out": str(out)}
    except duckdb.Error as error:
        raise ConfigError(
            str(error).strip(), where="the query", fix=_way_out(connection, error)
        ) from error
    finally:
        connection.close()


def _way_out(connection: Any, error: Exception) -> str | None:
    kind = type(error).__name__
    if kind == "CatalogException":
        tables = [row[0] for row in connection.execute("show tables").fetchall()]
        return f"tables are {', '.join(tables)}; files join by path: 'sales.csv'"
    if kind == "BinderException":
        columns = [row[0] for row in connection.execute("describe vectors").fetchall()]
        kept = "a field of the data is kept with `diptych embed ... --field NAME`"
        return f"vectors has {', '.join(columns)}; {kept}"
    return None
