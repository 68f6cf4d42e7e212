"""JSON lines and arrays that are damaged as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diptych import errors
from tests.e2e.faults.case import CASES, Case, case
from tests.e2e.faulty_inputs import (
    json_lines,
    raw_file,
    row,
    talk,
)

# --- JSON lines ------------------------------------------------------------------------------


def line_case(name: str, line: Any, error: str | None, says: str = "") -> None:
    def build(folder: Path) -> Path:
        return json_lines(folder, [row(1), line, row(3)])

    rejects = {error: 1} if error else {}
    CASES.append(Case(name, build, good=2 if error else 3, rejects=rejects, says=says))


good_line = json.dumps(row(2))
line_case("cut line", good_line[:40], "FormatError", "line 2")
line_case("missing brace", good_line[:-1], "FormatError", "line 2")
line_case("two objects on a line", good_line + good_line, "FormatError", "Extra data")
line_case("single quotes", good_line.replace('"', "'"), "FormatError", "line 2")
line_case("trailing comma", good_line[:-1] + ",}", "FormatError", "line 2")
line_case("plain text", "not JSON at all", "FormatError", "line 2")
line_case("list as row", "[1, 2]", "FormatError", "array")
line_case("number as row", "42", "FormatError", "number")
line_case("null as row", "null", "FormatError", "null")
line_case("NaN", good_line[:-1] + ', "score": NaN}', "FormatError", "NaN")
line_case("infinite number", good_line[:-1] + ', "score": 1e999}', "FormatError", "too large")
line_case("5000 digits", good_line[:-1] + f', "n": {"9" * 5000}}}', "FormatError", "digits")
line_case("repeated key", good_line[:-1] + ', "id": "again"}', "FormatError", "'id' occurs twice")
line_case("nested a hundred thousand deep", "[" * 100_000 + "]" * 100_000, "FormatError", "deep")
line_case(
    "nested deep inside a row",
    good_line[:-1] + ', "x": ' + "[" * 50_000 + "]" * 50_000 + "}",
    "FormatError",
    "deep",
)
line_case(
    "latin-1 bytes", good_line.encode().replace(b"Answer", b"\xe9t\xe9"), "FormatError", "0xe9"
)
line_case("NUL bytes", good_line.encode().replace(b"Answer", b"A\0B"), "FormatError", "NUL")
line_case("only NUL bytes", b"\0" * 50, "FormatError", "NUL")
line_case("U+2028 inside a string", good_line.replace("Answer", "A\u2028B\u0085C"), None)
line_case("carriage return", good_line.encode() + b"\r", None)
line_case(
    "huge line", json.dumps(row(2, conversations=talk("<image>" + "x" * 3_000_000, "A"))), None
)
line_case(
    "ten thousand turns",
    json.dumps(row(2, conversations=talk("<image>", "A") + talk("Q", "A") * 5000)),
    None,
)


@case("byte order mark", good=2)
def _(folder):
    text = "\ufeff" + json.dumps(row(1)) + "\n" + json.dumps(row(2))
    return raw_file(folder, text, "data.jsonl")


@case("Windows line ends and blank lines", good=2)
def _(folder):
    text = json.dumps(row(1)) + "\r\n\r\n   \r\n" + json.dumps(row(2)) + "\r\n"
    return raw_file(folder, text, "data.jsonl")


@case("UTF-16 file", raises=errors.FormatError, says="UTF-16")
def _(folder):
    return raw_file(folder, json.dumps(row(1)).encode("utf-16"), "data.jsonl")


@case("empty file", raises=errors.FormatError, says="empty")
def _(folder):
    return raw_file(folder, b"", "data.jsonl")


@case("file of blanks", raises=errors.FormatError, says="empty")
def _(folder):
    return raw_file(folder, b" \n\n", "data.json")


@case("no such file", raises=errors.DataError, says="no such file")
def _(folder):
    return folder / "nothing.json"


@case("unknown format", raises=errors.FormatError, says="llava")
def _(folder):
    return json_lines(folder, [{"foo": 1}, {"bar": 2}])


@case("no such format", raises=errors.PartNotFound, options={"format": "lava"}, says="lava")
def _(folder):
    return json_lines(folder, [row(1)])


@case("picture given as data", raises=errors.FormatError)
def _(folder):
    return folder / "good.png"


@case("all rows of another format", rejects={"FormatError": 2}, options={"format": "messages"})
def _(folder):
    return json_lines(folder, [row(1), row(2)])


# --- JSON arrays -----------------------------------------------------------------------------


def array_text(*items: Any) -> str:
    dumped = [i if isinstance(i, str) else json.dumps(i) for i in items]
    return "[\n" + ",\n".join(dumped) + "\n]\n"


def array_case(
    name: str, text: str | bytes, good: int, rejects: dict[str, int], says: str = ""
) -> None:
    CASES.append(
        Case(name, lambda f: raw_file(f, text, "data.json"), good=good, rejects=rejects, says=says)
    )


indented = json.dumps([row(1), row(2), row(3)], indent=2)
single = json.dumps([row(1), row(2), row(3)])
array_case(
    "element without its brace",
    array_text(row(1), good_line[:-1], row(3)),
    2,
    {"FormatError": 1},
    "data.json:3",
)
array_case(
    "element with a broken string",
    array_text(row(1), good_line.replace('Question 2?"', "Question 2?"), row(3)),
    2,
    {"FormatError": 1},
)
array_case(
    "element with a stray bracket",
    array_text(row(1), good_line.replace('"id"', ']"id"'), row(3)),
    2,
    {"FormatError": 1},
)
array_case(
    "indented, one brace missing",
    indented.replace("  },\n  {", "  ,\n  {", 1),
    2,
    {"FormatError": 1},
)
array_case(
    "one line, one brace missing",
    single.replace('}]}, {"id": "row2"', '}], {"id": "row2"'),
    2,
    {"FormatError": 1},
)
array_case("array cut off in a row", single[:-120], 2, {"FormatError": 1})
array_case("array not closed", single[:-1], 3, {"FormatError": 1}, "not closed")
array_case("missing comma", single.replace("}]}, {", "}]} {"), 3, {})
array_case("trailing comma in array", single[:-1] + ", ]", 3, {})
array_case("text after the array", single + " more", 3, {"FormatError": 1}, "after")
array_case(
    "latin-1 in array",
    single.encode().replace(b"Answer 2", b"\xe9t\xe9"),
    2,
    {"FormatError": 1},
    "0xe9",
)
array_case(
    "numbers among rows", array_text(row(1), "7", row(3), '"text"', "null"), 2, {"FormatError": 3}
)
array_case("array with a mark and CRLF", ("\ufeff" + indented).replace("\n", "\r\n"), 3, {})
array_case("one object", json.dumps(row(1), indent=2), 1, {})


@case("empty array", raises=errors.FormatError)
def _(folder):
    return raw_file(folder, "[]", "data.json")


@case(
    "empty array with a format",
    raises=errors.DataError,
    options={"format": "llava"},
    says="no rows",
)
def _(folder):
    return raw_file(folder, "[]", "data.json")
