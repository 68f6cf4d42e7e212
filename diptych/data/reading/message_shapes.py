"""How messages say a turn: content as text or as parts, and back in the way it was said.

What a row says in another way than usual is noted when it is read (`formats/messages.py`): a text
part by its length, a picture by the keys that named it. Nothing of what is said stands in a note,
so turns may be edited on the way; one that no longer fits its note is said in the usual way.
"""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

from diptych.data.reading import keys, markers
from diptych.data.sample import Image, Text, Turn
from diptych.errors import FormatError

CONTEXT_MARKER = "<IMG_CONTEXT>"
"""XTuner's mark for the place of a picture that stands beside the text."""


def usual_shape(turn: Turn) -> list[Any] | str:
    """How a turn is said when nothing is noted: `text`, or its parts one by one."""
    if all(isinstance(p, Text) for p in turn.parts):
        return "text"
    return [len(p.text) if isinstance(p, Text) else {"as": "image"} for p in turn.parts]


def content_of(turn: Turn, said: dict[str, Any], style: str | None) -> str | list[dict[str, Any]]:
    """The content of a message: as the row had it where the turn still fits that, else as usual.

    Args:
        said: what was noted of the message; `shape`, `context` and `front` are read.
        style: how the row's pictures are bound; see `formats/messages.py`.
    """
    if (in_context := said.get("context")) is not None:
        content = _context_content(turn, in_context)
        if content is not None:
            return content
    if front := said.get("front", 0):
        if all(isinstance(p, Image) for p in turn.parts[:front]):
            turn = replace(turn, parts=turn.parts[front:])
    shape = said.get("shape")
    marker = style if style in markers.MARKERS else None
    if shape == "text" and (marker or front):
        return markers.join(turn, marker or markers.IMAGE_MARKER)
    usual = usual_shape(turn)
    if isinstance(shape, list):
        content = _shaped(turn, shape, marker)
        if content is not None:
            return content
    if usual == "text":
        return turn.text
    bound = style is not None
    listed = [{"as": "placeholder"} if isinstance(s, dict) and bound else s for s in usual]
    content = _shaped(turn, listed, marker)
    assert content is not None
    return content


def with_numbers(turn: Turn, listed: list[str]) -> Turn:
    """The turn with its pictures as Phi's markers, which number the row's list of them.

    Raises:
        FormatError: a picture is not in the list.
    """
    pieces = []
    for part in turn.parts:
        if isinstance(part, Image):
            if part.path not in listed:
                raise FormatError(f"the picture '{part.path}' is not among the row's images")
            pieces.append(f"<|image_{listed.index(part.path) + 1}|>")
        elif isinstance(part, Text):
            pieces.append(part.text)
    return replace(turn, parts=(Text("".join(pieces)),) if pieces else ())


def _context_content(turn: Turn, shape: list[Any]) -> list[dict[str, Any]] | None:
    """XTuner's way, pictures beside a text with markers; None where the turn fits it no more."""
    images = [p for p in turn.parts if isinstance(p, Image)]
    text = markers.join(turn, CONTEXT_MARKER)
    content: list[dict[str, Any]] = []
    for how in shape:
        how = {"as": "text", "length": how} if isinstance(how, int) else how
        extra = how.get("extra", {})
        if how["as"] == "text":
            content.append({"type": "text", "text": text[: how["length"]]} | extra)
            text = text[how["length"] :]
        elif images:
            content.append(_image_part(images.pop(0), how) | extra)
        else:
            return None
    return content if not text and not images else None


def _shaped(turn: Turn, shape: list[Any], marker: str | None) -> list[dict[str, Any]] | None:
    """The turn's content said in a noted way; None where the turn no longer fits it."""
    # The turn as one sequence of characters and pictures, consumed part by part.
    left: list[Any] = []
    for part in turn.parts:
        if isinstance(part, Text):
            left.extend(part.text)
        else:
            left.append(part)
    content: list[dict[str, Any]] = []
    position = 0
    for how in shape:
        how = {"as": "text", "length": how} if isinstance(how, int) else how
        extra = how.get("extra", {})
        if how["as"] == "text":
            text, position = _take_text(left, position, how["length"], marker)
            if text is None:
                return None
            content.append({"type": "text", "text": text} | extra)
            continue
        if position >= len(left) or not isinstance(left[position], Image):
            return None
        content.append(_image_part(left[position], how) | extra)
        position += 1
    return content if position == len(left) else None


def _take_text(
    left: list[Any], position: int, length: int, marker: str | None
) -> tuple[str | None, int]:
    text = ""
    while len(text) < length:
        if position >= len(left):
            return None, position
        item = left[position]
        if isinstance(item, Image):
            if marker is None:
                return None, position
            item = marker
        text += item
        position += 1
    return (text, position) if len(text) == length else (None, position)


def _image_part(image: Image, how: dict[str, Any]) -> dict[str, Any]:
    if how["as"] == "placeholder":
        return {"type": "image"}
    url = url_of(image)
    if how["as"] == "image_url":
        return {"type": "image_url", "image_url": {"url": url} | how.get("inner", {})}
    if how["as"] == "image_url_text":
        return {"type": "image_url", "image_url": url}
    return {"type": "image", how["as"]: url}


def url_of(image: Image) -> str:
    """The path, or the bytes as a `data:` URL.

    Raises:
        FormatError: the picture lies inside a shard.
    """
    if image.data is not None and image.span is None:
        head = image.path if image.path.startswith("data:") else "data:;base64"
        return f"{head},{base64.b64encode(image.data).decode('ascii')}"
    return keys.image_path(image)
