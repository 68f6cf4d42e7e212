"""Files in a statement, with the columns that ids are compared with read as text.

DuckDB guesses the types of a CSV's columns: ids of digits become numbers, the ids of vectors are
then turned into numbers too, and `007` meets `7`, or a conversion fails. Here a file whose column
is compared with text of `vectors` becomes a view in which that column is text; all others stay as
guessed. The statement is DuckDB's own parse of it (`json_serialize_sql`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from diptych.errors import ConfigError

_CSV = re.compile(r"\.(csv|tsv)(\.gz|\.zst)?$", re.IGNORECASE)
_JSON = re.compile(r"\.(json|jsonl|ndjson)(\.gz|\.zst)?$", re.IGNORECASE)
_QUOTED = re.compile(rb"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"")
_TYPED = {"types", "dtypes", "column_types", "columns", "all_varchar"}
"""Settings by which the user says the types."""
# How a plan shows that ids were turned into something else to be compared.
_CAST = r"CAST\((?:\w+\.)?id AS (?!VARCHAR)\w+\)"
_COMPARED = re.compile(rf"{_CAST}\s*(?:=|IN\b)|=\s*{_CAST}", re.IGNORECASE)


@dataclass(frozen=True)
class _Table:
    """A file, or a function that reads one, where the statement names it.

    Attributes:
        start, end: its place in the statement, in bytes.
        text: the statement there.
        name: what its columns are known by when it has no alias.
        path: the file; empty for a function.
    """

    start: int
    end: int
    text: str
    name: str
    path: str


def files_as_text(connection: Any, sql: str) -> str:
    """The statement, reading views in place of such files; the views are made.

    Raises:
        ConfigError: ids are compared with something that is no text, other than by an explicit
            cast.
    """
    import duckdb

    try:
        parsed = json.loads(connection.execute("select json_serialize_sql(?)", [sql]).fetchone()[0])
    except duckdb.Error:
        return sql
    if parsed.get("error"):  # no SELECT, or no SQL: executing it says what is wrong
        return sql
    nodes = list(_nodes(parsed))
    # Names of columns count in small letters, as in SQL.
    texts = {n.lower() for n, kind in _columns(connection, "vectors") if kind == "VARCHAR"}
    compared = {"id"} | _compared(nodes, texts)
    data = sql.encode()
    for number, table in enumerate(
        sorted(_tables(connection, nodes, data), key=lambda t: -t.start)
    ):
        view = _view(connection, table, compared, f"file {number}")
        if view is not None:
            data = data[: table.start] + view.encode() + data[table.end :]
    sql = data.decode()
    _refuse_guesses(connection, sql, nodes)
    return sql


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _nodes(inner)


def _columns(connection: Any, source: str) -> list[tuple[str, str]]:
    rows = connection.execute(f"describe select * from {source}").fetchall()
    return [(str(row[0]), str(row[1])) for row in rows]


def _compared(nodes: list[dict[str, Any]], texts: set[str]) -> set[str]:
    """Names of columns that are compared with a column of text."""
    found: set[str] = set()
    for node in nodes:
        if node.get("ref_type") == "NATURAL":
            found |= texts
        found |= {str(n).lower() for n in node.get("using_columns") or ()} & texts
        if node.get("type") in ("COMPARE_EQUAL", "COMPARE_NOT_DISTINCT_FROM"):
            sides = [_name(node.get("left")), _name(node.get("right"))]
        elif node.get("class") == "SUBQUERY" and node.get("child"):
            inner = [n for n in _nodes(node.get("subquery")) if "select_list" in n][:1]
            sides = [_name(node["child"]), *(_name(i) for n in inner for i in n["select_list"][:1])]
        else:
            continue
        if texts & set(sides):
            found |= {side for side in sides if side}
    return found


def _name(expression: Any) -> str:
    """The column that an expression is, or casts, in small letters; else nothing."""
    while isinstance(expression, dict) and expression.get("class") == "CAST":
        expression = expression.get("child")
    names = expression.get("column_names") if isinstance(expression, dict) else None
    return str(names[-1]).lower() if names else ""


def _tables(connection: Any, nodes: list[dict[str, Any]], data: bytes) -> Iterator[_Table]:
    own = {row[0] for row in connection.execute("show tables").fetchall()}
    for node in nodes:
        start = node.get("query_location", -1)
        if not 0 <= start < len(data):  # DuckDB has no place for it
            continue
        if node.get("type") == "BASE_TABLE" and not node.get("schema_name"):
            path = str(node.get("table_name"))
            end = _quoted_end(data, start)
            if path not in own and end is not None:
                name = re.split(r"[/\\]", path)[-1].split(".")[0]
                yield _Table(start, end, data[start:end].decode(), name, path)
        elif node.get("type") == "TABLE_FUNCTION":
            function = node["function"]
            settings = {_name(n.get("left")) for n in _nodes(function.get("arguments", []))}
            settings |= {n.get("name") for n in function.get("arguments", [])}
            end = _call_end(data, start)
            if str(function.get("function_name")).startswith("read_") and end is not None:
                if not settings & _TYPED:
                    name = str(function["function_name"])
                    yield _Table(start, end, data[start:end].decode(), name, "")


def _quoted_end(data: bytes, start: int) -> int | None:
    """Where the quoted text that begins here ends; None where none begins."""
    found = _QUOTED.match(data, start)
    return found.end() if found else None


def _call_end(data: bytes, start: int) -> int | None:
    """Where the call of a function that begins here ends."""
    depth, place = 0, start
    while place < len(data):
        if (end := _quoted_end(data, place)) is not None:
            place = end
            continue
        depth += {b"(": 1, b")": -1}.get(data[place : place + 1], 0)
        place += 1
        if data[place - 1 : place] == b")" and depth == 0:
            return place
    return None


def _view(connection: Any, table: _Table, compared: set[str], schema: str) -> str | None:
    """Make a view of the file with those columns as text; None where they are text already."""
    import duckdb

    try:
        columns = _columns(connection, table.text)
    except duckdb.Error:  # executing the statement says what is wrong
        return None
    guessed = {n: kind for n, kind in columns if n.lower() in compared and kind != "VARCHAR"}
    if not guessed:
        return None
    as_text = ", ".join(f"{_literal(name)}: 'VARCHAR'" for name in guessed)
    if table.path and _CSV.search(table.path):
        source = f"select * from read_csv({_literal(table.path)}, types = {{{as_text}}})"
    elif table.name in ("read_csv", "read_csv_auto"):
        source = f"select * from {table.text[:-1]}, types = {{{as_text}}})"
    elif table.path and _JSON.search(table.path):
        every = ", ".join(
            f"{_literal(name)}: {_literal('VARCHAR' if name in guessed else kind)}"
            for name, kind in columns
        )
        source = f"select * from read_json({_literal(table.path)}, columns = {{{every}}})"
    else:
        casts = ", ".join(
            f"{_quoted(name)}->>'$' as {_quoted(name)}"
            if kind == "JSON"
            else f"{_quoted(name)}::VARCHAR as {_quoted(name)}"
            for name, kind in guessed.items()
        )
        source = f"select * replace ({casts}) from {table.text}"
    view = f"{_quoted(schema)}.{_quoted(table.name)}"
    connection.execute(f"create schema {_quoted(schema)}")
    connection.execute(f"create view {view} as {source}")
    return view


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _refuse_guesses(connection: Any, sql: str, nodes: list[dict[str, Any]]) -> None:
    import duckdb

    if any(n.get("class") == "CAST" and _name(n) == "id" for n in nodes):
        return  # the user says so
    try:
        plan = connection.execute(f"explain (format json) {sql}").fetchall()
    except duckdb.Error:  # executing the statement says what is wrong
        return
    if found := _COMPARED.search(str(plan[0][1])):
        raise ConfigError(
            f"an id would be compared as a number or a date ({found[0]}), so that 007 is 7",
            where="the query",
            fix="ids are text: write id = '7', or make the other side text (s.key::VARCHAR, "
            "read_csv('FILE', types = {'key': 'VARCHAR'}))",
        )
