"""Files, wherever they are: open, list and describe them, and replace them in one step.

Reading works on local paths and on any URL that fsspec opens; writing is local. Whatever a
file system or a network raises leaves this module as a named error with the path in it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from diptych.errors import DataError, DiptychError, MissingExtra

CHUNK_BYTES = 1 << 20


def is_url(path: str) -> bool:
    """True for `scheme://...` (and fsspec's chained URLs), False for a local path."""
    return "://" in path


def join(folder: str, name: str) -> str:
    """`name` inside `folder`, which may be a URL."""
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else os.path.join(folder, name)


def parent(path: str) -> str:
    """The folder that holds `path`."""
    return path.rsplit("/", 1)[0] if is_url(path) else (os.path.dirname(path) or ".")


def base_name(path: str) -> str:
    """The last component of a path or URL, without a URL's query."""
    name = path.rstrip("/").rsplit("/", 1)[-1]
    return name.split("?", 1)[0] if is_url(path) else name


def suffix(path: str) -> str:
    """Lower-case suffix such as `.json`; `.tar.gz` counts as one."""
    name = base_name(path).lower()
    for double in (".tar.gz", ".tar.bz2", ".tar.xz"):
        if name.endswith(double):
            return double
    return os.path.splitext(name)[1]


@contextmanager
def _named_errors(path: str) -> Iterator[None]:
    # fsspec back ends raise their own libraries' errors (botocore, aiohttp); whichever it is,
    # the user needs the path and the reason.
    try:
        yield
    except DiptychError:
        raise
    except FileNotFoundError:
        raise DataError(
            "there is no such file", where=path, fix="check the path; it is taken as written"
        ) from None
    except ImportError as error:
        raise MissingExtra(
            f"reading this address needs a package that is not installed: {error}",
            where=path,
            fix="install it with pip (s3fs for s3://, aiohttp for https://)",
        ) from None
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise DataError(
            f"the file cannot be read: {reason}", where=path, fix="check the path and your access"
        ) from error


class _Stream:
    """A sequential reader whose failures are named errors."""

    def __init__(self, file: Any, path: str):
        self._file = file
        self._path = path

    def read(self, size: int = -1) -> bytes:
        with _named_errors(self._path):
            return self._file.read(size)

    def close(self) -> None:
        self._file.close()


@contextmanager
def reading(path: str) -> Iterator[BinaryIO]:
    """Open a file to be read from start to end.

    Raises:
        DataError: there is no such file, it is a folder, or it cannot be read.
        MissingExtra: the URL's scheme needs a package that is not installed.
    """
    with _named_errors(path):
        if is_url(path):
            import fsspec

            # Without a block size the http file system needs a server that serves ranges.
            options = {"block_size": 0} if path.startswith(("http://", "https://")) else {}
            file = fsspec.open(path, "rb", **options).open()
        else:
            file = open(path, "rb")
    stream = _Stream(file, path)
    try:
        yield stream  # type: ignore[misc]
    finally:
        stream.close()


def read_range(path: str, offset: int, length: int) -> bytes:
    """Bytes `offset .. offset + length` of a file."""
    with _named_errors(path):
        if is_url(path):
            import fsspec

            file_system, inner = fsspec.core.url_to_fs(path)
            return file_system.cat_file(inner, start=offset, end=offset + length)
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(length)


def is_folder(path: str) -> bool:
    """Whether `path` is a folder (for object stores: has keys below it)."""
    with _named_errors(path):
        if not is_url(path):
            return os.path.isdir(path)
        if path.startswith(("http://", "https://")):
            return False
        import fsspec

        file_system, inner = fsspec.core.url_to_fs(path)
        return file_system.isdir(inner)


def exists(path: str) -> bool:
    """Whether a file or folder of that name is there."""
    with _named_errors(path):
        if not is_url(path):
            return os.path.exists(path)
        import fsspec

        file_system, inner = fsspec.core.url_to_fs(path)
        return file_system.exists(inner)


def walk(folder: str, *, everything: bool = False) -> Iterator[str]:
    """Names of all files below `folder`, relative to it, sorted; hidden ones are left out.

    Args:
        everything: also hidden files, and folders that are hidden or links, which are not entered.

    Raises:
        DataError: a folder cannot be listed.
    """
    if is_url(folder):
        with _named_errors(folder):
            import fsspec

            file_system, inner = fsspec.core.url_to_fs(folder)
            inner = inner.rstrip("/")
            names = sorted(name[len(inner) + 1 :] for name in file_system.find(inner))
        last = ""
        for name in names:
            pieces = name.split("/")
            hidden = next((n for n, piece in enumerate(pieces) if piece.startswith(".")), None)
            if hidden is not None:
                name = "/".join(pieces[: hidden + 1])
            if hidden is None or (everything and name != last):
                yield name
            last = name
        return

    def fail(error: OSError) -> None:
        raise DataError(
            f"the folder cannot be listed: {error.strerror or error}",
            where=str(error.filename),
            fix="check its permissions",
        )

    for where, folders, names in os.walk(folder, onerror=fail):
        shut = {f for f in folders if f.startswith(".") or os.path.islink(os.path.join(where, f))}
        folders[:] = sorted(set(folders) - shut)
        for name in sorted([*names, *shut] if everything else names):
            if everything or not name.startswith("."):
                yield os.path.relpath(os.path.join(where, name), folder)


def expand(pattern: str) -> list[str]:
    """Files that a glob pattern names, sorted."""
    with _named_errors(pattern):
        if is_url(pattern):
            import fsspec

            file_system, inner = fsspec.core.url_to_fs(pattern)
            return sorted(file_system.unstrip_protocol(name) for name in file_system.glob(inner))
        import glob

        return sorted(glob.glob(pattern, recursive=True))


def identity(path: str) -> list[Any]:
    """What changes when a file changes: its full name, size in bytes, and time or entity tag."""
    with _named_errors(path):
        if not is_url(path):
            if os.path.isdir(path):
                return [os.path.abspath(path), *_contents(path)]
            status = os.stat(path)
            return [os.path.abspath(path), status.st_size, status.st_mtime_ns]
        import fsspec

        file_system, inner = fsspec.core.url_to_fs(path)
        info = file_system.info(inner)
        mark = info.get("ETag") or info.get("LastModified") or info.get("mtime")
        return [path, info.get("size"), str(mark)]


def _contents(folder: str) -> tuple[int, str]:
    """Number of a folder's files, and a hash of their names, sizes and times."""
    found = []
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in names:
            file = os.path.join(root, name)
            try:
                status = os.stat(file)
            except OSError:  # a dangling link, or gone since: a fault of its own when it is read
                found.append(f"{file} missing")
                continue
            found.append(f"{file} {status.st_size} {status.st_mtime_ns}")
    joined = "\n".join(sorted(found)).encode("utf-8", "surrogateescape")
    return len(found), hashlib.sha256(joined).hexdigest()
