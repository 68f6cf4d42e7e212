"""Parquet shards: rows of any format whose image columns hold bytes.

A picture is `{bytes, path}`, as the datasets library writes it, or plain binary, one or a
list of them. Row groups are read one after the other, so a damaged one costs its own rows
only. Conversations may be lists of structs or JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from diptych.data import files
from diptych.data.rows import Reject
from diptych.data.sample import Image, Sample
from diptych.data.shard_row import MAX_IMAGE_BYTES, bind
from diptych.data.strict_json import parse_json
from diptych.errors import DataError, FormatError, ImageTooLarge, MissingExtra, MissingImage

_ROWS_AT_A_TIME = 64


def read_parquet(path: str, format: str | None = None) -> Iterator[Sample | Reject]:
    """Rows of a Parquet file, in its order."""
    for number, batch in _batches(path):
        if isinstance(batch, DataError):
            yield Reject.of(batch, f"{path}#{number}")
            continue
        for offset in range(len(batch)):
            where = f"{path}#{number + offset}"
            try:
                value = batch.slice(offset, 1).to_pylist()[0]
            except ValueError as error:
                yield Reject.of(FormatError(f"the row cannot be read: {error}"), where)
            else:
                yield _row(value, where, number + offset, format)


def _batches(path: str) -> Iterator[tuple[int, Any]]:
    """(number of the first row, record batch, or the DataError that took its place)."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra(
            "reading Parquet needs pyarrow", where=path, fix="pip install pyarrow"
        ) from None

    unreadable = (pyarrow.ArrowException, OSError, ValueError)
    try:
        file = _seekable(path)
        parquet = pyarrow.parquet.ParquetFile(file)
    except unreadable as error:
        yield 0, DataError(f"the shard cannot be read: {_first_line(error)}")
        return
    start = 0
    with file:
        for group in range(parquet.num_row_groups):
            number = start
            start += parquet.metadata.row_group(group).num_rows
            try:
                for batch in parquet.iter_batches(_ROWS_AT_A_TIME, row_groups=[group]):
                    yield number, batch
                    number += len(batch)
            except unreadable as error:
                lost = f"rows {number} to {start - 1} cannot be read: {_first_line(error)}"
                yield number, DataError(lost)


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


def _row(value: dict[str, Any], where: str, number: int, format: str | None) -> Sample | Reject:
    raw = ""
    try:
        pictures: list[tuple[str, Image]] = []
        plain = {k: _take_pictures(v, pictures, k, number) for k, v in value.items()}
        # Columns that a row leaves empty are null in Parquet; a JSON row would lack the key.
        plain = {k: _load_json(k, v) for k, v in plain.items() if v is not None}
        raw = json.dumps(plain, ensure_ascii=False, default=str)
        if "\\u0000" in raw:
            raise FormatError("a string contains a NUL character")
        return bind(json.loads(raw), pictures, where, format, number)
    except DataError as error:
        identity = value.get("id")
        return Reject.of(error, where, raw, None if identity is None else str(identity)[:200])


def _load_json(key: str, value: Any) -> Any:
    if key in ("conversations", "messages") and isinstance(value, str):
        return parse_json(value)
    return value


_PICTURE = "\0picture"


def _take_pictures(value: Any, found: list[tuple[str, Image]], key: str, number: int) -> Any:
    """The value with bytes taken out; lists and `{bytes, path}` structs are looked into."""
    if isinstance(value, dict) and set(value) == {"bytes", "path"}:
        if value["bytes"] is None:
            if value["path"] is None:
                return None
            raise MissingImage(f"'{key}' names '{value['path'][:200]}' but holds no bytes")
        value, name = value["bytes"], value["path"]
    else:
        name = None
    if isinstance(value, bytes):
        if len(value) > MAX_IMAGE_BYTES:
            raise ImageTooLarge(f"'{key}' holds {len(value):,} bytes")
        name = name or f"{key}-{number}"
        found.append((name, Image(name, value)))
        return name
    if isinstance(value, list) and value and isinstance(value[0], bytes | dict):
        return [_take_pictures(item, found, key, number) for item in value]
    return value


def copy_parquet(paths: Sequence[str], bad: set[int], target: str) -> int:
    """The good rows of Parquet shards as one; see `diptych.data.shards.copy_good`."""
    import pyarrow
    import pyarrow.parquet

    position, count, writer = 0, 0, None
    with files.replacing(target) as temporary:
        for path in paths:
            for _, batch in _batches(path):
                if isinstance(batch, DataError):
                    position += 1
                    continue
                good = [position + offset not in bad for offset in range(len(batch))]
                position += len(batch)
                kept = batch.filter(pyarrow.array(good))
                writer = writer or pyarrow.parquet.ParquetWriter(temporary, batch.schema)
                writer.write_batch(kept)
                count += len(kept)
        if writer is None:
            raise DataError("there is no row to write", where=paths[0])
        writer.close()
    return count
