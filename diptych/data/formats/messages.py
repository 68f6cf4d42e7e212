"""Chat messages with content parts, as OpenAI-style endpoints and Hugging Face templates use.

    {"id": "1", "messages": [
        {"role": "user", "content": [{"type": "image", "image": "a.png"},
                                     {"type": "text", "text": "What is shown?"}]},
        {"role": "assistant", "content": "A cat."}]}

Content is text or a list of parts; a picture is `{"type": "image", "image" | "path" | "url":
...}` or `{"type": "image_url", "image_url": {"url": ...}}`, also as a `data:` URL. Text is
always just text, whatever it contains, with one exception that data sets in this shape use:
in a row with a list `images`, pictures are bound in order to parts `{"type": "image"}` that
name none, or else to `<image>` markers.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator
from typing import Any

from diptych.data import format as contract
from diptych.data.rows import Reject, Row, read_json
from diptych.data.sample import ROLES, Image, Part, Sample, Text, Turn
from diptych.errors import FormatError, MarkerMismatch, UnknownRole

MARK = "_messages"
_KNOWN = frozenset({"id", "messages", "images"})
_PATH_KEYS = ("image", "path", "url")


def sniff(row: dict[str, Any]) -> bool:
    """Rows with `messages`."""
    return "messages" in row


def read(path: str) -> Iterator[Sample | Reject]:
    """Samples of a JSON array or JSON lines."""
    return contract.parsed(read_json(path), parse)


def write(samples: Iterable[Sample], path: str, refuse: contract.Refuse | None = None) -> int:
    """A JSON array where the path ends in `.json`, else JSON lines."""
    return contract.write_json(contract.rendered(samples, render, refuse), path)


def parse(row: Row) -> Sample:
    """One row.

    Raises:
        FormatError: a field is missing or of the wrong type.
        MarkerMismatch: the numbers of placeholders and images differ.
        ConversationError: the turns are empty, one-sided, or of an unknown role.
    """
    note: dict[str, Any] = {}
    sample_id = contract.take_id(row, note)
    messages = contract.require(row.value, "messages", list, "a list of messages")
    listed = row.value.get("images")
    paths = contract.image_list(listed, "images")
    named = [
        p[k] for p in _content_parts(messages) if p.get("type") == "image" and (k := _path_key(p))
    ]
    # A list that is empty or repeats what the messages name themselves binds nothing.
    style = _list_style(messages) if paths and paths != named else None
    if style is None and "images" in row.value:
        note["images"] = listed
    if style and named:
        raise FormatError("the pictures are named partly in 'images', partly in the messages")
    if style:
        note["style"] = style
        num_places = _num_places(messages, style)
        if num_places != len(paths):
            raise MarkerMismatch(
                f"the messages have {num_places} places for images, the row has {len(paths)} images"
            )
    images = iter([Image(path) for path in paths])
    turns: list[Turn] = []
    notes: dict[str, Any] = {}
    for number, message in enumerate(messages):
        try:
            turn, said = _turn(message, style, images)
        except (FormatError, UnknownRole) as error:
            raise type(error)(f"message {number + 1}: {error.what}") from None
        turns.append(turn)
        if said:
            notes[str(number)] = said
    if notes:
        note["turns"] = notes
    meta = contract.take_meta(row.value, _KNOWN, MARK, note)
    return contract.checked(Sample(sample_id, tuple(turns), row.where, meta))


def _content_parts(messages: list[Any]) -> Iterator[dict[str, Any]]:
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str):
            yield {"type": "text", "text": content}
        elif isinstance(content, list):
            yield from (part for part in content if isinstance(part, dict))


def _list_style(messages: list[Any]) -> str:
    """How a row's `images` are bound: to `placeholders`, or to `markers` in the text."""
    typed = any(p.get("type") == "image" and not _path_key(p) for p in _content_parts(messages))
    return "placeholders" if typed else "markers"


def _num_places(messages: list[Any], style: str) -> int:
    parts = list(_content_parts(messages))
    if style == "placeholders":
        return sum(p.get("type") == "image" and not _path_key(p) for p in parts)
    return sum(str(p.get("text")).count(contract.IMAGE_MARKER) for p in parts)


def _path_key(part: dict[str, Any]) -> str | None:
    return next((k for k in _PATH_KEYS if part.get(k) is not None), None)


def _turn(message: Any, style: str | None, images: Iterator[Image]) -> tuple[Turn, dict[str, Any]]:
    if not isinstance(message, dict):
        raise FormatError("it is not an object with 'role' and 'content'")
    role = contract.require(message, "role", str, "text")
    if role not in ROLES:
        raise UnknownRole(f"it is spoken by '{role[:80]}'; known are {', '.join(ROLES)}")
    content = contract.require(message, "content", (str, list), "text or a list of parts")
    note: dict[str, Any] = {}
    extra = {k: v for k, v in message.items() if k not in ("role", "content")}
    if extra:
        note["extra"] = extra
    pieces: list[Part] = []
    if isinstance(content, str):
        marked = style == "markers"
        pieces.extend(_text_pieces(content, marked, images))
        # A bare string is the usual way to say text only; with pictures a list is.
        if marked and any(isinstance(p, Image) for p in pieces):
            note["shape"] = "text"
        return Turn(role, tuple(pieces)), note
    shape: list[Any] = []
    for part in content:
        if not isinstance(part, dict):
            raise FormatError("a content part is not an object with 'type'")
        new, how = _part(part, style, images)
        pieces.extend(new)
        shape.append(how)
    turn = Turn(role, _merged(pieces))
    if shape != _usual_shape(turn):
        note["shape"] = shape
    return turn, note


def _text_pieces(text: str, marked: bool, images: Iterator[Image]) -> list[Part]:
    if marked:
        return list(contract.split_markers(text, images))
    return [Text(text)] if text else []


def _merged(pieces: list[Part]) -> tuple[Part, ...]:
    merged: list[Part] = []
    for piece in pieces:
        last = merged[-1] if merged else None
        if isinstance(piece, Text) and isinstance(last, Text):
            merged[-1] = Text(last.text + piece.text)
        else:
            merged.append(piece)
    return tuple(merged)


def _usual_shape(turn: Turn) -> list[Any] | str:
    if all(isinstance(p, Text) for p in turn.parts):
        return "text"
    return [len(p.text) if isinstance(p, Text) else {"as": "image"} for p in turn.parts]


def _part(
    part: dict[str, Any], style: str | None, images: Iterator[Image]
) -> tuple[list[Part], Any]:
    """The pieces of a content part, and how it said them: a text's length or a dict."""
    part = {k: v for k, v in part.items() if v is not None}
    kind = part.pop("type", None)
    if kind == "text":
        text = contract.require(part, "text", str, "text")
        pieces = _text_pieces(text, style == "markers", images)
        extra = {k: v for k, v in part.items() if k != "text"}
        how: Any = len(text)
        if extra or any(isinstance(p, Image) for p in pieces):
            how = {"as": "text", "length": len(text), "extra": extra}
        return pieces, how
    if kind == "image_url":
        given = contract.require(part, "image_url", (dict, str), "an object with 'url'")
        inner = given if isinstance(given, dict) else {"url": given}
        url = contract.require(inner, "url", str, "text")
        how = {"as": "image_url" if isinstance(given, dict) else "image_url_text"}
        rest = {k: v for k, v in inner.items() if k != "url"}
        extra = {k: v for k, v in part.items() if k != "image_url"}
        return [_image(url)], how | _if("inner", rest) | _if("extra", extra)
    if kind == "image":
        key = _path_key(part)
        extra = {k: v for k, v in part.items() if k != key}
        if key is None:
            if style != "placeholders":
                raise FormatError("an image part names no image, and the row has no 'images'")
            return [next(images)], {"as": "placeholder"} | _if("extra", extra)
        path = contract.require(part, key, str, "a path")
        return [_image(path)], {"as": key} | _if("extra", extra)
    if kind == "video":
        raise FormatError("video parts cannot be read yet")
    raise FormatError(f"a content part of type '{str(kind)[:80]}' is not known")


def _if(key: str, value: Any) -> dict[str, Any]:
    return {key: value} if value else {}


def _image(url: str) -> Image:
    if not url:
        raise FormatError("an image part has an empty path")
    if not url.startswith("data:"):
        return Image(url)
    head, comma, payload = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise FormatError("a data: URL is not base64")
    try:
        return Image(head, base64.b64decode(payload, validate=True))
    except binascii.Error as error:
        raise FormatError(f"a data: URL is not base64: {error}") from None


def render(sample: Sample) -> dict[str, Any]:
    """One row.

    Raises:
        FormatError: a picture lies inside a shard, or the turn has a video.
    """
    note = contract.noted(sample, MARK)
    style = note.get("style")
    notes = note.get("turns", {})
    row = contract.give_id(sample, note)
    messages = []
    for number, turn in enumerate(sample.turns):
        said = notes.get(str(number), {})
        content = _content(turn, said.get("shape"), style)
        messages.append({"role": turn.role, "content": content} | said.get("extra", {}))
    row["messages"] = messages
    if style is not None:
        row["images"] = [_url(image) for image in sample.images()]
    elif "images" in note:
        row["images"] = note["images"]
    return contract.give_meta(row, sample.meta, _KNOWN, MARK)


def _content(turn: Turn, shape: Any, style: str | None) -> str | list[dict[str, Any]]:
    usual = _usual_shape(turn)
    if shape == "text" and style == "markers":
        return contract.join_markers(turn)
    if isinstance(shape, list):
        content = _shaped(turn, shape, style)
        if content is not None:
            return content
    if usual == "text":
        return turn.text
    listed = [{"as": "placeholder"} if isinstance(s, dict) and style else s for s in usual]
    content = _shaped(turn, listed, style)
    assert content is not None
    return content


def _shaped(turn: Turn, shape: list[Any], style: str | None) -> list[dict[str, Any]] | None:
    """The turn's content said in a noted way; None where the turn no longer fits it."""
    # The turn as one sequence of characters and pictures, consumed part by part.
    left: list[Any] = []
    for part in turn.parts:
        if isinstance(part, Text):
            left.extend(part.text)
        elif isinstance(part, Image):
            left.append(part)
        else:
            raise FormatError("this format cannot hold a video yet")
    content: list[dict[str, Any]] = []
    position = 0
    for how in shape:
        how = {"as": "text", "length": how} if isinstance(how, int) else how
        extra = how.get("extra", {})
        if how["as"] == "text":
            text, position = _take_text(left, position, how["length"], style)
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
    left: list[Any], position: int, length: int, style: str | None
) -> tuple[str | None, int]:
    text = ""
    while len(text) < length:
        if position >= len(left):
            return None, position
        item = left[position]
        if isinstance(item, Image) and style != "markers":
            return None, position
        text += contract.IMAGE_MARKER if isinstance(item, Image) else item
        position += 1
    return (text, position) if len(text) == length else (None, position)


def _image_part(image: Image, how: dict[str, Any]) -> dict[str, Any]:
    if how["as"] == "placeholder":
        return {"type": "image"}
    url = _url(image)
    if how["as"] == "image_url":
        return {"type": "image_url", "image_url": {"url": url} | how.get("inner", {})}
    if how["as"] == "image_url_text":
        return {"type": "image_url", "image_url": url}
    return {"type": "image", how["as"]: url}


def _url(image: Image) -> str:
    if image.data is not None and image.span is None:
        head = image.path if image.path.startswith("data:") else "data:;base64"
        return f"{head},{base64.b64encode(image.data).decode('ascii')}"
    return contract.image_path(image)
