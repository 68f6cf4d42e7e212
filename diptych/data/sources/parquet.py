"""Parquet shards: rows of any format whose picture columns hold bytes.

A picture is `{bytes, path}`, as the datasets library writes it, or plain bytes, one or a list of
them, in columns called `image`, `images`, `image_1`, ...; where none is called so, in those whose
bytes begin as a picture does. Other bytes (masks, audio, embeddings) and long vectors are not read
and counted. Conversations may be lists of structs or JSON text.

Row groups are read one after the other, so a damaged one costs its own rows only; a column that no
format uses costs its own values only.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from diptych.data.reading import fields, files
from diptych.data.reading.magic import HEAD_BYTES, is_picture
from diptych.data.reading.parquet_values import (
    CONVERSATIONS,
    Convert,
    PictureCells,
    content_is_json,
    converter,
    has_text_content,
    holds_bytes,
    is_picture_type,
    whole,
)
from diptych.data.reading.rows import Reject
from diptych.data.reading.strict_json import parse_json
from diptych.data.sample import Sample
from diptych.data.shard_row import bind
from diptych.errors import DataError, FormatError, MissingExtra
from diptych.staging import replacing

SUFFIXES = frozenset({".parquet"})
_ROWS_AT_A_TIME = 64
_ROWS_SEEN = 16
"""How many rows at a time tell what a column holds, where its type and name do not."""
_MAX_VECTOR = 64
"""Numbers in a list of fixed size that are still kept with a row; longer ones are embeddings."""
_PICTURE_NAME = re.compile(r"images?|image_?\d+")
# Text that is no UTF-8, a struct with a field twice; a day that Python's calendar has not.
_NO_VALUE = (ValueError, OverflowError)
_IDS = ("id", "question_id", "image_id")
# Columns that decide what a row says; a row without one of them, where it has one, is lost.
_USED = frozenset(
    {
        *(*_IDS, "messages", "conversations", "system"),
        *("image", "images", "image_path", "filepath", "file_path", "file_name", "filename"),
        *("path", "caption", "text", "title", "question", "answers", "answer"),
        *("multiple_choice_answer", "choices", "regions"),
    }
)


@dataclass(frozen=True)
class _Columns:
    """What is read of a file: pictures, and plain columns with what converts their values."""

    pictures: tuple[str, ...]
    plain: dict[str, Convert | None]
    with_parts: frozenset[str]

    @property
    def names(self) -> list[str]:
        return [*self.plain, *self.pictures]

    def are_needed(self, names: Sequence[str]) -> bool:
        """Whether rows are lost without one of these columns."""
        return any(name in self.pictures or name in _USED for name in names)


def read(
    path: str, format: str | None = None, passed_over: Counter[str] | None = None
) -> Iterator[Sample | Reject]:
    """Rows of a Parquet file, in its order.

    Args:
        passed_over: counts, by column, the values that are not read.
    """
    passed_over = Counter() if passed_over is None else passed_over
    try:
        file = _open(path)
        columns = _columns(file, passed_over)
    except DataError as error:
        yield Reject.of(error, f"{path}#0")
        return
    with contextlib.closing(file):
        for number, batch in _batches(file, columns.names, columns, passed_over):
            if isinstance(batch, DataError):
                yield Reject.of(batch, f"{path}#{number}")
                continue
            values = {name: _values(batch, name, columns) for name in columns.plain}
            for offset in range(len(batch)):
                place, at = f"{path}#{number + offset}", number + offset
                row = {name: column[offset] for name, column in values.items()}
                yield _row(row, batch, offset, columns, place, at, format, passed_over)


def _open(path: str) -> Any:
    """The Parquet file.

    Raises:
        DataError: it cannot be read at all.
        MissingExtra: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra(
            "reading Parquet needs pyarrow", where=path, fix="pip install pyarrow"
        ) from None
    try:
        return pyarrow.parquet.ParquetFile(_seekable(path))
    except _unreadable() as error:
        raise DataError(f"the shard cannot be read: {_first_line(error)}") from None


def _unreadable() -> tuple[type[Exception], ...]:
    import pyarrow

    return (pyarrow.ArrowException, OSError, ValueError)


def _columns(file: Any, passed_over: Counter[str]) -> _Columns:
    """Which columns are read, and how; the others are counted."""
    import pyarrow.types as types

    schema, num_rows = file.schema_arrow, file.metadata.num_rows
    twice = [name for name, count in Counter(schema.names).items() if count > 1]
    if twice:
        raise DataError(f"two columns are called '{twice[0]}'")
    candidates = [f.name for f in schema if is_picture_type(f.type) and f.name not in CONVERSATIONS]
    is_talk = not CONVERSATIONS.isdisjoint(schema.names)
    pictures = [name for name in candidates if _PICTURE_NAME.fullmatch(name)]
    if not pictures:
        pictures = [n for n in candidates if n not in _USED and _begins_as_picture(file, n)]
    plain: dict[str, Convert | None] = {}
    with_parts = set()
    for field in schema:
        name = field.name
        if name in pictures:
            continue
        is_bytes = holds_bytes(field.type)
        if is_bytes and name in CONVERSATIONS:
            with_parts.add(name)
        elif is_bytes and is_talk and _is_refused(name):
            plain[name] = lambda _: "bytes"  # a conversation about sound is none without it
            continue
        elif is_bytes and not (name in _USED and not types.is_nested(field.type)):
            beside = f" (bytes beside the pictures in '{pictures[0]}')" if pictures else " (bytes)"
            passed_over[f"values of the column '{name}'{beside}"] += num_rows
            continue
        elif types.is_fixed_size_list(field.type) and field.type.list_size > _MAX_VECTOR:
            vector = f"'{name}' ({field.type.list_size} numbers each)"
            passed_over[f"values of the column {vector}"] += num_rows
            continue
        may_be_json = name in CONVERSATIONS and has_text_content(field.type)
        is_json = may_be_json and content_is_json(_first_values(file, name))
        plain[name] = converter(field.type, name, "content" if is_json else None)
        if name in _IDS and types.is_floating(field.type):
            plain[name] = whole
    return _Columns(tuple(pictures), plain, frozenset(with_parts))


def _is_refused(name: str) -> bool:
    """Whether a conversation with something in a column of this name is refused."""
    try:
        fields.refuse_unseen({name: "bytes"})
    except FormatError:
        return True
    return False


def _begins_as_picture(file: Any, name: str) -> bool:
    """Whether one of a column's first values begins as a picture does."""
    return any(is_picture(_head(value)) for value in _first_values(file, name))


def _first_values(file: Any, name: str) -> list[Any]:
    """Some of a column's first values that are not null."""
    try:
        for batch in file.iter_batches(_ROWS_SEEN, columns=[name]):
            if batch.column(0).null_count < len(batch):
                return batch.column(0).drop_null().to_pylist()
    except _unreadable():  # named where it is read
        pass
    return []


def _head(value: Any) -> bytes:
    while isinstance(value, list):
        value = value[0] if value else None
    value = value["bytes"] if isinstance(value, dict) else value
    return (value or b"")[:HEAD_BYTES]


def _batches(
    file: Any, names: list[str], columns: _Columns, passed_over: Counter[str]
) -> Iterator[tuple[int, Any]]:
    """(number of the first row, record batch), or of a lost row (its number, DataError).

    Of a row group in which a column cannot be read, the others are, if no row needs it.
    """
    end = 0
    for group in range(file.num_row_groups):
        number, start = end, end
        end += file.metadata.row_group(group).num_rows
        left = list(names)
        while number < end:
            try:
                position = start
                for batch in file.iter_batches(_ROWS_AT_A_TIME, row_groups=[group], columns=left):
                    if position >= number:
                        yield position, batch
                        number = position + len(batch)
                    position += len(batch)
                if number < end:
                    raise ValueError(f"the row group ends after {number - start} rows")
            except _unreadable() as error:
                bad = [name for name in left if not _is_readable(file, group, name)]
                if not bad or columns.are_needed(bad) or len(bad) == len(left):
                    named = f" (column {', '.join(bad)})" if bad else ""
                    lost = f"rows {number} to {end - 1} cannot be read{named}: {_first_line(error)}"
                    for row in range(number, end):
                        yield row, DataError(lost)
                    break
                for name in bad:
                    passed_over[f"values of the column '{name}' (cannot be read)"] += end - number
                left = [name for name in left if name not in bad]


def _is_readable(file: Any, group: int, name: str) -> bool:
    try:
        for _ in file.iter_batches(_ROWS_AT_A_TIME, row_groups=[group], columns=[name]):
            pass
    except _unreadable():
        return False
    return True


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]


def _seekable(path: str) -> Any:
    """A file that can be read at any place; of a web server's, a local copy."""
    if not files.is_url(path):
        return open(path, "rb")
    if path.startswith(("http://", "https://")):
        import shutil
        import tempfile

        copy = tempfile.TemporaryFile()
        with files.reading(path) as stream:
            shutil.copyfileobj(stream, copy)
        copy.seek(0)
        return copy
    import fsspec

    return fsspec.open(path, "rb").open()


def _values(batch: Any, name: str, columns: _Columns) -> list[Any]:
    """A column's values as JSON would have them; a DataError for one that cannot be read."""
    if name not in batch.schema.names:
        return [None] * len(batch)
    column, convert = batch.column(name), columns.plain[name]
    try:
        values = column.to_pylist()
    except _NO_VALUE:
        values = [_value(scalar, name) for scalar in column]
    if name in CONVERSATIONS and convert is None:
        convert = _load_json
    if convert is None:
        return values
    return [_converted(convert, value) for value in values]


def _value(scalar: Any, name: str) -> Any:
    try:
        return scalar.as_py()
    except _NO_VALUE as error:
        return FormatError(f"'{name}' cannot be read: {error}")


def _converted(convert: Convert, value: Any) -> Any:
    if value is None or isinstance(value, DataError):
        return value
    try:
        return convert(value)
    except DataError as error:
        return error


def _load_json(value: Any) -> Any:
    return parse_json(value) if isinstance(value, str) else value


def _row(
    values: dict[str, Any],
    batch: Any,
    offset: int,
    columns: _Columns,
    where: str,
    number: int,
    format: str | None,
    passed_over: Counter[str],
) -> Sample | Reject:
    raw = ""
    try:
        row: dict[str, Any] = {}
        for name, value in values.items():
            if isinstance(value, DataError):
                if columns.are_needed([name]):
                    raise value
                passed_over[f"values of the column '{name}' (cannot be read)"] += 1
            # Columns that a row leaves empty are null in Parquet; a JSON row would lack the key.
            elif value is not None:
                row[name] = value
        pictures = PictureCells(number)
        for name in columns.with_parts & row.keys():
            row[name] = pictures.take_parts(row[name], name)
        for name in columns.pictures:
            taken = pictures.take(batch.column(name)[offset].as_py(), name)
            # Of several columns, or one with a name of its own, the order tells.
            if taken is not None and columns.pictures in (("image",), ("images",)):
                row[name] = taken
        raw = json.dumps(row, ensure_ascii=False)
        if "\\u0000" in raw:
            raise FormatError("a string contains a NUL character")
        return bind(row, pictures.found, where, format, number)
    except DataError as error:
        if not raw:
            whole_ones = {k: v for k, v in values.items() if not isinstance(v, DataError | None)}
            raw = json.dumps(whole_ones, ensure_ascii=False, default=str)
        identity = values.get("id")
        if isinstance(identity, DataError | None):
            identity = None
        return Reject.of(error, where, raw, None if identity is None else str(identity)[:200])


def copy_good(paths: Sequence[str], bad: set[int], target: str) -> int:
    """The good rows of Parquet shards as one, with all of their columns that can be read.

    See `data/source.py`.
    """
    import pyarrow
    import pyarrow.parquet

    position, count, writer = 0, 0, None
    with replacing(target) as temporary:
        for path in paths:
            try:
                file = _open(path)
                columns = _columns(file, Counter())
            except DataError:
                position += 1
                continue
            for _, batch in _batches(file, file.schema_arrow.names, columns, Counter()):
                if isinstance(batch, DataError):
                    position += 1
                    continue
                good = [position + offset not in bad for offset in range(len(batch))]
                position += len(batch)
                writer = writer or pyarrow.parquet.ParquetWriter(temporary, batch.schema)
                lacks = [n for n in writer.schema.names if n not in batch.schema.names]
                if lacks:
                    raise DataError(
                        f"the column '{lacks[0]}' cannot be read everywhere",
                        where=path,
                        fix="drop the column, then check the file again",
                    )
                kept = batch.select(writer.schema.names).filter(pyarrow.array(good))
                writer.write_batch(kept)
                count += len(kept)
        if writer is None:
            raise DataError("there is no row to write", where=paths[0])
        writer.close()
    return count
