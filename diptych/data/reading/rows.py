"""Raw rows of a data file: JSON arrays, JSON lines, arrays inside one JSON object.

Everything streams: memory is bounded by the longest row, never by the file. A row that
cannot be read becomes a `Reject` with its line, and reading goes on with the next row: JSON
lines are independent of each other; in an array the damaged element is cut out by its
brackets, or, when those do not match, up to the next line that starts like the first element
did. Only when neither helps is the rest of the file given up, by one reject that says from
which line on. A missing or doubled comma between two elements loses nothing and is forgiven.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO

from diptych.data.reading import files
from diptych.data.reading.json_window import MAX_ROW_BYTES, JsonWindow
from diptych.data.reading.strict_json import DECODER, READING_ERRORS, id_in, not_utf8, parse_json
from diptych.errors import DataError, FormatError

_MAX_KEPT_CHARACTERS = 1 << 20
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One object of a data file: its value, its place, and its text as it stands there."""

    value: dict[str, Any]
    where: str
    raw: str = ""
    number: int = 0


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that is not used, and why.

    Attributes:
        where: `file:line`; `file:line[n]`, n from 0, where several rows of a JSON array share a
            line; `file#key` where a file has no lines.
        id: the row's id where it could be read, also in the text of a row that is no JSON.
        error: class name from `diptych.errors`.
        message: what is wrong, with the numbers.
        row: the row's text, so that a reject file keeps it (at most a million characters).
    """

    where: str
    id: str | None
    error: str
    message: str
    row: str = field(default="", repr=False)

    @classmethod
    def of(cls, error: DataError, where: str, raw: str = "", id: str | None = None) -> Reject:
        """The reject that an error about a row amounts to."""
        if id is None and raw[:100].lstrip().startswith("{"):
            id = id_in(raw)
        if len(raw) > _MAX_KEPT_CHARACTERS:
            raw = raw[:_MAX_KEPT_CHARACTERS] + "…"
        return cls(where, id, type(error).__name__, error.what, raw)

    def to_dict(self) -> dict[str, str | None]:
        """Plain data."""
        return asdict(self)


def layout(path: str) -> str:
    """How the JSON in a file is laid out: `array`, `lines` or one `object`.

    Raises:
        FormatError: the file is empty or in a UTF-16 or UTF-32 encoding.
    """
    with files.reading(path) as stream:
        head = stream.read(files.CHUNK_BYTES)
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            raise FormatError(
                f"the file is encoded in {encoding}", where=path, fix="save it as UTF-8"
            )
    text = head.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape").lstrip()
    if not text.strip("\0"):
        raise FormatError("the file is empty", where=path, fix="give a file that has rows")
    if text[0] == "[":
        return "array"
    if text[0] != "{" or files.suffix(path) in (".jsonl", ".ndjson"):
        return "lines"
    try:
        end = DECODER.raw_decode(text)[1]
    except READING_ERRORS:
        first, _, rest = text.partition("\n")
        broken_first_row = first.rstrip().endswith("}") and rest.lstrip().startswith("{")
        return "lines" if broken_first_row else "object"
    return "lines" if text[end:].strip() else "object"


def read_json(path: str) -> Iterator[Row | Reject]:
    """The rows of a JSON array or of JSON lines; one lone object counts as one row.

    Raises:
        FormatError: the file as a whole cannot be read (empty, UTF-16).
        DataError: there is no such file.
    """
    kind = layout(path)
    with files.reading(path) as stream:
        if kind == "lines":
            yield from _read_lines(stream, path)
            return
        text = JsonWindow(stream)
        text.skip_space()
        if kind == "array":
            text.position += 1
            yield from _read_elements(text, path, None)
        else:
            line, raw, value = text.element()
            yield _row(value, f"{path}:{line}", raw, 0)
        text.skip_space()
        if not text.at_end():
            error = FormatError(f"there is text after the JSON's end, from line {text.line} on")
            yield Reject.of(error, f"{path}:{text.line}", text.rest())


def read_object(
    path: str, rows_of: frozenset[str], skip: frozenset[str] = frozenset()
) -> Iterator[tuple[str, Any]]:
    """The members of a file that is one JSON object, as (key, item).

    Arrays under the keys `rows_of` are streamed: each element is an item, `Row` or `Reject`,
    placed at `file#key[n]`. Arrays under `skip` are passed over. Every other value is one item.

    Raises:
        FormatError: the file is no JSON object.
    """
    layout(path)
    with files.reading(path) as stream:
        text = JsonWindow(stream)
        text.skip_space()
        if text.peek() != "{":
            raise FormatError("the file is not one JSON object", where=f"{path}:{text.line}")
        text.position += 1
        while True:
            text.skip_space(",")
            if text.at_end() or text.peek() == "}":
                break
            line, raw, key = text.element()
            text.skip_space()
            if not isinstance(key, str) or text.peek() != ":":
                error = key if isinstance(key, FormatError) else FormatError("a key is missing")
                message = f"invalid JSON from line {line} on, the rest is not read: {error.what}"
                yield "", Reject(f"{path}:{line}", None, "FormatError", message, raw)
                return
            text.position += 1
            text.skip_space()
            if text.peek() == "[" and (key in rows_of or key in skip):
                text.position += 1
                for item in _read_elements(text, path, key):
                    if key in rows_of:
                        yield key, item
                continue
            line, raw, value = text.element()
            if isinstance(value, FormatError):
                yield key, Reject.of(value, f"{path}:{line}", raw)
            else:
                yield key, value
        if text.at_end():
            message = f"the file ends in line {text.line} before its JSON does; rows may be missing"
            yield "", Reject(f"{path}:{text.line}", None, "FormatError", message)


def object_keys(path: str) -> Iterator[str]:
    """The keys of a file that is one JSON object, in order."""
    layout(path)
    with files.reading(path) as stream:
        text = JsonWindow(stream)
        text.skip_space("{")
        while not text.at_end() and text.peek() != "}":
            _, _, key = text.element()
            text.skip_space()
            if not isinstance(key, str) or text.peek() != ":":
                return
            yield key
            text.position += 1
            text.skip_space()
            if text.peek() == "[":
                text.position += 1
                for _ in _read_elements(text, path, key):
                    pass
            else:
                text.element()
            text.skip_space(",")


# --- JSON lines ------------------------------------------------------------------------------


def too_long() -> FormatError:
    """What is wrong with a line of more than `MAX_ROW_BYTES`."""
    return FormatError(f"the row is longer than {MAX_ROW_BYTES >> 20} MiB")


def split_lines(stream: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """(line number, line without its end); None for a line above `MAX_ROW_BYTES`.

    Only `\\n` ends a line: U+2028 and its like may stand inside JSON strings.
    """
    number, rest, too_long, first = 1, b"", False, True
    while chunk := stream.read(files.CHUNK_BYTES):
        if first:
            chunk, first = chunk.removeprefix(codecs.BOM_UTF8), False
        lines = chunk.split(b"\n")
        lines[0] = b"" if too_long else rest + lines[0]
        for line in lines[:-1]:
            yield number, None if too_long else line
            number, too_long = number + 1, False
        rest = lines[-1]
        if len(rest) > MAX_ROW_BYTES:
            rest, too_long = b"", True
    if rest or too_long:
        yield number, None if too_long else rest


def _read_lines(stream: BinaryIO, path: str) -> Iterator[Row | Reject]:
    number = 0
    for line_number, line in split_lines(stream):
        where = f"{path}:{line_number}"
        if line is not None and not line.strip():
            continue
        if line is None:
            yield Reject.of(too_long(), where)
        else:
            line = line.removesuffix(b"\r")
            try:
                raw = line.decode("utf-8")
                value = parse_json(raw, line_number)
            except UnicodeDecodeError as error:
                yield Reject.of(not_utf8(error), where, line.decode("utf-8", "backslashreplace"))
            except FormatError as error:
                yield Reject.of(error, where, raw)
            else:
                yield _row(value, where, raw, number)
        number += 1


# --- JSON arrays -----------------------------------------------------------------------------


def _read_elements(text: JsonWindow, path: str, key: str | None) -> Iterator[Row | Reject]:
    """Elements of the array whose `[` was just passed; passes its `]`."""
    number = 0
    text.nested = key is not None
    line_before = text.line
    text.skip_space(",")
    fence = text.fence()
    while character := text.peek():
        if character == "]":
            text.position += 1
            return
        line, raw, value = text.element(fence)
        where = f"{path}:{line}" if key is None else f"{path}#{key}[{number}]"
        if key is None and line == line_before:
            where += f"[{number}]"  # another row, or the array, begins in the same line
        if value is text.LOST:
            error = FormatError(
                f"invalid JSON: a bracket or quote is missing; nothing from line {line} on is read "
                f"({number} rows before it are)"
            )
            yield Reject.of(error, where, raw)
            return
        line_before = line
        yield _row(value, where, raw, number)
        number += 1
        text.skip_space(",")
    message = (
        f"the array is not closed: the file ends in line {text.line} after {number} rows; rows may "
        "be missing"
    )
    yield Reject(f"{path}:{text.line}", None, "FormatError", message)


def _row(value: Any, where: str, raw: str, number: int) -> Row | Reject:
    if isinstance(value, FormatError):
        return Reject.of(value, where, raw)
    if not isinstance(value, dict):
        kind = _JSON_NAMES.get(type(value), "value")
        return Reject.of(FormatError(f"the row is a JSON {kind}, not an object"), where, raw)
    return Row(value, where, raw, number)


_JSON_NAMES = {
    list: "array",
    str: "string",
    int: "number",
    float: "number",
    bool: "boolean",
    type(None): "null",
}
