"""Tar shards in the WebDataset convention, streamed and never extracted.

Members with one key (the name up to its first dot) are one row: pictures beside a `.json` (a
row of any format) or a `.txt` (a caption). A row with a member that is no plain file, climbs
out of the archive, or comes twice is rejected: nothing here would follow it, but other
programs would. Of an uncompressed tar the Images also know their place in the file (`span`),
so that they can be read again without a copy.

Source: github.com/webdataset/webdataset (README, "The WebDataset Format").
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from diptych.data import files
from diptych.data.formats.captions import PICTURE_SUFFIXES
from diptych.data.rows import Reject
from diptych.data.sample import Image, Sample
from diptych.data.shard_row import MAX_IMAGE_BYTES, bind, claims
from diptych.data.strict_json import parse_json
from diptych.errors import DataError, FormatError, ImageTooLarge, UnsafePath

_MAX_ROW_BYTES = 4 * MAX_IMAGE_BYTES


@dataclass
class _Group:
    """Members of one key, and the first fault among them."""

    key: str
    pictures: list[Image] = field(default_factory=list)
    texts: dict[str, bytes] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    num_bytes: int = 0
    fault: DataError | None = None


class _Watched(tarfile.TarInfo):
    """tarfile takes a damaged header after the first for the end; this one remembers it."""

    @classmethod
    def fromtarfile(cls, archive: Any) -> Any:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            archive.damage = error
            raise


def read_tar(path: str, format: str | None = None) -> Iterator[Sample | Reject]:
    """Rows of a tar shard, in its order."""
    compressed = files.suffix(path) != ".tar"
    mode: Any = "r|*" if compressed else "r|"
    group: _Group | None = None
    try:
        with files.reading(path) as stream:
            with tarfile.open(fileobj=stream, mode=mode, tarinfo=_Watched) as archive:
                for member in archive:
                    if member.isdir():
                        continue
                    key, ending = _split_name(member.name)
                    if group is not None and group.key != key:
                        yield _finish(group, path, format)
                        group = None
                    group = group or _Group(key)
                    _take(group, archive, member, ending, path, not compressed)
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
    group.num_bytes += member.size
    if fault is None and group.num_bytes > _MAX_ROW_BYTES:
        fault = ImageTooLarge(f"the row's members have {group.num_bytes:,} bytes together")
    if fault is not None:
        group.fault = group.fault or fault
        return
    file = archive.extractfile(member)
    assert file is not None
    picture = f".{ending.rsplit('.', 1)[-1]}" in PICTURE_SUFFIXES
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
        value = parse_json(text) if ".json" in texts else {"caption": _plain(text)}
        if not isinstance(value, dict):
            raise FormatError("the row's .json is not an object")
        if ".json" in texts and ".txt" in texts and not claims(value):
            value = {"caption": _plain(texts[".txt"].decode("utf-8", "replace"))} | value
        names = group.texts.get(".names", b"").decode("utf-8", "surrogateescape").splitlines()
        sample = bind(value, list(zip(names, group.pictures, strict=True)), where, format)
        if value.get("id") is None:
            # Keys start anew in every shard of a set; ids must not.
            shard = files.base_name(path).removesuffix(files.suffix(path))
            sample = replace(sample, id=f"{shard}/{group.key}")
        return sample
    except DataError as error:
        return Reject.of(error, where, raw, group.key)


def _plain(text: str) -> str:
    if "\0" in text:
        raise FormatError("the text contains a NUL byte")
    return text.strip()


def copy_tar(paths: Sequence[str], bad: set[int], target: str) -> int:
    """The good rows of tar shards as one; see `diptych.data.shards.copy_good`."""
    number, kept = -1, set()
    with files.replacing(target) as temporary, tarfile.open(temporary, "w") as out:
        for path in paths:
            key = None
            try:
                with files.reading(path) as stream:
                    with tarfile.open(fileobj=stream, mode="r|*") as archive:
                        for member in archive:
                            if member.isdir():
                                continue
                            if _split_name(member.name)[0] != key:
                                key, number = _split_name(member.name)[0], number + 1
                            if number not in bad:
                                out.addfile(member, archive.extractfile(member))
                                kept.add(number)
            except (tarfile.TarError, EOFError, OSError, ValueError, DataError):
                # Where a shard breaks off is one of the rejects already: of its last row, or
                # of its own when it has none.
                number += key is None
    return len(kept)
