"""Shards: rows that carry their pictures' bytes with them, in tar files and Parquet.

Tar shards follow the WebDataset convention: members with one key (the name up to its first
dot) are one row, pictures beside a `.json` (a row of any format) or a `.txt` (a caption).
They are streamed and never extracted, so a member can harm nothing; a row with a member that
is no plain file, climbs out of the archive, or comes twice is rejected all the same, because
other programs would read it differently. Of an uncompressed tar the Images also know their
place in the file (`span`), so that they can be read again without a copy.

Parquet rows are rows of any format whose image columns hold bytes (`{bytes, path}` as the
datasets library writes them, or plain binary), one or a list of them.
Source: github.com/webdataset/webdataset (README, "The WebDataset Format").
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from diptych import parts
from diptych.data import files, rows
from diptych.data import format as formats
from diptych.data.formats.captions import PICTURE_SUFFIXES
from diptych.data.rows import Reject, Row
from diptych.data.sample import Image, Sample, Turn
from diptych.errors import (
    DataError,
    FormatError,
    ImageTooLarge,
    MissingExtra,
    MissingImage,
    UnsafePath,
)

TAR_SUFFIXES = frozenset({".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"})
PARQUET_SUFFIXES = frozenset({".parquet"})
MAX_IMAGE_BYTES = 64 << 20
_ROWS_AT_A_TIME = 64


def is_shard(path: str) -> bool:
    """Whether the name is that of a tar or Parquet file."""
    return files.suffix(path) in TAR_SUFFIXES | PARQUET_SUFFIXES


def read_shard(path: str, format: str | None) -> Iterator[Sample | Reject]:
    """The rows of one shard. A shard that cannot be read at all is one Reject."""
    reader = read_parquet if files.suffix(path) in PARQUET_SUFFIXES else read_tar
    return reader(path, format)


# --- tar -------------------------------------------------------------------------------------


@dataclass
class _Group:
    """Members of one key, and the first fault among them."""

    key: str
    pictures: list[Image] = field(default_factory=list)
    texts: dict[str, bytes] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    fault: DataError | None = None


class _Watched(tarfile.TarInfo):
    """tarfile takes a damaged header after the first for the end; this one remembers it."""

    @classmethod
    def fromtarfile(cls, archive: Any) -> Any:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            archive.damage = error
            raise


def read_tar(path: str, format: str | None = None) -> Iterator[Sample | Reject]:
    """Rows of a tar shard, in its order."""
    compression = {".tar": ""}.get(files.suffix(path), "*")
    group: _Group | None = None
    try:
        with files.reading(path) as stream:
            with tarfile.open(
                fileobj=stream, mode=f"r|{compression}", tarinfo=_Watched
            ) as archive:
                for member in archive:
                    if member.isdir():
                        continue
                    key, ending = _split_name(member.name)
                    if group is not None and group.key != key:
                        yield _finish(group, path, format)
                        group = None
                    group = group or _Group(key)
                    _take(group, archive, member, ending, path, not compression)
                    # The archive keeps every header it has seen; a long shard must not.
                    archive.members = []  # type: ignore[attr-defined]
                damage = getattr(archive, "damage", None)
                if damage is not None:
                    raise tarfile.ReadError(f"no end mark, or a damaged header: {damage}")
    except (tarfile.TarError, EOFError, OSError, ValueError, DataError) as error:
        reason = error.what if isinstance(error, DataError) else str(error)
        if group is not None:
            lost = DataError(f"the shard breaks off inside this row: {reason}")
            yield Reject.of(lost, f"{path}#{group.key}", "", group.key)
            return
        broken = DataError(f"the shard cannot be read to its end: {reason}")
        yield Reject.of(broken, path)
        return
    if group is not None:
        yield _finish(group, path, format)


def _split_name(name: str) -> tuple[str, str]:
    folder, slash, base = name.rpartition("/")
    stem, dot, ending = base.partition(".")
    if not stem:  # hidden files keep their dot in the key
        stem, ending = base, ""
    return f"{folder}{slash}{stem}", f".{ending.lower()}" if dot and ending else ""


def _take(
    group: _Group,
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    ending: str,
    path: str,
    seekable: bool,
) -> None:
    fault = _member_fault(member, group.names)
    group.names.add(member.name)
    if fault is not None:
        group.fault = group.fault or fault
        return
    file = archive.extractfile(member)
    assert file is not None
    picture = os.path.splitext(ending)[1] in PICTURE_SUFFIXES
    if not picture and ending not in (".json", ".txt"):
        return
    data = file.read(member.size)
    if len(data) != member.size:
        raise tarfile.ReadError(f"'{member.name}' ends after {len(data)} of {member.size} bytes")
    if picture:
        span = (member.offset_data, member.size) if seekable else None
        # The path is the shard's where the span can be used, else only a name.
        group.pictures.append(Image(path if span else member.name, data, span))
        group.texts.setdefault(".names", b"")
        group.texts[".names"] += member.name.encode("utf-8", "surrogateescape") + b"\n"
    else:
        group.texts[ending] = data


def _member_fault(member: tarfile.TarInfo, names: set[str]) -> DataError | None:
    name = member.name
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        return UnsafePath(f"the member '{name}' leaves the archive")
    if not member.isreg() or member.sparse is not None:
        kinds = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device"}
        return UnsafePath(f"the member '{name}' is {kinds.get(member.type, 'no plain file')}")
    if name in names:
        return FormatError(f"the member '{name}' occurs twice")
    if member.size > MAX_IMAGE_BYTES:
        return ImageTooLarge(f"the member '{name}' has {member.size:,} bytes")
    return None


def _finish(group: _Group, path: str, format: str | None) -> Sample | Reject:
    where = f"{path}#{group.key}"
    raw = ""
    try:
        if group.fault is not None:
            raise group.fault
        texts = {k: v for k, v in group.texts.items() if k != ".names"}
        if not texts:
            raise FormatError("the row has no .json and no .txt beside its pictures")
        data = texts.get(".json", texts.get(".txt", b""))
        raw = data.decode("utf-8", "backslashreplace")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise FormatError(f"the text is not UTF-8: {error.reason}") from None
        value = rows.parse_json(text) if ".json" in texts else {"caption": _plain(text)}
        if not isinstance(value, dict):
            raise FormatError("the row's .json is not an object")
        if ".json" in texts and ".txt" in texts and not _claims(value):
            value = {"caption": _plain(texts[".txt"].decode("utf-8", "replace"))} | value
        names = group.texts.get(".names", b"").decode("utf-8", "surrogateescape").splitlines()
        sample = _bound(value, list(zip(names, group.pictures, strict=True)), where, format)
        if value.get("id") is None:
            sample = replace(sample, id=group.key)
        return sample
    except DataError as error:
        return Reject.of(error, where, raw, group.key)


def _plain(text: str) -> str:
    if "\0" in text:
        raise FormatError("the text contains a NUL byte")
    return text.strip()


# --- Parquet ---------------------------------------------------------------------------------


def read_parquet(path: str, format: str | None = None) -> Iterator[Sample | Reject]:
    """Rows of a Parquet file, in its order."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra(
            "reading Parquet needs pyarrow", where=path, fix="pip install pyarrow"
        ) from None

    number = 0
    try:
        with _seekable(path) as file:
            parquet = pyarrow.parquet.ParquetFile(file)
            for batch in parquet.iter_batches(batch_size=_ROWS_AT_A_TIME):
                for value in batch.to_pylist():
                    yield _parquet_row(value, f"{path}#{number}", number, format)
                    number += 1
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        first_line = str(error).split("\n", 1)[0]
        broken = DataError(f"the shard cannot be read from row {number} on: {first_line}")
        yield Reject.of(broken, f"{path}#{number}")


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


def _parquet_row(
    value: dict[str, Any], where: str, number: int, format: str | None
) -> Sample | Reject:
    raw = ""
    try:
        pictures: list[tuple[str, Image]] = []
        plain = {k: _take_pictures(v, pictures, k, number) for k, v in value.items()}
        # Columns that a row leaves empty are null in Parquet; a JSON row would lack the key.
        plain = {k: _load_json(k, v) for k, v in plain.items() if v is not None}
        raw = json.dumps(plain, ensure_ascii=False, default=str)
        if "\\u0000" in raw:
            raise FormatError("a string contains a NUL character")
        return _bound(json.loads(raw), pictures, where, format, number)
    except DataError as error:
        identity = value.get("id")
        return Reject.of(error, where, raw, None if identity is None else str(identity)[:200])


def _load_json(key: str, value: Any) -> Any:
    if key in ("conversations", "messages") and isinstance(value, str):
        return rows.parse_json(value)
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


# --- both ------------------------------------------------------------------------------------


def _claims(value: dict[str, Any]) -> list[str]:
    return [n for n in parts.names(formats.FOLDER) if formats.find(n).sniff(value)]


def _bound(
    value: dict[str, Any],
    pictures: list[tuple[str, Image]],
    where: str,
    format: str | None,
    number: int = 0,
) -> Sample:
    """The row as a Sample whose Images are `pictures`.

    A picture that the row names is bound by name, the others in order. A row that names none
    (a caption beside a picture, a conversation with markers only) takes all there are.
    """
    # Names are made unique first, so that binding by name cannot pick the wrong one.
    unique = {f"{i}/{name}": image for i, (name, image) in enumerate(pictures)}
    if len(pictures) and not any(key in value for key in ("image", "images")):
        named = list(unique)
        typed = "messages" in value and '"image' in json.dumps(value["messages"])
        if not typed:
            value = value | {"image" if "messages" not in value else "images": _one(named)}
        elif _has_places(value["messages"]):
            value = value | {"images": named}
    name = format or _only_claim(value)
    sample = formats.find(name).parse(Row(value, where, "", number))
    return _replace_images(sample, pictures, list(unique))


def _one(names: list[str]) -> Any:
    return names[0] if len(names) == 1 else names


def _has_places(messages: Any) -> bool:
    return any(
        isinstance(part, dict)
        and part.get("type") == "image"
        and not any(part.get(k) for k in ("image", "path", "url"))
        for message in messages
        if isinstance(message, dict) and isinstance(message.get("content"), list)
        for part in message["content"]
    )


def _only_claim(value: dict[str, Any]) -> str:
    claims = _claims(value)
    if len(claims) == 1:
        return claims[0]
    known = ", ".join(parts.names(formats.FOLDER))
    raise FormatError(
        f"the row's format cannot be told from its keys ({', '.join(value)}); name one of {known}"
    )


def _replace_images(
    sample: Sample, pictures: list[tuple[str, Image]], unique: list[str]
) -> Sample:
    named = list(sample.images())
    if len(named) != len(pictures):
        raise MissingImage(
            f"the row refers to {len(named)} pictures and carries {len(pictures)}"
        )
    by_base = {os.path.basename(name): image for name, image in pictures}
    by_unique = dict(zip(unique, (image for _, image in pictures), strict=True))
    distinct = len(by_base) == len(pictures)

    def pick(order: int, image: Image) -> Image:
        if image.path in by_unique:
            return by_unique[image.path]
        if distinct and os.path.basename(image.path) in by_base:
            return by_base[os.path.basename(image.path)]
        return pictures[order][1]

    order = 0
    turns: list[Turn] = []
    for turn in sample.turns:
        parts_: list[Any] = []
        for part in turn.parts:
            if isinstance(part, Image):
                parts_.append(pick(order, part))
                order += 1
            else:
                parts_.append(part)
        turns.append(Turn(turn.role, tuple(parts_)))
    return replace(sample, turns=tuple(turns))


def copy_good(paths: Iterable[str], bad: set[str], target: str) -> int:
    """Write one shard with the rows of `paths` that are not in `bad`; their number.

    Args:
        bad: places (`Sample.source`) of the rows to leave out.
    """
    listed = list(paths)
    tar = files.suffix(listed[0]) in TAR_SUFFIXES
    return (_copy_tar if tar else _copy_parquet)(listed, bad, target)


def _copy_tar(paths: list[str], bad: set[str], target: str) -> int:
    kept: set[str] = set()
    with files.replacing(target) as temporary, tarfile.open(temporary, "w") as out:
        for path in paths:
            with files.reading(path) as stream, tarfile.open(fileobj=stream, mode="r|*") as archive:
                try:
                    for member in archive:
                        place = f"{path}#{_split_name(member.name)[0]}"
                        if place in bad or not member.isreg():
                            continue
                        out.addfile(member, archive.extractfile(member))
                        kept.add(place)
                except (tarfile.TarError, EOFError, OSError):
                    # Where the shard breaks off is one of the rejects already.
                    continue
    return len(kept)


def _copy_parquet(paths: list[str], bad: set[str], target: str) -> int:
    import pyarrow
    import pyarrow.parquet

    count, writer = 0, None
    with files.replacing(target) as temporary:
        for path in paths:
            number = 0
            with _seekable(path) as file:
                try:
                    for batch in pyarrow.parquet.ParquetFile(file).iter_batches(_ROWS_AT_A_TIME):
                        good = [f"{path}#{number + i}" not in bad for i in range(len(batch))]
                        number += len(batch)
                        kept = batch.filter(pyarrow.array(good))
                        writer = writer or pyarrow.parquet.ParquetWriter(temporary, batch.schema)
                        writer.write_batch(kept)
                        count += len(kept)
                except (pyarrow.ArrowException, OSError):
                    # Where the shard breaks off is one of the rejects already.
                    continue
        if writer is None:
            raise DataError("there is no row to write", where=paths[0])
        writer.close()
    return count
