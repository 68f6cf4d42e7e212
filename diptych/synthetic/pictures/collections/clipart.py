"""Open Clip Art Library: thousands of drawings with titles and keywords (public domain)."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

from diptych.synthetic.pictures.collection import Entry, caption, spoken
from diptych.synthetic.pictures.fetch import Package

log = logging.getLogger(__name__)

PACKAGES = (
    Package(
        "apt",
        "openclipart-svg",
        "1:0.18+dfsg-19",
        "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
        lambda name: name.endswith(".svg"),
    ),
)
_DC = "{http://purl.org/dc/elements/1.1/}"
_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
_WORK = re.compile(r"<(?:cc:)?Work\b.*?</(?:cc:)?Work>", re.DOTALL)
_MAX_BYTES = 2_000_000
_SERIES = re.compile(r"clip ?art\b", re.IGNORECASE)
_NUMBER = re.compile(r"(0x)?[0-9a-f]*\d[0-9a-f]*$")
_EMPTY = {
    "",
    "hash",
    "unsorted",
    "clip art",
    "clipart",
    "image",
    "media",
    "public domain",
    "png",
    "svg",
}


MAX_SHARED = 5
"""A title of more drawings than this names a series ("Homes Clipart"), not what is drawn."""


def entries(folders: Sequence[Path]) -> Iterator[Entry]:
    """Drawings with a name of letters: their title, or where that is a whole series', their file's.

    The keywords are the drawing's own and the names of its folders; the first folder is the
    category.
    """
    root = folders[0] / "usr/share/openclipart/svg"
    files = [f for f in sorted(root.rglob("*.svg")) if f.stat().st_size <= _MAX_BYTES]
    described = [_described(f.read_text(encoding="utf-8", errors="replace")) for f in files]
    shared = Counter(spoken(title or "").casefold() for title, _, _ in described)
    for file, (title, keywords, author) in zip(files, described, strict=True):
        place = file.relative_to(root)
        name = spoken(title or "")
        if shared[name.casefold()] > MAX_SHARED or _SERIES.match(name):
            name = _without(spoken(file.stem), author)
        if len(re.findall(r"[^\W\d_]", name)) < 3:
            continue
        folder = [spoken(p) for p in place.parts[:-1]]
        said = [k for k in map(spoken, (*keywords, *reversed(folder))) if _says(k, author)]
        yield Entry(
            id=f"clipart/{place.with_suffix('')}",
            concept=f"clipart {name.casefold()}",
            name=name,
            captions={"en": caption(name, said)},
            category=folder[0] if folder else "other",
            licence="public domain",
            source=f"{PACKAGES[0].reference}: {place}",
            author=author,
            picture=file.read_text(encoding="utf-8", errors="replace"),
        )


def _says(keyword: str, author: str | None) -> bool:
    """Whether a keyword is about the drawing, and not its author, its licence or a number."""
    plain = keyword.casefold()
    return plain not in _EMPTY and plain != (author or "").casefold() and not _NUMBER.match(plain)


def _without(name: str, author: str | None) -> str:
    """A file's name without its author's: `hammer peterm` -> `hammer`."""
    names = {word[:4].casefold() for word in (author or "").split() if len(word) > 2}
    words = [w for w in name.split() if w[:4].casefold() not in names]
    return spoken(" ".join(words))


def _described(text: str) -> tuple[str | None, list[str], str | None]:
    """(title, keywords, author) of the drawing's metadata; nothing where it cannot be read."""
    found = _WORK.search(text)
    if found is None:
        return None, [], None
    spaces = " ".join(
        f'xmlns:{prefix}="{uri}"'
        for prefix, uri in (
            ("cc", "c"), ("dc", _DC[1:-1]), ("rdf", _RDF[1:-1]), ("dcterms", "t"), ("svg", "s"),
        )
    )  # fmt: skip
    try:
        work = ElementTree.fromstring(f"<x {spaces}>{found[0]}</x>")[0]
    except ElementTree.ParseError as error:
        log.debug("metadata that cannot be read: %s", error)
        return None, [], None
    title = work.findtext(f"{_DC}title")
    keywords = [(li.text or "").strip() for li in work.iterfind(f"{_DC}subject//{_RDF}li")]
    author = work.findtext(f"{_DC}creator//{_DC}title")
    return title, keywords, (author or "").strip() or None
