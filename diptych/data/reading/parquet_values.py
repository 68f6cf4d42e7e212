"""Values of Parquet columns as a row of JSON would have them.

What a column means is told by its type: `arrow.json` is JSON text, as the `datasets` library writes
chat rows and columns of mixed types; bytes are pictures, or text where a format has text; dates and
decimals become text, and a number that is none (NaN, how pandas says "nothing there") null.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from diptych.data.reading.magic import MAX_IMAGE_BYTES
from diptych.data.reading.strict_json import parse_json
from diptych.data.sample import Image
from diptych.errors import FormatError, ImageTooLarge, MissingImage

CONVERSATIONS = frozenset({"conversations", "messages"})
Convert = Callable[[Any], Any]
_PICTURE = frozenset({"bytes", "path"})


class PictureCells:
    """The pictures of one row, taken out of its values one after the other."""

    def __init__(self, number: int):
        self.found: list[tuple[str, Image]] = []
        self._number = number
        self._names: set[str] = set()

    def take(self, value: Any, column: str) -> Any:
        """The value with a name for each picture: bytes, `{bytes, path}`, or a list of them.

        Raises:
            MissingImage: there is a path and there are no bytes.
            ImageTooLarge: a picture has more bytes than allowed.
        """
        if isinstance(value, list):
            return [self.take(item, column) for item in value]
        name = None
        if isinstance(value, dict):
            name, value = value["path"], value["bytes"]
            if value is None and name is not None:
                raise MissingImage(
                    f"'{column}' names '{name[:200]}' but holds no bytes",
                    fix="write the pictures' bytes into the Parquet file",
                )
        if value is None:
            return None
        if len(value) > MAX_IMAGE_BYTES:
            raise ImageTooLarge(f"'{column}' holds {len(value):,} bytes")
        name = name or f"{column}-{self._number}"
        if name in self._names:  # rows name pictures by these, so no two may be the same
            name = f"{len(self.found)}/{name}"
        self._names.add(name)
        self.found.append((name, Image(name, value)))
        return name

    def take_parts(self, value: Any, column: str) -> Any:
        """The same for pictures that lie deeper, in the parts of messages."""
        if isinstance(value, list):
            return [self.take_parts(item, column) for item in value]
        if isinstance(value, bytes) or (isinstance(value, dict) and value.keys() == _PICTURE):
            return self.take(value, column)
        if isinstance(value, dict):
            return {key: self.take_parts(item, column) for key, item in value.items()}
        return value


def is_picture_type(type: Any) -> bool:
    """Whether a column may hold pictures: bytes, `{bytes, path}`, or lists of them."""
    import pyarrow.types as types

    if _is_list(type):
        return is_picture_type(type.value_type)
    if types.is_dictionary(type):
        return is_picture_type(type.value_type)
    if types.is_struct(type):
        return {field.name for field in type} == _PICTURE and _is_bytes(type.field("bytes").type)
    return _is_bytes(type)


def holds_bytes(type: Any) -> bool:
    """Whether there are bytes anywhere in a type."""
    import pyarrow.types as types

    if _is_list(type):
        return holds_bytes(type.value_type)
    if types.is_dictionary(type):
        return holds_bytes(type.value_type)
    if types.is_struct(type):
        return any(holds_bytes(field.type) for field in type)
    return _is_bytes(type)


def _is_bytes(type: Any) -> bool:
    import pyarrow.types as types

    return (
        types.is_binary(type)
        or types.is_large_binary(type)
        or types.is_binary_view(type)
        or types.is_fixed_size_binary(type)
    )


def _is_list(type: Any) -> bool:
    import pyarrow.types as types

    return (
        types.is_list(type)
        or types.is_large_list(type)
        or types.is_fixed_size_list(type)
        or types.is_list_view(type)
        or types.is_large_list_view(type)
    )


def converter(type: Any, column: str, json_field: str | None = None) -> Convert | None:
    """What makes a value of that type one of JSON; None where it is one already.

    Args:
        json_field: name of a field of text, anywhere in the type, that holds JSON.

    Raises (the function returned):
        FormatError: text in the value is no JSON, or bytes are no text.
    """
    import pyarrow
    import pyarrow.types as types

    if isinstance(type, pyarrow.BaseExtensionType):
        return _json if type.extension_name == "arrow.json" else str
    if types.is_dictionary(type):
        return converter(type.value_type, column, json_field)
    if _is_list(type):
        return _each(converter(type.value_type, column, json_field))
    if column in CONVERSATIONS and is_picture_type(type):
        return None  # for `PictureCells.take_parts`
    if types.is_struct(type):
        return _struct(type, column, json_field)
    if types.is_map(type):
        return _map(converter(type.item_type, column))
    if types.is_floating(type):
        return _number
    if _is_bytes(type):
        return lambda value: _text(value, column)
    if types.is_boolean(type) or types.is_integer(type) or types.is_null(type) or _is_text(type):
        return None
    return str


def _is_text(type: Any) -> bool:
    import pyarrow.types as types

    return types.is_string(type) or types.is_large_string(type) or types.is_string_view(type)


def has_text_content(type: Any) -> bool:
    """Whether a type is a list of messages whose `content` is text."""
    import pyarrow.types as types

    if not _is_list(type) or not types.is_struct(type.value_type):
        return False
    at = type.value_type.get_field_index("content")
    return at >= 0 and _is_text(type.value_type.field(at).type)


def content_is_json(conversations: list[Any]) -> bool:
    """Whether every `content` of some conversations is JSON text, and one of them a list.

    So it is where another library wrote on what `datasets` had as `arrow.json`: without the type.
    """
    messages = [m for c in conversations if isinstance(c, list) for m in c if isinstance(m, dict)]
    contents = [c for m in messages if isinstance(c := m.get("content"), str)]
    if not all(c[:1] + c[-1:] in ('""', "[]") for c in contents):
        return False
    try:
        kinds = {type(parse_json(content)) for content in contents}
    except FormatError:
        return False
    return list in kinds and kinds <= {str, list}


def _json(text: str) -> Any:
    return parse_json(text)


def _number(value: float) -> float | str | None:
    if math.isfinite(value):
        return float(value)
    return None if math.isnan(value) else str(value)


def whole(value: float) -> int | float | str | None:
    """A whole number as one: pandas makes fractions of a column of ids that lacks one."""
    return int(value) if value.is_integer() else _number(value)


def _text(value: bytes, column: str) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"'{column}' is not UTF-8: {error.reason}") from None


def _each(convert: Convert | None) -> Convert | None:
    if convert is None:
        return None
    return lambda items: [None if item is None else convert(item) for item in items]


def _map(convert: Convert | None) -> Convert:
    def to_object(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
        return {
            str(key): value if convert is None or value is None else convert(value)
            for key, value in pairs
        }

    return to_object


def _struct(type: Any, column: str, json_field: str | None) -> Convert | None:
    fields: dict[str, Convert] = {}
    for field in type:
        is_json = field.name == json_field and _is_text(field.type)
        convert = _json if is_json else converter(field.type, column, json_field)
        if convert is not None:
            fields[field.name] = convert
    # All parts of a message have the fields that any of them has; what one lacks is null.
    drops = column in CONVERSATIONS
    if not fields and not drops:
        return None

    def to_object(value: dict[str, Any]) -> dict[str, Any]:
        return {
            key: fields[key](item) if item is not None and key in fields else item
            for key, item in value.items()
            if item is not None or not drops
        }

    return to_object
