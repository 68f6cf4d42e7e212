"""Chat messages with content parts, as OpenAI-style endpoints and Hugging Face templates use.

    {"id": "1", "messages": [
        {"role": "user", "content": [{"type": "image", "image": "a.png"},
                                     {"type": "text", "text": "What is shown?"}]},
        {"role": "assistant", "content": "A cat."}]}

Content is text or a list of parts; a picture is `{"type": "image", "image" | "path" | "url":
...}` or `{"type": "image_url", "image_url": {"url": ...}}`, also as a `data:` URL. Text is
always just text, whatever it contains, with one exception that data sets in this shape use:
in a row with `images` or `image`, pictures are bound to parts `{"type": "image"}` that name none
(by their `index` where they have one, else in order), or else to markers in the text (`<image>`,
or one of `diptych.data.reading.markers`), or, where there is neither, stand before the first
question. XTuner writes `<IMG_CONTEXT>` where the picture of an `image_url` part belongs.

`system` may stand beside the messages; a message with `weight: 0` or `loss: false` is not learned.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator
from typing import Any

from diptych.data import format as contract
from diptych.data.reading import fields, keys, markers
from diptych.data.reading.message_shapes import (
    CONTEXT_MARKER,
    content_of,
    url_of,
    usual_shape,
    with_numbers,
)
from diptych.data.reading.rows import Reject, Row, read_json
from diptych.data.sample import ROLES, Image, Part, Sample, Text, Turn
from diptych.errors import FormatError, MarkerMismatch, UnknownRole

MARK = "_messages"
_KNOWN = frozenset({"id", "messages", *fields.PICTURE_KEYS, *fields.SYSTEM_KEYS})
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
    value = row.value
    sample_id = keys.take_id(row, note)
    messages = keys.require(value, "messages", list, "a list of messages")
    fields.refuse_unseen(value)
    system = fields.take_system(value, note)
    binding = _binding(value, messages, note)
    turns: list[Turn] = []
    notes: dict[str, Any] = {}
    for number, message in enumerate(messages):
        try:
            turn, said = _turn(message, binding)
        except (FormatError, UnknownRole, MarkerMismatch) as error:
            raise type(error)(f"message {number + 1}: {error.what}", fix=error.fix) from None
        turns.append(turn)
        if said:
            notes[str(number)] = said
    if notes:
        note["turns"] = notes
    if system is not None:
        if turns and turns[0].role == "system":
            raise FormatError(f"system words stand in '{note['system']}' and in the first message")
        turns.insert(0, Turn("system", (Text(system),)))
    if binding is not _UNBOUND:
        binding.check()
    meta = keys.take_meta(value, _KNOWN, MARK, note)
    return contract.checked(Sample(sample_id, tuple(turns), row.where, meta))


class _Binding:
    """How the pictures beside the messages find their places in them.

    Attributes:
        style: `placeholders`, `indexed`, `numbered`, `front`, the marker in the text, or None where
            pictures are named in the messages themselves.
        marker: what marks a picture's place in a text.
    """

    def __init__(self, paths: list[str], style: str | None):
        self.style = style
        self.marker = style if style in markers.MARKERS else None
        self._images = [Image(path) for path in paths]
        self._taken: set[int] = set()

    def next(self) -> Image:
        """The picture after the last that was taken."""
        return self.at(len(self._taken))

    def at(self, index: Any) -> Image:
        """The picture of a number.

        Raises:
            FormatError: there is none of that number.
        """
        if not isinstance(index, int) or not 0 <= index < len(self._images):
            raise FormatError(
                f"an image part has the index {index}, the row has {len(self._images)} images"
            )
        self._taken.add(index)
        return self._images[index]

    def rest(self) -> list[Image]:
        """All pictures that were not taken yet."""
        left = [n for n in range(len(self._images)) if n not in self._taken]
        return [self.at(n) for n in left]

    def check(self) -> None:
        """Make sure that every picture has found its place.

        Raises:
            MarkerMismatch: one has not.
        """
        left = [n for n in range(len(self._images)) if n not in self._taken]
        if self.style is not None and left:
            raise MarkerMismatch(f"image {left[0] + 1} of {len(self._images)} has no place")


_UNBOUND = _Binding([], None)


def _binding(value: dict[str, Any], messages: list[Any], note: dict[str, Any]) -> _Binding:
    key = fields.picture_column(value)
    for name in fields.PICTURE_KEYS:
        if name in value and name != key:
            note.setdefault("empty", {})[name] = value[name]
    if key is None:
        if "empty" in note and _has_marker(messages):
            raise MarkerMismatch(
                f"a text has {markers.IMAGE_MARKER} markers, and the row's list of images is empty"
            )
        return _UNBOUND
    listed = value[key]
    paths = keys.image_list(listed, key)
    if key != "images":
        note["key"] = key
    if isinstance(listed, str):
        note["single"] = True
    named = [
        p[k] for p in _content_parts(messages) if p.get("type") == "image" and (k := _path_key(p))
    ]
    if paths == named:  # a list that repeats what the messages name themselves binds nothing
        note["repeats"] = listed
        return _UNBOUND
    if named:
        raise FormatError(f"the pictures are named partly in '{key}', partly in the messages")
    binding = _Binding(paths, _style(messages, len(paths)))
    note["style"] = binding.style
    if binding.style in ("indexed", "numbered"):
        note["listed"] = paths
    return binding


def _style(messages: list[Any], num_images: int) -> str:
    """How a row's pictures are bound; see `_Binding`.

    Raises:
        MarkerMismatch: there are places, and not as many as pictures.
    """
    parts = list(_content_parts(messages))
    typed = [p for p in parts if p.get("type") == "image" and not _path_key(p)]
    if typed and all(isinstance(p.get("index"), int) for p in typed):
        return "indexed"
    if typed:
        _agree(len(typed), num_images, "parts of the type image")
        return "placeholders"
    texts = [str(p.get("text")) for p in parts if p.get("type") == "text"]
    if any(markers.NUMBERED.search(text) for text in texts):
        return "numbered"
    for marker in markers.MARKERS:
        if num_places := sum(text.count(marker) for text in texts):
            _agree(num_places, num_images, marker)
            return marker
    return "front"


def _has_marker(messages: list[Any]) -> bool:
    return any(markers.IMAGE_MARKER in str(p.get("text")) for p in _content_parts(messages))


def _agree(num_places: int, num_images: int, what: str) -> None:
    if num_places != num_images:
        raise MarkerMismatch(
            f"the messages have {num_places} places for images ({what}), the row has "
            f"{num_images} images"
        )


def _content_parts(messages: list[Any]) -> Iterator[dict[str, Any]]:
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str):
            yield {"type": "text", "text": content}
        elif isinstance(content, list):
            yield from (part for part in content if isinstance(part, dict))


def _path_key(part: dict[str, Any]) -> str | None:
    return next((k for k in _PATH_KEYS if part.get(k) is not None), None)


def _turn(message: Any, binding: _Binding) -> tuple[Turn, dict[str, Any]]:
    if not isinstance(message, dict):
        raise FormatError("it is not an object with 'role' and 'content'")
    role = keys.require(message, "role", str, "text")
    if role not in ROLES:
        raise UnknownRole(f"it is spoken by '{role[:80]}'; known are {', '.join(ROLES)}")
    extra = {k: v for k, v in message.items() if k not in ("role", "content")}
    learned = fields.is_learned(extra, role) if extra else True
    content = keys.require(message, "content", (str, list), "text or a list of parts")
    note: dict[str, Any] = {}
    if extra:
        note["extra"] = extra
    pieces: list[Part] = []
    if role == "user" and binding.style == "front" and (images := binding.rest()):
        pieces.extend(images)
        note["front"] = len(images)
    if isinstance(content, str):
        pieces.extend(_text_pieces(content, binding))
        # A bare string is the usual way to say text only; with pictures a list is.
        if any(isinstance(p, Image) for p in pieces):
            note["shape"] = "text"
        return Turn(role, tuple(pieces), learned), note
    shape: list[Any] = []
    for part in content:
        if not isinstance(part, dict):
            raise FormatError("a content part is not an object with 'type'")
        new, how = _part(part, binding)
        pieces.extend(new)
        shape.append(how)
    if binding.style is None and (moved := _into_context(pieces)) is not None:
        note["context"] = shape
        return Turn(role, moved, learned), note
    turn = Turn(role, _merged(pieces), learned)
    if note.get("front") or shape != usual_shape(turn):
        note["shape"] = shape
    return turn, note


def _text_pieces(text: str, binding: _Binding) -> list[Part]:
    if binding.marker is not None:
        count = text.count(binding.marker)
        images = iter([binding.next() for _ in range(count)])
        return list(markers.split(text, images, binding.marker))
    if binding.style == "numbered":
        pieces: list[Part] = []
        for place, piece in enumerate(markers.NUMBERED.split(text)):
            if place % 2:
                pieces.append(binding.at(int(piece) - 1))
            elif piece:
                pieces.append(Text(piece))
        return pieces
    return [Text(text)] if text else []


def _into_context(pieces: list[Part]) -> tuple[Part, ...] | None:
    """The pieces with their pictures moved to XTuner's markers; None where there are none.

    Raises:
        MarkerMismatch: there are markers, and not as many as pictures.
    """
    images = [p for p in pieces if isinstance(p, Image)]
    text = "".join(p.text for p in pieces if isinstance(p, Text))
    count = text.count(CONTEXT_MARKER)
    if not images or not count:
        return None
    if count != len(images):
        raise MarkerMismatch(f"it has {count} {CONTEXT_MARKER} markers and {len(images)} images")
    return markers.split(text, iter(images), CONTEXT_MARKER)


def _merged(pieces: list[Part]) -> tuple[Part, ...]:
    merged: list[Part] = []
    for piece in pieces:
        last = merged[-1] if merged else None
        if isinstance(piece, Text) and isinstance(last, Text):
            merged[-1] = Text(last.text + piece.text)
        else:
            merged.append(piece)
    return tuple(merged)


def _part(part: dict[str, Any], binding: _Binding) -> tuple[list[Part], Any]:
    """The pieces of a content part, and how it said them: a text's length or a dict."""
    part = {k: v for k, v in part.items() if v is not None}
    kind = part.pop("type", None)
    if kind == "text":
        text = keys.require(part, "text", str, "text")
        pieces = _text_pieces(text, binding)
        extra = {k: v for k, v in part.items() if k != "text"}
        how: Any = len(text)
        if extra or any(isinstance(p, Image) for p in pieces):
            how = {"as": "text", "length": len(text), "extra": extra}
        return pieces, how
    if kind == "image_url":
        given = keys.require(part, "image_url", (dict, str), "an object with 'url'")
        inner = given if isinstance(given, dict) else {"url": given}
        url = keys.require(inner, "url", str, "text")
        how = {"as": "image_url" if isinstance(given, dict) else "image_url_text"}
        rest = {k: v for k, v in inner.items() if k != "url"}
        extra = {k: v for k, v in part.items() if k != "image_url"}
        return [_image(url)], how | _if("inner", rest) | _if("extra", extra)
    if kind == "image":
        key = _path_key(part)
        extra = {k: v for k, v in part.items() if k != key}
        if key is None:
            if binding.style == "indexed":
                return [binding.at(part["index"])], {"as": "placeholder"} | _if("extra", extra)
            if binding.style != "placeholders":
                raise FormatError("an image part names no image, and the row has no 'images'")
            return [binding.next()], {"as": "placeholder"} | _if("extra", extra)
        path = keys.require(part, key, str, "a path")
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
    note = keys.noted(sample, MARK)
    style = note.get("style")
    notes = note.get("turns", {})
    row = keys.give_id(sample, note)
    turns, words = fields.without_system(sample, note)
    fields.give_system(row, note, words)
    messages = []
    for number, turn in enumerate(turns):
        said = notes.get(str(number), {})
        if style == "numbered":
            turn = with_numbers(turn, note["listed"])
        content = content_of(turn, said, style if style != "numbered" else None)
        marks = fields.give_marks(turn, said.get("extra", {}))
        messages.append({"role": turn.role, "content": content} | marks)
    row["messages"] = messages
    key = note.get("key", "images")
    if style is not None:
        paths = note.get("listed") or [url_of(image) for image in sample.images()]
        row[key] = paths[0] if note.get("single") and len(paths) == 1 else paths
    elif "repeats" in note:
        row[key] = note["repeats"]
    for name, blank in note.get("empty", {}).items():
        row.setdefault(name, blank)
    return keys.give_meta(row, sample.meta, _KNOWN, MARK)
