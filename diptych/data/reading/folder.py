"""Folder: what the files in a folder of pictures are, told by their content.

A file whose name ends as a picture's counts as one; where it is none, decoding names the fault. Any
other is looked into, as browsers and caches keep pictures under other names (`.jpg_large`, no
ending at all). What is neither a picture nor a text is passed over and counted.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from typing import Literal

from diptych.data.reading import files
from diptych.data.reading.magic import HEAD_BYTES, is_picture

Kind = Literal["picture", "text", "other", "hidden", "linked folder"]
PICTURE_SUFFIXES = frozenset(
    {
        *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".webp", ".avif"),
        *(".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
    }
)
_UNREAD_SUFFIXES = frozenset(
    {
        *(".heic", ".heif", ".hif", ".jxl", ".jp2", ".j2k", ".svg", ".psd", ".ico", ".tga"),
        *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
    }
)
"""Pictures by name that `decode` refuses, which makes them named rejects."""


def kinds(folder: str) -> Iterator[tuple[str, Kind]]:
    """(name relative to the folder, kind) of every file below it, in the order of `files.walk`."""
    for name in files.walk(folder, everything=True):
        yield name, _kind(folder, name)


def _kind(folder: str, name: str) -> Kind:
    if any(part.startswith(".") for part in name.replace(os.sep, "/").split("/")):
        return "hidden"
    if files.suffix(name) == ".txt":
        return "text"
    if holds_picture(folder, name):
        return "picture"
    is_linked = not files.is_url(folder) and os.path.isdir(os.path.join(folder, name))
    return "linked folder" if is_linked else "other"


def holds_picture(folder: str, name: str) -> bool:
    """Whether a file looks like a picture, by its name or else by its first bytes."""
    ending = files.suffix(name)
    if ending in PICTURE_SUFFIXES or ending in _UNREAD_SUFFIXES:
        return True
    path = files.join(folder, name)
    if files.is_url(folder):
        return is_picture(files.read_range(path, 0, HEAD_BYTES))
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a named pipe would hang the reader
            return False
        with open(path, "rb") as file:
            return is_picture(file.read(HEAD_BYTES))
    except OSError:  # not to be read: passed over, and counted
        return False


def stem(folder: str, name: str) -> str:
    """What a picture and its text have in common: the name without its ending.

    A name that is not known to end as a picture's (`IMG.1`) may be without an ending; then its text
    is the file `IMG.1.txt`.
    """
    ending = files.suffix(name)
    known = ending == ".txt" or ending in PICTURE_SUFFIXES or ending in _UNREAD_SUFFIXES
    if not known and files.exists(files.join(folder, f"{name}.txt")):
        return name
    return os.path.splitext(name)[0]


def has_pairs(folder: str) -> bool:
    """Whether a picture has a text beside it."""
    texts: set[str] = set()
    last = ""
    for name, kind in kinds(folder):
        if kind == "picture":
            last = stem(folder, name)
        elif kind == "text":
            if (own := stem(folder, name)) == last:
                return True  # of most folders of pairs the first two files say so
            texts.add(own)
    return bool(texts) and any(
        kind == "picture" and stem(folder, name) in texts for name, kind in kinds(folder)
    )


def passed_over(folder: str, *, texts: bool) -> Counter[str]:
    """How many files are no rows, by what they are; a hidden folder counts as one file.

    Args:
        texts: `.txt` files are rows or parts of rows, and not passed over.
    """
    found: Counter[str] = Counter()
    for name, kind in kinds(folder):
        if kind == "other" or (kind == "text" and not texts):
            ending = files.suffix(name)
            found[f"{ending} files" if ending else "files without an ending"] += 1
        elif kind in ("hidden", "linked folder"):
            found["hidden files" if kind == "hidden" else "linked folders"] += 1
    return found
