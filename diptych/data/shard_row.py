"""A row that carries its pictures' bytes with it, as a Sample.

Tar and Parquet rows are rows of any format whose pictures lie beside them instead of behind
a path. The format's own `parse` reads the row; then the paths it found are replaced by the
pictures themselves, by name where the names agree, else in order.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Any

from diptych import parts
from diptych.data import format as formats
from diptych.data.rows import Row
from diptych.data.sample import Image, Sample, Turn
from diptych.errors import FormatError, MissingImage

MAX_IMAGE_BYTES = 64 << 20


def claims(value: dict[str, Any]) -> list[str]:
    """Names of the formats whose rows look like this one."""
    return [n for n in parts.names(formats.FOLDER) if formats.find(n).sniff(value)]


def bind(
    value: dict[str, Any],
    pictures: list[tuple[str, Image]],
    where: str,
    format: str | None,
    number: int = 0,
) -> Sample:
    """The row as a Sample whose Images are `pictures`.

    A picture that the row names is bound by name, the others in order. A row that names none
    (a caption beside a picture, a conversation with markers only) takes all there are.
    """
    # Names are made unique first, so that binding by name cannot pick the wrong one.
    unique = {f"{i}/{name}": image for i, (name, image) in enumerate(pictures)}
    if len(pictures) and not any(key in value for key in ("image", "images")):
        named = list(unique)
        typed = "messages" in value and '"image' in json.dumps(value["messages"])
        if not typed:
            value = value | {"image" if "messages" not in value else "images": _one(named)}
        elif _has_places(value["messages"]):
            value = value | {"images": named}
    name = format or _only_claim(value)
    sample = formats.find(name).parse(Row(value, where, "", number))
    return _replace_images(sample, pictures, list(unique))


def _one(names: list[str]) -> Any:
    return names[0] if len(names) == 1 else names


def _has_places(messages: Any) -> bool:
    return any(
        isinstance(part, dict)
        and part.get("type") == "image"
        and not any(part.get(k) for k in ("image", "path", "url"))
        for message in messages
        if isinstance(message, dict) and isinstance(message.get("content"), list)
        for part in message["content"]
    )


def _only_claim(value: dict[str, Any]) -> str:
    found = claims(value)
    if len(found) == 1:
        return found[0]
    known = ", ".join(parts.names(formats.FOLDER))
    raise FormatError(
        f"the row's format cannot be told from its keys ({', '.join(value)}); name one of {known}"
    )


def _replace_images(sample: Sample, pictures: list[tuple[str, Image]], unique: list[str]) -> Sample:
    named = list(sample.images())
    if len(named) != len(pictures):
        raise MissingImage(f"the row refers to {len(named)} pictures and carries {len(pictures)}")
    by_base = {os.path.basename(name): image for name, image in pictures}
    by_unique = dict(zip(unique, (image for _, image in pictures), strict=True))
    distinct = len(by_base) == len(pictures)

    def pick(order: int, image: Image) -> Image:
        if image.path in by_unique:
            return by_unique[image.path]
        if distinct and os.path.basename(image.path) in by_base:
            return by_base[os.path.basename(image.path)]
        return pictures[order][1]

    order = 0
    turns: list[Turn] = []
    for turn in sample.turns:
        parts_: list[Any] = []
        for part in turn.parts:
            if isinstance(part, Image):
                parts_.append(pick(order, part))
                order += 1
            else:
                parts_.append(part)
        turns.append(Turn(turn.role, tuple(parts_)))
    return replace(sample, turns=tuple(turns))
