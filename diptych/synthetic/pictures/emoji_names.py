"""Names and keywords of emoji in many languages, from the data of Unicode CLDR.

Source: emojibase-data (MIT), which packages the CLDR annotations.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from diptych.synthetic.pictures.collection import caption
from diptych.synthetic.pictures.fetch import Package

PACKAGE = Package(
    "npm",
    "emojibase-data",
    "17.0.0",
    "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    lambda name: name.count("/") == 2 and name.endswith(("/data.json", "/messages.json")),
)
_SKIN_TONES = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}


@dataclass(frozen=True, slots=True)
class Emoji:
    """Label in English, caption by language, group (smileys & emotion, food & drink ...)."""

    label: str
    captions: dict[str, str]
    group: str


@lru_cache(maxsize=2)
def read(folder: Path) -> dict[str, Emoji]:
    """Emoji by `key`; those without a group (letters of flags, parts of faces) are left out."""
    root = folder / "package"
    messages = json.loads((root / "en" / "messages.json").read_text(encoding="utf-8"))
    groups = {g["order"]: g["message"] for g in messages["groups"]}
    captions: dict[str, dict[str, str]] = {}
    labels: dict[str, tuple[str, str]] = {}
    for file in sorted(root.glob("*/data.json")):
        language = file.parent.name
        for row in json.loads(file.read_text(encoding="utf-8")):
            code = key(row["hexcode"])
            if code is None or "group" not in row:
                continue
            captions.setdefault(code, {})[language] = caption(row["label"], row.get("tags", ()))
            if language == "en":
                labels[code] = (row["label"], groups.get(row["group"], "other"))
    return {c: Emoji(label, captions[c], group) for c, (label, group) in labels.items()}


def key(hexcode: str) -> str | None:
    """Code points without the presentation mark; None for a variant in a skin tone.

    Skin tones are five near-copies of one drawing under nearly one name.
    """
    codes = [c for c in hexcode.upper().split("-") if c != "FE0F"]
    return None if _SKIN_TONES & set(codes) else "-".join(codes)
