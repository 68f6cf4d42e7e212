"""Tar shards in the WebDataset convention, streamed and never extracted.

Members with one key are one row: pictures beside a `.json` (a row of any format) or a `.txt` (a
caption). The key is the name up to its first dot; where that would melt rows into one (`IMG.1.jpg`
with `IMG.1.txt`, then `IMG.2.jpg` with `IMG.2.txt`), it is the name up to its last.

A member is a picture when its name or its first bytes say so. What is neither picture nor text is
counted and not read. A row with a member that is no plain file, climbs out of the archive, or comes
twice is rejected: nothing here would follow it, but other programs would. Of an uncompressed tar
the Images also know their place in the file (`span`), so that they can be read again without a
copy.

Source: github.com/webdataset/webdataset (README, "The WebDataset Format").
"""

from __future__ import annotations

import mimetypes
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from diptych.data.reading import files
from diptych.data.reading.folder import PICTURE_SUFFIXES
from diptych.data.reading.magic import HEAD_BYTES, MAX_IMAGE_BYTES, is_picture
from diptych.data.reading.rows import Reject
from diptych.data.reading.strict_json import id_in, parse_json
from diptych.data.reading.tar_keys import JSON, TEXTS, Group, Member, is_hidden
from diptych.data.sample import Image, Sample
from diptych.data.shard_row import bind, claims, holds_several
from diptych.errors import DataError, FormatError, ImageTooLarge, UnsafePath
from diptych.staging import replacing

SUFFIXES = frozenset({".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"})
_MAX_ROW_BYTES = 4 * MAX_IMAGE_BYTES
_BROKEN = (tarfile.TarError, EOFError, OSError, ValueError, DataError)


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


def read(
    path: str, format: str | None = None, passed_over: Counter[str] | None = None
) -> Iterator[Sample | Reject]:
    """Rows of a tar shard, in its order.

    Args:
        passed_over: counts, by ending, the members that are neither picture nor text.
    """
    passed_over = Counter() if passed_over is None else passed_over
    if not files.is_url(path) and files.exists(path.removesuffix(".tar") + ".parquet"):
        passed_over["Parquet files beside tar shards (what img2dataset writes about them)"] += 1
    compressed = files.suffix(path) != ".tar"
    mode: Any = "r|*" if compressed else "r|"
    group: Group | None = None
    try:
        with files.reading(path) as stream:
            with tarfile.open(fileobj=stream, mode=mode, tarinfo=_Watched) as archive:
                for info in archive:
                    # The archive keeps every header it has seen; a long shard must not.
                    archive.members = []  # type: ignore[attr-defined]
                    if info.isdir():
                        continue
                    if is_hidden(info.name):
                        passed_over["hidden members in tar shards"] += 1
                        continue
                    member = Member.named(info.name)
                    if group is not None and not group.takes(member):
                        yield from _finished(group, path, format, passed_over)
                        group = None
                    group = group or Group(member.key)
                    group.add(member)
                    _read(member, group, archive, info, None if compressed else path)
                damage = getattr(archive, "damage", None)
                if damage is not None:
                    raise tarfile.ReadError(f"no end mark, or a damaged header: {damage}")
    except _BROKEN as error:
        reason = error.what if isinstance(error, DataError) else str(error)
        if group is None:
            broken = DataError(f"the shard cannot be read to its end: {reason}")
            yield Reject.of(broken, path)
            return
        *whole, (key, _) = group.rows()
        for row in whole:
            yield _finish(*row, group.fault, path, format, passed_over)
        lost = DataError(f"the shard breaks off inside this row: {reason}")
        yield Reject.of(lost, f"{path}#{key}", "", key)
        return
    if group is not None:
        yield from _finished(group, path, format, passed_over)


def _read(
    member: Member,
    group: Group,
    archive: tarfile.TarFile,
    info: tarfile.TarInfo,
    path: str | None,
) -> None:
    """Read what a member holds, if it is picture or text; `path` is that of a seekable shard."""
    fault = _fault(info, group)
    if fault is not None:
        group.fault = group.fault or fault
        return
    file = archive.extractfile(info)
    assert file is not None
    head = b""
    if not member.is_text and member.ending not in PICTURE_SUFFIXES:
        head = file.read(HEAD_BYTES)
        if not is_picture(head):
            return
    group.num_bytes += info.size
    if info.size > MAX_IMAGE_BYTES or group.num_bytes > _MAX_ROW_BYTES:
        large = f"the member '{info.name}' has {info.size:,} bytes"
        if info.size <= MAX_IMAGE_BYTES:
            large = f"the row's members have {group.num_bytes:,} bytes together"
        group.fault = group.fault or ImageTooLarge(large)
        return
    data = file.read(info.size - len(head))
    data = head + data if head else data
    if len(data) != info.size:
        raise tarfile.ReadError(f"'{info.name}' ends after {len(data)} of {info.size} bytes")
    if member.is_text:
        member.text = data
    else:
        span = None if path is None else (info.offset_data, info.size)
        # The path is the shard's where the span can be used, else only a name.
        member.picture = Image(path or info.name, data, span)


def _fault(info: tarfile.TarInfo, group: Group) -> DataError | None:
    name = info.name
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        return UnsafePath(f"the member '{name}' leaves the archive")
    if not info.isreg() or info.sparse is not None:
        kinds = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device"}
        return UnsafePath(f"the member '{name}' is {kinds.get(info.type, 'no plain file')}")
    if group.names[name] > 1:
        return FormatError(f"the member '{name}' occurs twice")
    return None


def _finished(
    group: Group, path: str, format: str | None, passed_over: Counter[str]
) -> Iterator[Sample | Reject]:
    for key, members in group.rows():
        yield _finish(key, members, group.fault, path, format, passed_over)


def _finish(
    key: str,
    members: list[Member],
    fault: DataError | None,
    path: str,
    format: str | None,
    passed_over: Counter[str],
) -> Sample | Reject:
    where = f"{path}#{key}"
    raw = ""
    try:
        if fault is not None:
            raise fault
        pictures = [m for m in members if m.picture is not None]
        used = _texts(members)
        if not used and not (pictures and format == "pictures"):
            raise _without_text(members, pictures)
        raw = (used[0].text or b"").decode("utf-8", "backslashreplace") if used else ""
        value = _value(used) if used else {}
        if len(pictures) > 1 and not (holds_several(value) or {"image", "images"} & value.keys()):
            # `a.jpg` beside `a.seg.png`: the caption is about the one that has the row's name.
            own = [m for m in pictures if m.stem == key]
            pictures = own if len(own) == 1 else pictures
        named = [(m.name, m.picture) for m in pictures if m.picture is not None]
        sample = bind(value, named, where, format)
        for member in members:
            if member not in used and member not in pictures:
                if holds_several(value):
                    _refuse_media(member)
                ending = member.ending or "no ending"
                kind = "further pictures of captions" if member.picture else "members"
                passed_over[f"{kind} in tar shards ({ending})"] += 1
        if value.get("id") is None:
            # Keys start anew in every shard of a set; ids must not.
            shard = files.base_name(path).removesuffix(files.suffix(path))
            sample = replace(sample, id=f"{shard}/{key}")
        return sample
    except DataError as error:
        return Reject.of(error, where, raw, (id_in(raw) if raw.startswith("{") else None) or key)


def _refuse_media(member: Member) -> None:
    """A conversation about a video or sound would be learned without it."""
    kind = (mimetypes.guess_type(f"x{member.ending}")[0] or "").partition("/")[0]
    if kind in ("audio", "video"):
        raise FormatError(f"the row has {kind} ({member.name}), which cannot be read yet")


def _texts(members: list[Member]) -> list[Member]:
    """The row's `.json`, and its caption if it has one.

    Raises:
        FormatError: there are two of a kind.
    """
    used = []
    for endings in ((JSON,), TEXTS):
        # `.txt` before its rarer names, which then are passed over.
        best = min(
            (m.ending for m in members if m.ending in endings), key=endings.index, default=""
        )
        same = [m for m in members if m.ending == best and m.is_text]
        if len(same) > 1:
            names = ", ".join(m.name for m in same[:8])
            raise FormatError(f"it cannot be told which is the row's text: {names}")
        used += same
    return used


def _without_text(members: list[Member], pictures: list[Member]) -> FormatError:
    names = ", ".join(m.name for m in members[:4]) + (", ..." if len(members) > 4 else "")
    if not pictures:
        return FormatError(f"the row has neither text nor picture ({names})")
    if any(m.ending in (".cls", ".cls2") for m in members):
        return FormatError(
            f"the row has a class number and no text beside its picture ({names})",
            fix="write the name of the class beside it as .txt, or a .json with `caption`",
        )
    one = len(members) == 1
    return FormatError(
        "the row has no .json and no .txt beside its pictures"
        + ("" if one else f"; {len(members)} members have its key ({names})")
    )


def _value(used: list[Member]) -> dict[str, Any]:
    texts = {member.ending == JSON: _decoded(member) for member in used}
    if True not in texts:
        return {"caption": _plain(texts[False])}
    value = parse_json(texts[True])
    if not isinstance(value, dict):
        raise FormatError("the row's .json is not an object")
    if False in texts and not claims(value):
        value = {"caption": _plain(texts[False])} | value
    return value


def _decoded(member: Member) -> str:
    try:
        return (member.text or b"").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"the text in '{member.name}' is not UTF-8: {error.reason}") from None


def _plain(text: str) -> str:
    if "\0" in text:
        raise FormatError("the text contains a NUL byte")
    return text.strip()


def copy_good(paths: Sequence[str], bad: set[int], target: str) -> int:
    """The good rows of tar shards as one; see `data/source.py`."""
    start, kept = 0, set()
    with replacing(target) as temporary, tarfile.open(temporary, "w") as out:
        for path in paths:
            # Which row a member belongs to may show only at the row's end: names first, then bytes.
            row_of: dict[int, int] = {}
            num_rows = _number_rows(path, row_of)
            try:
                with files.reading(path) as stream:
                    with tarfile.open(fileobj=stream, mode="r|*") as archive:
                        for position, info in enumerate(archive):
                            archive.members = []  # type: ignore[attr-defined]
                            row = start + row_of.get(position, 0)
                            if position in row_of and row not in bad:
                                out.addfile(info, archive.extractfile(info))
                                out.members = []  # type: ignore[attr-defined]
                                kept.add(row)
            except _BROKEN:
                pass  # where it breaks off is one of the rejects already
            start += num_rows
    return len(kept)


def _number_rows(path: str, row_of: dict[int, int]) -> int:
    """Number of items that `read` gives; `row_of` receives the row of each member."""
    rows = 0
    group: Group | None = None
    positions: dict[int, int] = {}

    def finish(group: Group) -> int:
        for number, (_, members) in enumerate(group.rows()):
            row_of.update((positions.pop(id(member)), rows + number) for member in members)
        return len(group.rows())

    broken = False
    try:
        with files.reading(path) as stream:
            with tarfile.open(fileobj=stream, mode="r|*") as archive:
                for position, info in enumerate(archive):
                    archive.members = []  # type: ignore[attr-defined]
                    if info.isdir() or is_hidden(info.name):
                        continue
                    member = Member.named(info.name)
                    if group is not None and not group.takes(member):
                        rows += finish(group)
                        group = None
                    group = group or Group(member.key)
                    group.add(member)
                    positions[id(member)] = position
    except _BROKEN:
        broken = True
    # A shard that breaks off between rows, or before the first, is one reject of its own.
    return rows + (finish(group) if group is not None else int(broken))
