"""Keys: taking a row apart by its keys, and putting it together again as it was.

Every format reads ids, paths and unknown keys in the same way and with the same errors. What a row
says in another way than usual is noted in `Sample.meta`, so that writing repeats it.
"""

from __future__ import annotations

from typing import Any

from diptych.data.reading.rows import Row
from diptych.data.sample import Image, Sample
from diptych.errors import FormatError


def require(row: dict[str, Any], key: str, kind: type | tuple[type, ...], name: str) -> Any:
    """`row[key]`, which must be of a type.

    Raises:
        FormatError: the key is missing or of another type.
    """
    if key not in row:
        raise FormatError(f"the row has no '{key}' (it has: {', '.join(row) or 'nothing'})")
    value = row[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise FormatError(f"'{key}' is {_kind(value)}, not {name}")
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", type(None): "null", bool: "a boolean"}
    return names.get(type(value), "a number")


def take_id(row: Row, note: dict[str, Any], key: str = "id") -> str:
    """The row's id as text; notes when it is a number, null or missing (then its number)."""
    value = row.value.get(key)
    if isinstance(value, str):
        if value:
            return value
    elif isinstance(value, bool) or not isinstance(value, int | type(None)):
        raise FormatError(f"'{key}' is {_kind(value)}, not text or a whole number")
    if key in row.value:
        note["id"] = value
    else:
        note["no_id"] = True
    return f"row-{row.number}" if value in (None, "") else str(value)


def has_own_id(sample: Sample) -> bool:
    """Whether the row had an id, and not only its number (see `take_id`)."""
    notes = (note for key, note in sample.meta.items() if key.startswith("_"))
    return not any(isinstance(note, dict) and note.get("no_id") for note in notes)


def give_id(sample: Sample, note: dict[str, Any]) -> dict[str, Any]:
    """The id as the row had it: {} where it had none."""
    generated = sample.id.startswith("row-")
    if note.get("no_id") and generated:
        return {}
    if "id" in note and (str(note["id"]) == sample.id or (not note["id"] and generated)):
        return {"id": note["id"]}
    return {"id": sample.id}


def image_list(value: Any, key: str) -> list[str]:
    """Image paths from text, a list of texts, or nothing.

    Raises:
        FormatError: it is something else.
    """
    if value is None or value == "":
        return []
    paths = [value] if isinstance(value, str) else value
    if not isinstance(paths, list):
        raise FormatError(f"'{key}' is {_kind(value)}, not a path or a list of paths")
    for number, path in enumerate(paths):
        if not isinstance(path, str) or not path:
            kind = "empty" if path == "" else _kind(path)
            raise FormatError(f"'{key}[{number}]' is {kind}, not a path")
    return paths


def image_path(image: Image) -> str:
    """The path to write for a picture.

    Raises:
        FormatError: the picture has no file of its own.
    """
    if image.data is not None or image.span is not None:
        raise FormatError("the picture lies inside a shard or the row; this format needs a file")
    return image.path


def take_meta(
    row: dict[str, Any], known: frozenset[str], mark: str, note: dict[str, Any]
) -> dict[str, Any]:
    """Everything of a row that its format does not know, with the note on how it was said."""
    if mark in row:
        raise FormatError(f"the key '{mark}' is reserved")
    meta = {key: value for key, value in row.items() if key not in known and key != "_meta"}
    displaced = row.get("_meta")
    if isinstance(displaced, dict):
        meta.update(displaced)
    elif displaced is not None:
        raise FormatError("the key '_meta' is reserved")
    if note:
        meta[mark] = note
    return meta


def give_meta(
    row: dict[str, Any], meta: dict[str, Any], known: frozenset[str], mark: str
) -> dict[str, Any]:
    """The row with the sample's meta; keys that this format knows itself go to `_meta`."""
    displaced = {key: value for key, value in meta.items() if key in known and key != mark}
    row.update((k, v) for k, v in meta.items() if k not in known and k != mark)
    if displaced:
        row["_meta"] = displaced
    return row


def noted(sample: Sample, mark: str) -> dict[str, Any]:
    """The note that `take_meta` left, or an empty one."""
    note = sample.meta.get(mark)
    return note if isinstance(note, dict) else {}
