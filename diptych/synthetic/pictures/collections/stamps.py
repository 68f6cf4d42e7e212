"""Tux Paint stamps: drawings and photographs with a sentence in dozens of languages (GPL-2.0)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from diptych.synthetic.pictures.collection import Entry
from diptych.synthetic.pictures.fetch import Package

PACKAGES = (
    Package(
        "apt",
        "tuxpaint-stamps-default",
        "2022.06.04-1",
        "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        lambda name: "/stamps/" in name and name.endswith((".png", ".svg", ".txt")),
    ),
)
_LANGUAGE = re.compile(r"^([A-Za-z_@]+)\.utf8=(.*)$")


def entries(folders: Sequence[Path]) -> Iterator[Entry]:
    """Stamps with a text beside them; the first line is English."""
    root = folders[0] / "usr/share/tuxpaint/stamps"
    for file in sorted(root.rglob("*.txt")):
        shown = next((f for s in (".svg", ".png") if (f := file.with_suffix(s)).is_file()), None)
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        if shown is None or not lines or not lines[0].strip():
            continue
        captions = {"en": lines[0].strip()}
        for line in lines[1:]:
            if (found := _LANGUAGE.match(line)) and found[2].strip():
                captions.setdefault(found[1].replace("_", "-").lower(), found[2].strip())
        place = shown.relative_to(root)
        is_svg = shown.suffix == ".svg"
        yield Entry(
            id=f"stamps/{place.with_suffix('')}",
            concept=f"stamp {place.with_suffix('')}",
            name=captions["en"],
            captions=captions,
            category=place.parts[0],
            licence="GPL-2.0-only",
            source=f"{PACKAGES[0].reference}: {place}",
            author="Tux Paint",
            picture=shown.read_text(encoding="utf-8", errors="replace")
            if is_svg
            else shown.read_bytes(),
        )
