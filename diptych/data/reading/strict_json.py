"""Strict JSON values: what is read can be written back and has one meaning.

Stricter than `json.loads`: repeated keys, NaN and infinities, NUL characters, halves of
surrogate pairs, absurdly long numbers and absurd nesting are named errors.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from diptych.errors import FormatError

READING_ERRORS = (ValueError, RecursionError, FormatError)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise FormatError(f"the key '{twice}' occurs twice in one object")
    return found


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise FormatError(f"the number {digits[:40]} is too large")
    return number


def _no_constant(name: str) -> Any:
    raise FormatError(f"{name} is not a JSON value")


DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=_finite, parse_constant=_no_constant
)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_MAX_SEARCHED = 1 << 20
_STRING = r'"(?:[^"\\\n]++|\\.)*+"'
_KEYS = re.compile(
    rf'"(?P<key>(?:[^"\\\n]++|\\.)*+)"(?:\s*:\s*(?P<id>{_STRING}|-?\d+))?|(?P<bracket>[{{}}\[\]])'
)


def vet(value: Any, raw: str) -> None:
    """Refuse text that JSON allows and that could not be written back.

    Raises:
        FormatError: half of a surrogate pair, or a NUL character.
    """
    if _SURROGATE.search(raw):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise FormatError("a string contains half of a surrogate pair") from None
    if "\\u0000" in raw and _has_nul(value):
        raise FormatError("a string contains a NUL character")


def _has_nul(value: Any) -> bool:
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str) and "\0" in item:
            return True
        if isinstance(item, list):
            stack.extend(item)
        elif isinstance(item, dict):
            stack.extend(item)
            stack.extend(item.values())
    return False


def check_text(raw: str) -> None:
    """Refuse text that was decoded with `surrogateescape` and was not UTF-8.

    Raises:
        FormatError: names the byte.
    """
    if not raw.isascii():
        try:
            raw.encode("utf-8", "surrogateescape").decode("utf-8")
        except UnicodeDecodeError as error:
            raise not_utf8(error) from None


def not_utf8(error: UnicodeDecodeError) -> FormatError:
    """What a decoding error means to the user."""
    byte = error.object[error.start]
    return FormatError(f"the row is not UTF-8: byte 0x{byte:02x} at position {error.start}")


def explain(error: Exception, line: int) -> FormatError:
    """What one of `READING_ERRORS`, raised in text that begins in `line`, means to the user."""
    if isinstance(error, FormatError):
        return error
    if isinstance(error, json.JSONDecodeError):
        if "\0" in error.doc[max(0, error.pos - 1) : error.pos + 1]:
            return FormatError("the row contains a NUL byte")
        place = f"line {line + error.lineno - 1} column {error.colno}"
        return FormatError(f"invalid JSON in {place}: {error.msg}")
    if isinstance(error, RecursionError):
        return FormatError("the JSON is nested too deeply")
    return FormatError(f"a value cannot be read: {error}")


def id_in(raw: str) -> str | None:
    """The `id`, else the `question_id`, of a row that may be no whole JSON object.

    Only keys of the row itself count, told by the brackets before them.
    """
    depth = 0
    found: dict[str, str] = {}
    for token in _KEYS.finditer(raw[:_MAX_SEARCHED]):
        if token["bracket"]:
            depth += 1 if token["bracket"] in "{[" else -1
        elif depth == 1 and token["id"] and token["key"] in ("id", "question_id"):
            found.setdefault(token["key"], token["id"])
    text = found.get("id", found.get("question_id"))
    if text is None:
        return None
    try:
        return str(json.loads(text))[:200].encode("utf-8", "backslashreplace").decode()
    except ValueError:
        return text.strip('"')[:200]


def parse_json(text: str, line: int = 1) -> Any:
    """The value of one JSON text.

    Raises:
        FormatError: says what is wrong in which line and column.
    """
    try:
        value = DECODER.decode(text)
        vet(value, text)
    except READING_ERRORS as error:
        raise explain(error, line) from None
    return value
