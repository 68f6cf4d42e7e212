"""Rows of cells: CSV as spreadsheets write it, and TSV as data sets are published in it.

Both have a header line and stream; a row that cannot be read becomes a `Reject` with its line. In
CSV a cell may be quoted, and then hold line ends; where a quotation mark is never closed, the fault
costs its own line and reading goes on with the next. TSV knows no quoting: a line is a row.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
from typing import BinaryIO

from diptych.data.reading import files
from diptych.data.reading.folder import PICTURE_SUFFIXES
from diptych.data.reading.rows import Reject, Row, layout, split_lines, too_long
from diptych.data.reading.strict_json import check_text
from diptych.errors import FormatError


def read_csv(path: str) -> Iterator[Row | Reject]:
    """The rows of a CSV (or, by its suffix, TSV) file with a header line.

    CSV is quoted, and parted by commas, or by the semicolons or tabs that its header has instead
    (spreadsheets write both). TSV, as Conceptual Captions and WIT publish it, knows no quoting: a
    line is a row. A file of captions and pictures may lack the header.

    Raises:
        FormatError: the header is missing or damaged, or the file is not UTF-8 text at all.
    """
    layout(path)
    with files.reading(path) as stream:
        yield from (_read_tsv if files.suffix(path) == ".tsv" else _read_csv)(stream, path)


def _read_tsv(stream: BinaryIO, path: str) -> Iterator[Row | Reject]:
    header: list[str] = []
    number = 0
    for line_number, line in split_lines(stream):
        where = f"{path}:{line_number}"
        if line is None:
            yield Reject.of(too_long(), where)
            number += 1
            continue
        if not line:
            continue
        raw = line.removesuffix(b"\r").decode("utf-8", "surrogateescape")
        cells = raw.split("\t")
        if not header:
            _check_line_ends(raw, where)
            header, is_row = _header(cells, raw, where)
            if not is_row:
                continue
        yield _cells_row(header, cells, where, raw, number)
        number += 1


def _read_csv(stream: BinaryIO, path: str) -> Iterator[Row | Reject]:
    source = ((number, _text(line)) for number, line in split_lines(stream))
    # Lines to be read once more, and those of the record that is being read.
    again: deque[tuple[int, str | None]] = deque()
    taken: list[tuple[int, str | None]] = []

    def lines() -> Iterator[str]:
        while numbered := again.popleft() if again else next(source, None):
            taken.append(numbered)
            if numbered[1] is None:
                raise csv.Error(too_long().what)
            yield numbered[1]

    if first := next(source, None):
        again.append(first)
    start = (first and first[1]) or ""
    _check_line_ends(start.rstrip("\r\n"), f"{path}:1")
    delimiter = next((mark for mark in ",;\t" if mark in start), ",")
    spaced = f"{delimiter} " in start and any(
        cell.startswith(" ") for cell in next(csv.reader([start], delimiter=delimiter))
    )
    header: list[str] = []
    number = 0
    reader = _csv_reader(lines(), delimiter, spaced)
    while True:
        taken.clear()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            fault, where = FormatError(f"invalid CSV: {error}"), f"{path}:{taken[0][0]}"
            if not header:
                fix = "mend the quotation marks of the header line"
                raise FormatError(fault.what, where=where, fix=fix) from None
            # A quotation mark that is never closed must not take the lines after it along.
            again.extendleft(reversed(taken[1:]))
            reader = _csv_reader(lines(), delimiter, spaced)
            raw = _readable((taken[0][1] or "").rstrip("\r\n"))
            yield Reject.of(fault, where, raw, _csv_id(header, raw, delimiter))
            number += 1
            continue
        if not cells:
            continue
        where = f"{path}:{taken[0][0]}"
        raw = taken[0][1] or "" if len(taken) == 1 else "".join(line or "" for _, line in taken)
        raw = raw.rstrip("\r\n")
        if not header:
            header, is_row = _header(cells, raw, where)
            if not is_row:
                continue
        yield _cells_row(header, cells, where, raw, number)
        number += 1


def _text(line: bytes | None) -> str | None:
    return None if line is None else line.decode("utf-8", "surrogateescape") + "\n"


def _readable(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _csv_reader(lines: Iterator[str], delimiter: str, spaced: bool) -> Iterator[list[str]]:
    return csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=spaced)


def _csv_id(header: list[str], raw: str, delimiter: str) -> str | None:
    """The id of a row whose quotation marks are damaged, where it stands in front of them."""
    first, found, _ = raw.partition(delimiter)
    return first[:200] if found and header[0] == "id" and '"' not in first else None


def _check_line_ends(first_line: str, where: str) -> None:
    if "\r" in first_line:
        raise FormatError(
            "the lines end with a carriage return alone",
            where=where,
            fix="save the file with LF or CRLF line ends",
        )


def _header(cells: list[str], raw: str, where: str) -> tuple[list[str], bool]:
    """The names of the columns, and whether the line is a row itself, as the file has no header."""
    try:
        check_text(raw)
    except FormatError as error:
        raise FormatError(error.what, where=where, fix="save the file as UTF-8") from None
    address = next((cell for cell in cells if "://" in cell), None)
    if address is not None:
        raise FormatError(
            f"there is no header line: the first line names the address {address[:200]}",
            where=where,
            fix="download the pictures (img2dataset writes tar shards, which can be read), or put "
            "the names of the columns into the first line",
        )
    # By ending: the standard library's table of media types takes a megabyte.
    pictures = [files.suffix(cell) in PICTURE_SUFFIXES for cell in cells]
    if len(cells) == 2 and sum(pictures) == 1:
        return ["image" if is_picture else "caption" for is_picture in pictures], True
    names = [cell.strip() for cell in cells]
    if len(set(names)) != len(names) or not all(names):
        raise FormatError(
            "the header line repeats a column or leaves one without a name",
            where=where,
            fix="give every column its own name in the first line",
        )
    if len(names) == 1 and any(mark in names[0] for mark in ",;|\t"):
        raise FormatError(
            f"the header line has one column only, '{names[0][:200]}'",
            where=where,
            fix="part the columns by commas in a .csv file, by tabs in a .tsv file",
        )
    return names, False


def _cells_row(
    header: list[str], cells: list[str], where: str, raw: str, number: int
) -> Row | Reject:
    try:
        if len(cells) != len(header):
            raise FormatError(f"the row has {len(cells)} cells, the header {len(header)} columns")
        check_text(raw)
        if "\0" in raw:
            raise FormatError("the row contains a NUL byte")
    except FormatError as error:
        # Cells may have moved, so only an id in front can be trusted.
        identity = _readable(cells[0])[:200] if header[0] == "id" else None
        return Reject.of(error, where, _readable(raw), identity)
    return Row(dict(zip(header, cells, strict=True)), where, raw, number)
