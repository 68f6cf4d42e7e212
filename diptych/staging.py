"""Staging: the one way to write files and folders, beside their place and then renamed.

What is written is flushed to the disk before it takes its name, so that a killed process or a full
disk leaves the old file or folder, or the new one, and nothing between.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from diptych import json_text
from diptych.errors import DataError

HASHES = "hashes.json"


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path` to write a file to; it replaces `path` in one step.

    When the block ends normally the temporary file is flushed to the disk and renamed; when
    it raises, the temporary file is removed and `path` stays as it was.

    Raises:
        DataError: the file cannot be written, or `path` is an address.
    """
    if "://" in str(path):
        raise DataError(
            "files are written to local folders only",
            where=str(path),
            fix="write to a local path and copy it afterwards",
        )
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            flush(temporary)
            os.replace(temporary, path)
            flush(path.parent)
        except OSError as error:
            raise DataError(
                f"the file cannot be written: {error.strerror or error}",
                where=str(path),
                fix="check the path, its permissions and the free space",
            ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Replace a file as a whole by a text in UTF-8; lone surrogates become question marks."""
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "replace"))


def write_json(path: str | Path, values: Any) -> None:
    """Replace a JSON file as a whole; a number that is none becomes null (`json_text`)."""
    write_text(path, json_text.dumps(values, indent=2) + "\n")


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """A new folder that becomes `target` as a whole, or not at all.

    Staged beside the target (same file system), hashes of every file written last into
    `hashes.json`, everything flushed, then renamed. An older target is moved aside first and
    removed afterwards.
    """
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    recover(target)
    stage = target.parent / f".{target.name}.new-{os.getpid()}"
    for left in (stage, *target.parent.glob(f".{target.name}.new-*")):
        if left == stage or not psutil.pid_exists(int(left.name.rpartition("-")[2])):
            shutil.rmtree(left, ignore_errors=True)  # what a killed save left behind
    stage.mkdir()
    try:
        yield stage
        hashes = {
            str(p.relative_to(stage)): file_hash(p) for p in sorted(stage.rglob("*")) if p.is_file()
        }
        (stage / HASHES).write_text(json.dumps(hashes, indent=2) + "\n")
        put_in_place(stage, target)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise


def put_in_place(stage: Path, target: Path) -> None:
    """Flush a folder and give it the name `target`, on the same file system.

    An older target is moved aside, put back when the new one cannot take its name, and removed.
    """
    old = target.parent / f".{target.name}.old-{os.getpid()}"
    for path in stage.rglob("*"):
        flush(path)
    flush(stage)
    try:
        if target.exists():
            target.rename(old)
        stage.rename(target)
        flush(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise


def recover(target: Path) -> None:
    """Put the old folder back when a save was killed between its two renames."""
    if not target.exists() and target.parent.is_dir():
        for old in target.parent.glob(f".{target.name}.old-*"):
            if is_valid(old):
                old.rename(target)
                return


def known_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 by file, as a staged folder states them; {} where it states none."""
    try:
        known = json.loads((folder / HASHES).read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def is_valid(folder: Path) -> bool:
    """Whether a staged folder is complete and unchanged."""
    try:
        hashes = json.loads((folder / HASHES).read_text())
        return all(file_hash(folder / name) == value for name, value in hashes.items())
    except (OSError, ValueError, AttributeError):
        return False


def file_hash(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Force a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
