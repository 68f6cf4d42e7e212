"""Contract of a collection: drawings with captions out of packages.

A part in `collections/` names its `PACKAGES` and has `entries(folders)`: every drawing that has a
caption, read from the unpacked packages, in a fixed order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from diptych import parts
from diptych.synthetic.pictures.fetch import Package

FOLDER = "synthetic.pictures.collections"
MAX_KEYWORDS = 6


@dataclass(frozen=True, slots=True)
class Entry:
    """One drawing.

    Attributes:
        id: collection and name, unique.
        concept: what it shows, alike for drawings of the same thing.
        name: what it is called in English, without keywords.
        captions: language -> caption; keywords stand behind a colon.
        category: a coarse class of what it shows.
        licence: SPDX identifier or `public domain`.
        source: package, version and file.
        author: where the package names one.
        picture: encoded picture, or the text of an SVG.
    """

    id: str
    concept: str
    name: str
    captions: Mapping[str, str]
    category: str
    licence: str
    source: str
    picture: bytes | str
    author: str | None = None


class Collection(Protocol):
    """What every file in `collections/` offers."""

    PACKAGES: Sequence[Package]

    def entries(self, folders: Sequence[Path]) -> Iterator[Entry]:
        """All drawings with captions; `folders` are the unpacked packages, in order."""
        ...


def find(name: str) -> Collection:
    """The collection of that name.

    Raises:
        PartNotFound: there is none; the message lists those that exist.
    """
    return cast(Collection, parts.find(FOLDER, name))


def names() -> list[str]:
    """Names of all collections."""
    return parts.names(FOLDER)


def caption(name: str, keywords: Iterable[str]) -> str:
    """`name: keyword, keyword`, without keywords that the name says already."""
    said = name.casefold()
    new = dict.fromkeys(k.strip() for k in keywords if k.strip() and k.casefold() not in said)
    kept = list(new)[:MAX_KEYWORDS]
    return f"{name}: {', '.join(kept)}" if kept else name


def spoken(name: str) -> str:
    """A file's or drawing's name as words: `red_apple_02` -> `red apple`."""
    words = re.sub(r"[_\-\s]+", " ", name).strip()
    return re.sub(r"( [0-9a-f]*\d[0-9a-f]*)+$", "", words).strip()
