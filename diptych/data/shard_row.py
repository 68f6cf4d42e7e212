"""A row that carries its pictures' bytes with it, as a Sample.

Tar and Parquet rows are rows of any format whose pictures lie beside them instead of behind
a path. The format's own `parse` reads the row; then the paths it found are replaced by the
pictures themselves, by name where the names agree, else in order.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from diptych import parts
from diptych.data import format as formats
from diptych.data.reading.rows import Row
from diptych.data.sample import Image, Sample
from diptych.errors import FormatError, MissingImage


@functools.cache
def _known() -> dict[str, formats.Format]:
    # Looking into the folder for every row would take longer than reading the row.
    return {name: formats.find(name) for name in parts.names(formats.FOLDER)}


def claims(value: dict[str, Any]) -> list[str]:
    """Names of the formats whose rows look like this one."""
    return [name for name, part in _known().items() if part.sniff(value)]


def holds_several(value: dict[str, Any]) -> bool:
    """Whether a row may show several pictures: it is a conversation, no caption or question."""
    return "messages" in value or "conversations" in value


def bind(
    value: dict[str, Any],
    pictures: Sequence[tuple[str, Image]],
    where: str,
    format: str | None,
    number: int = 0,
) -> Sample:
    """The row as a Sample whose Images are `pictures`.

    A picture that the row names is bound by name, the others in order. A row that names none
    (a caption beside a picture, a conversation with markers only) takes all there are.

    Args:
        pictures: (name, picture); no name occurs twice.

    Raises:
        FormatError: the row has another number of pictures than its format can hold, or its format
            cannot be told.
        MissingImage: the row refers to other pictures than it carries.
        DataError: as the format's `parse`.
    """
    if pictures and not {"image", "images"} & value.keys():
        named = [name for name, _ in pictures]
        if "messages" in value:
            if not _names_pictures(value["messages"]):
                value = value | {"images": named}
        elif len(named) > 1 and not holds_several(value):
            raise FormatError(
                f"the row has {len(named)} pictures ({', '.join(named[:8])}) and does not say "
                "which of them it is about",
                fix="name it in the row's `image`",
            )
        else:
            value = value | {"image": named[0] if len(named) == 1 else named}
    name = format or _only_claim(value)
    part = _known().get(name) or formats.find(name)
    sample = part.parse(Row(value, where, "", number))
    return _replace_images(sample, pictures)


def _names_pictures(messages: Any) -> bool:
    """Whether parts of messages name their pictures themselves."""
    return any(
        isinstance(part, dict)
        and (part.get("type") == "image_url" or any(part.get(k) for k in ("image", "path", "url")))
        for message in (messages if isinstance(messages, list) else [])
        if isinstance(message, dict) and isinstance(message.get("content"), list)
        for part in message["content"]
    )


def _only_claim(value: dict[str, Any]) -> str:
    found = claims(value)
    if len(found) == 1:
        return found[0]
    known = ", ".join(_known())
    raise FormatError(
        f"the row's format cannot be told from its keys ({', '.join(value)}); name one of {known}"
    )


def _replace_images(sample: Sample, pictures: Sequence[tuple[str, Image]]) -> Sample:
    wanted = [image.path for image in sample.images()]
    if not wanted and not pictures:
        return sample
    names = [name for name, _ in pictures]
    by_name = [_named(path, names) for path in wanted]
    found = [index for index in by_name if index is not None]
    if len(found) < len(wanted) and len(wanted) == len(names):
        if found:
            lost = wanted[by_name.index(None)]
            raise MissingImage(
                f"the row names '{lost[:200]}', and no picture beside it has that name",
                fix="name all of its pictures as they are named beside it, or none",
            )
        # Names that mean nothing here, files of the original data set: the order tells.
        found = list(range(len(wanted)))
    if len(found) < len(wanted) or len(set(found)) < len(names):
        raise MissingImage(f"the row refers to {len(wanted)} pictures and carries {len(names)}")
    chosen = iter([pictures[index][1] for index in found])
    turns = []
    for turn in sample.turns:
        shown = tuple(next(chosen) if isinstance(part, Image) else part for part in turn.parts)
        turns.append(replace(turn, parts=shown))
    return replace(sample, turns=tuple(turns))


def _named(path: str, names: list[str]) -> int | None:
    """Index of the one picture that a row's path names.

    It does so whole, by its last part, or by what follows the key in a tar (`1.png` names
    `key.1.png`).
    """
    if path in names:
        return names.index(path)
    base = os.path.basename(path)
    bases = [os.path.basename(name) for name in names]
    for matching in (
        [index for index, name in enumerate(bases) if name == base],
        [index for index, name in enumerate(bases) if name.endswith(f".{base}")],
    ):
        if len(matching) == 1:
            return matching[0]
    return None
