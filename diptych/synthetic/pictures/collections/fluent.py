"""Fluent Emoji: Microsoft's emoji in the flat style (MIT), as packaged in fluentui-emoji."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from diptych.synthetic.pictures import emoji_names
from diptych.synthetic.pictures.collection import Entry
from diptych.synthetic.pictures.fetch import Package

PACKAGES = (
    Package(
        "npm",
        "fluentui-emoji",
        "1.3.0",
        "ec892e607e854859b812c7d827801756adc19955b0ef56d4ae8afcddd19492c5",
        lambda name: "/icons/modern/" in name and name.endswith(".svg"),
    ),
    emoji_names.PACKAGE,
)


def entries(folders: Sequence[Path]) -> Iterator[Entry]:
    """Emoji whose file is named as Unicode names them, skin tones left out."""
    names = {_slug(emoji.label): (code, emoji) for code, emoji in
             emoji_names.read(folders[1]).items()}  # fmt: skip
    for file in sorted(folders[0].rglob("*.svg")):
        if file.stem not in names:
            continue
        code, emoji = names[file.stem]
        yield Entry(
            id=f"fluent/{code.lower()}",
            concept=f"emoji {code.lower()}",
            name=emoji.label,
            captions=emoji.captions,
            category=emoji.group,
            licence="MIT",
            source=f"{PACKAGES[0].reference}: {file.name}",
            author="Microsoft",
            picture=file.read_text(encoding="utf-8"),
        )


def _slug(label: str) -> str:
    plain = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain.replace("'", "").replace(".", "")).strip("-")
