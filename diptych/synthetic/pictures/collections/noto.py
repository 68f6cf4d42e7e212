"""Noto Emoji: Google's emoji (Apache-2.0), as packaged in emoji-datasource (MIT)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from diptych.synthetic.pictures import emoji_names
from diptych.synthetic.pictures.collection import Entry
from diptych.synthetic.pictures.fetch import Package

PACKAGES = (
    Package(
        "npm",
        "emoji-datasource-google",
        "16.0.0",
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        lambda name: "/img/google/64/" in name,
    ),
    emoji_names.PACKAGE,
)


def entries(folders: Sequence[Path]) -> Iterator[Entry]:
    """Emoji that have a name, 64 pixels wide."""
    names = emoji_names.read(folders[1])
    for file in sorted(folders[0].rglob("*.png")):
        code = emoji_names.key(file.stem)
        if code is None or code not in names:
            continue
        emoji = names[code]
        yield Entry(
            id=f"noto/{code.lower()}",
            concept=f"emoji {code.lower()}",
            name=emoji.label,
            captions=emoji.captions,
            category=emoji.group,
            licence="Apache-2.0",
            source=f"{PACKAGES[0].reference}: {file.name}",
            author="Google",
            picture=file.read_bytes(),
        )
