"""Source: where rows and pictures come from.

A part in `sources/` is a kind of shard, a file whose rows carry their pictures with them. Its
module has

    SUFFIXES                        how the names of such files end
    read(path, format, passed_over) -> iterator   a whole file: Samples, and a Reject for every row
                                    that is none; what cannot be read at all is one Reject. Counted
                                    in `passed_over`, by kind, is what is neither read nor rejected.
    copy_good(paths, bad, target) -> int   one shard with the good rows of `paths`; their number.
                                    `bad` are positions, over all of them, of the items of `read`.

`rows` makes one stream of Samples from whatever a path names: a data file, a folder, tar or
Parquet shards, a glob, a list, on disk or behind any URL that fsspec opens. `read_bytes`
fetches a picture that a row refers to, and is the guard of the image folder: what a row says
is hostile, so it can only ever name a plain file inside that folder.
"""

from __future__ import annotations

import functools
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, cast

from diptych import parts
from diptych.data import format as formats
from diptych.data.reading import files
from diptych.data.reading import folder as folders
from diptych.data.reading.magic import MAX_IMAGE_BYTES
from diptych.data.reading.rows import Reject
from diptych.data.sample import Image, Sample
from diptych.errors import (
    DataError,
    EmptyImage,
    FormatError,
    ImageTooLarge,
    MissingImage,
    NotAnImage,
    UnsafePath,
)

FOLDER = "data.sources"
_DATA_SUFFIXES = frozenset({".json", ".jsonl", ".ndjson", ".csv", ".tsv"})


@dataclass(frozen=True)
class Source:
    """What a path turned out to name.

    Attributes:
        paths: data files or shards, or one folder of pictures and texts.
        root: folder (or URL) that image paths are relative to.
        format: name of the format; None tells it shard row by shard row.
        passed_over: what the last `rows` met and did not read, by kind: members of tar shards
            and columns of Parquet that are neither picture nor text, files in a folder of
            pictures. It is no row and no reject.
    """

    paths: tuple[str, ...]
    root: str
    format: str | None
    passed_over: Counter[str] = field(default_factory=Counter, compare=False, repr=False)

    @property
    def is_shards(self) -> bool:
        """Whether pictures travel inside the rows."""
        return is_shard(self.paths[0])

    def rows(self) -> Iterator[Sample | Reject]:
        """All rows, in order. Generated ids are told apart by the file's number."""
        self.passed_over.clear()
        for number, path in enumerate(self.paths):
            if self.is_shards:
                items = find(path).read(path, self.format, self.passed_over)
            else:
                items = formats.read(path, self.format)
                if files.is_folder(path):
                    texts = self.format != "pictures"
                    self.passed_over.update(folders.passed_over(path, texts=texts))
            if len(self.paths) == 1:
                yield from items
                continue
            for item in items:
                if isinstance(item, Sample) and item.id.startswith("row-"):
                    item = replace(item, id=f"row-{number}-{item.id[4:]}")
                yield item


class Shards(Protocol):
    """What a module in `sources/` provides."""

    SUFFIXES: frozenset[str]

    def read(
        self, path: str, format: str | None = None, passed_over: Counter[str] | None = None
    ) -> Iterator[Sample | Reject]: ...

    def copy_good(self, paths: Sequence[str], bad: set[int], target: str) -> int: ...


@functools.cache
def _by_suffix() -> dict[str, Shards]:
    modules = [cast(Shards, parts.find(FOLDER, name)) for name in parts.names(FOLDER)]
    return {suffix: module for module in modules for suffix in module.SUFFIXES}


def is_shard(path: str) -> bool:
    """Whether the name is that of a file whose rows carry their pictures."""
    return files.suffix(path) in _by_suffix()


def find(path: str) -> Shards:
    """The part of `sources/` that reads a shard."""
    return _by_suffix()[files.suffix(path)]


def rows(
    path: str | Sequence[str], format: str | None = None, images: str | None = None
) -> Iterator[Sample | Reject]:
    """Stream the rows that a path names; see `locate`."""
    return locate(path, format, images).rows()


def locate(
    path: str | Sequence[str], format: str | None = None, images: str | None = None
) -> Source:
    """Find out what `path` names.

    Args:
        path: a data file, a folder (of shards, of pictures with `.txt`, or with one data
            file), a tar or Parquet shard, a glob, or a list of files of one kind.
        format: name of the format; None detects it.
        images: folder that image paths are relative to; None takes the data file's own.

    Raises:
        DataError: nothing is there, a folder holds several things that could be meant, or there is
            no such image folder.
        FormatError: the format cannot be told.
    """
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    paths = [p for one in paths for p in _found(os.fspath(one), format)]
    kinds = {is_shard(p) for p in paths}
    if len(kinds) > 1:
        raise DataError("shards and data files cannot be read as one set", where=paths[0])
    first = paths[0].split(",")[0]
    if format is not None:
        formats.find(format)
    elif not is_shard(first):
        format = formats.detect(paths[0])
    if images is not None and not files.is_url(images) and not files.is_folder(images):
        raise DataError(
            "there is no such image folder",
            where=str(images),
            fix="check the path (--images); rows name their pictures relative to it",
        )
    root = images or (first if files.is_folder(first) else files.parent(first))
    return Source(tuple(paths), root, format)


def _found(path: str, format: str | None) -> list[str]:
    if any(character in path for character in "*?[") and not files.exists(path):
        found = files.expand(path)
        if not found:
            raise DataError("no file matches the pattern", where=path)
        return found
    # VQA's pair of files is one path; URLs of web servers may hold commas of their own.
    first = path.split(",")[0]
    if not files.is_folder(first):
        if not path.startswith(("http://", "https://")) and not files.exists(first):
            raise DataError(
                "there is no such file or folder",
                where=first,
                fix="check the path; it is taken as written",
            )
        return [path]
    return _in_folder(path, format)


def _in_folder(folder: str, format: str | None) -> list[str]:
    top, pictures = [], False
    for name in files.walk(folder):
        ending = files.suffix(name)
        if "/" not in name and os.sep not in name and (ending in _DATA_SUFFIXES or is_shard(name)):
            top.append(name)
        pictures = pictures or ending in folders.PICTURE_SUFFIXES
    # img2dataset writes beside each tar a Parquet file of its rows and one of counts.
    tars = {name.removesuffix(".tar") for name in top if name.endswith(".tar")}
    top = [n for n in top if not {n.removesuffix(".parquet"), n.removesuffix("_stats.json")} & tars]
    is_whole = format == "pictures" or (
        pictures and top and format in (None, "captions") and folders.has_pairs(folder)
    )
    if is_whole:
        # Beside pictures, a file that holds no rows is one of those that are passed over.
        top = [n for n in top if is_shard(n) or _holds_rows(folder, n)]
    if not pictures and not top:
        pictures = any(kind == "picture" for _, kind in folders.kinds(folder))
    shards = [name for name in top if is_shard(name)]
    data = [name for name in top if not is_shard(name)]
    if shards and len({files.suffix(n) for n in shards}) == 1 and not pictures:
        return [files.join(folder, name) for name in shards]
    questions = [n for n in data if "questions" in n.lower() and n.endswith(".json")]
    if len(data) == 1 or (len(data) == 2 and len(questions) == 1):
        return [files.join(folder, (questions or data)[0])]
    if pictures and not top:
        return [folder]
    if not top:
        raise DataError(
            "the folder holds no data: no data file, no shard, no picture",
            where=folder,
            fix="give a folder with one .json, .jsonl or .csv, with shards, or with pictures "
            "and .txt files beside them",
        )
    raise DataError(
        f"the folder holds several data files: {', '.join(top[:8])}",
        where=folder,
        fix="name the one you mean, or give a glob for shards of one kind",
    )


def _holds_rows(folder: str, name: str) -> bool:
    """Whether a data file is one: of a format that can be told, or rows that name a picture.

    A file named as a picture beside it (`0001.json`, `0001.jpg`) is about that picture alone.
    """
    path = files.join(folder, name)
    stem = os.path.splitext(path)[0]
    if any(files.exists(stem + ending) for ending in folders.PICTURE_SUFFIXES):
        return False
    try:
        formats.detect(path)
        return True
    except DataError:
        pass
    try:
        return isinstance(next(formats.read(path, "pictures"), None), Sample)
    except DataError:
        return False


def is_pictures_alone(path: str) -> bool:
    """Whether a path is a folder that holds pictures and not a text to any of them."""
    if not files.is_folder(path):
        return False
    try:
        is_whole = _in_folder(path, "pictures") == [path]
    except DataError:
        return False
    return is_whole and not folders.has_pairs(path)


def read_bytes(image: Image, root: str | None, *, max_bytes: int = MAX_IMAGE_BYTES) -> bytes:
    """The encoded bytes of a picture.

    Args:
        root: image folder, a local path or a URL; rows can name files inside it only.
        max_bytes: size that is still read.

    Raises:
        UnsafePath: the path leaves the folder (also through a symbolic link), is absolute,
            or has a scheme.
        MissingImage: there is no such file, or it may not be read.
        NotAnImage: it is a folder or a device.
        EmptyImage, ImageTooLarge: no bytes, or more than allowed.
    """
    where = image.path
    if image.data is not None:
        data = image.data
    elif image.span is not None:
        _check_size(image.span[1], where, max_bytes)
        data = files.read_range(image.path, *image.span)
        if len(data) != image.span[1]:
            raise MissingImage("the shard is shorter than it was", where=where)
    elif root is None:
        raise MissingImage("no image folder is known", where=where, fix="give the image folder")
    else:
        check_path(image.path)
        data = (_read_remote if files.is_url(root) else _read_local)(image.path, root, max_bytes)
    _check_size(len(data), where, max_bytes)
    return data


def check_path(path: str) -> None:
    """Make sure that a row's image path is relative, stays below, and has no scheme.

    Raises:
        UnsafePath: it is not so.
    """
    if "://" in path or path.lower().startswith(("data:", "file:")):
        scheme = path.split(":", 1)[0][:20]
        raise UnsafePath(
            f"rows cannot name pictures by {scheme}: addresses",
            where=path[:200],
            fix="download the pictures into the image folder first",
        )
    pieces = path.replace("\\", "/").split("/")
    if path.startswith(("/", "\\")) or (path[1:2] == ":" and path[:1].isalpha()):
        reason = "is absolute"
    elif ".." in pieces:
        reason = "climbs out of its folder"
    elif "\0" in path:
        reason = "contains a NUL character"
    else:
        return
    raise UnsafePath(
        f"the image path {reason}",
        where=path[:200],
        fix="give paths relative to the image folder",
    )


def _check_size(num_bytes: int, where: str, max_bytes: int) -> None:
    if num_bytes == 0:
        raise EmptyImage("the picture has no bytes", where=where, fix="fetch the picture again")
    if num_bytes > max_bytes:
        raise ImageTooLarge(
            f"the picture's file has {num_bytes:,} bytes and {max_bytes:,} are allowed",
            where=where,
            fix="scale it down, or drop the row",
        )


def _read_local(path: str, root: str, max_bytes: int) -> bytes:
    base = os.path.realpath(root)
    full = os.path.realpath(os.path.join(base, path))
    if full != base and not full.startswith(base.rstrip(os.sep) + os.sep):
        raise UnsafePath(
            "a symbolic link leads out of the image folder",
            where=path,
            fix="put the picture itself into the folder",
        )
    try:
        # Non-blocking, so that a named pipe in the folder cannot hang the reader.
        descriptor = os.open(full, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise MissingImage(
            f"the picture cannot be opened: {error.strerror or error}",
            where=os.path.join(root, path)[:400],
            fix="check the path and the image folder (--images)",
        ) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no plain file"
            raise NotAnImage(f"the path is {kind}", where=path, fix="name a picture's file")
        _check_size(status.st_size, path, max_bytes)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(max_bytes + 1)
    finally:
        os.close(descriptor)


def _read_remote(path: str, root: str, max_bytes: int) -> bytes:
    full = files.join(root, path)
    try:
        with files.reading(full) as stream:
            pieces, total = [], 0
            while total <= max_bytes and (piece := stream.read(files.CHUNK_BYTES)):
                pieces.append(piece)
                total += len(piece)
    except FormatError:
        raise
    except DataError as error:
        raise MissingImage(error.what, where=full, fix=error.fix) from None
    return b"".join(pieces)
