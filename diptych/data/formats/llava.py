"""LLaVA conversations: id, image (a path or a list), turns with `<image>` markers.

    {"id": "1", "image": "a.png", "conversations": [
        {"from": "human", "value": "<image>\\nWhat is shown?"},
        {"from": "gpt", "value": "A cat."}]}

A file is a JSON array or JSON lines. Speakers are human or user, gpt or assistant, system.
Markers may stand in any turn and are bound to the images in order; their number must agree.
`system` may stand beside the turns; a turn with `weight: 0` or `loss: false` is not learned.
Source: the LLaVA project's data format (haotian-liu/LLaVA, docs/Finetune_Custom_Data.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from diptych.data import format as contract
from diptych.data.reading import fields, keys, markers
from diptych.data.reading.rows import Reject, Row, read_json
from diptych.data.sample import Image, Sample, Text, Turn
from diptych.errors import FormatError, UnknownRole

MARK = "_llava"
_KNOWN = frozenset({"id", "image", "images", "video", "conversations", *fields.SYSTEM_KEYS})
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_SPEAKERS = {"user": "human", "assistant": "gpt", "system": "system"}


def sniff(row: dict[str, Any]) -> bool:
    """Rows with `conversations`."""
    return "conversations" in row


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
        MarkerMismatch: the numbers of markers and images differ.
        ConversationError: the turns are empty, one-sided, or of an unknown speaker.
    """
    value = row.value
    note: dict[str, Any] = {}
    sample_id = keys.take_id(row, note)
    fields.refuse_unseen(value)
    system = fields.take_system(value, note)
    paths = _image_paths(value, note)
    conversations = keys.require(value, "conversations", list, "a list of turns")
    turns = [_turn(turn, number) for number, turn in enumerate(conversations)]
    if system is not None and turns and _ROLES[turns[0][0]] == "system":
        raise FormatError(f"system words stand in '{note['system']}' and in the first turn")
    markers.check([text for _, text, _ in turns], len(paths))
    images = iter([Image(path) for path in paths])
    speakers = [speaker for speaker, _, _ in turns]
    extras = {str(n): extra for n, (_, _, extra) in enumerate(turns) if extra}
    if any(_SPEAKERS[_ROLES[s]] != s for s in speakers):
        note["from"] = speakers
    if extras:
        note["turns"] = extras
    said = [
        Turn(_ROLES[s], markers.split(text, images), _learned(extra, _ROLES[s], number))
        for number, (s, text, extra) in enumerate(turns)
    ]
    if system is not None:
        said.insert(0, Turn("system", (Text(system),)))
    meta = keys.take_meta(value, _KNOWN, MARK, note)
    return contract.checked(Sample(sample_id, tuple(said), row.where, meta))


def _learned(extra: dict[str, Any], role: str, number: int) -> bool:
    if not extra:
        return True
    try:
        return fields.is_learned(extra, role)
    except FormatError as error:
        raise FormatError(f"turn {number + 1}: {error.what}", fix=error.fix) from None


def _image_paths(value: dict[str, Any], note: dict[str, Any]) -> list[str]:
    key = fields.picture_column(value)
    if key is None:
        key = "images" if value.get("images") is not None else "image"
    given = value.get(key)
    paths = keys.image_list(given, key)
    if isinstance(given, list) and len(paths) == 1:
        note["list"] = True
    if key == "images":
        note["key"] = key
    # A key that holds nothing is written back as it was.
    empty = {k: value[k] for k in ("image", "images", "video") if k in value and not value[k]}
    if empty:
        note["empty"] = empty
    return paths


def _turn(turn: Any, number: int) -> tuple[str, str, dict[str, Any]]:
    if not isinstance(turn, dict):
        raise FormatError(f"turn {number + 1} is not an object with 'from' and 'value'")
    try:
        speaker = keys.require(turn, "from", str, "text")
        text = keys.require(turn, "value", str, "text")
    except FormatError as error:
        raise FormatError(f"turn {number + 1}: {error.what}") from None
    if speaker not in _ROLES:
        known = ", ".join(_ROLES)
        raise UnknownRole(f"turn {number + 1} is spoken by '{speaker[:80]}'; known are {known}")
    return speaker, text, {k: v for k, v in turn.items() if k not in ("from", "value")}


def render(sample: Sample) -> dict[str, Any]:
    """One row.

    Raises:
        FormatError: a picture has no file of its own, or a text contains a marker.
    """
    note = keys.noted(sample, MARK)
    row = keys.give_id(sample, note)
    paths = [keys.image_path(image) for image in sample.images()]
    if paths:
        single = len(paths) == 1 and not note.get("list")
        row[note.get("key", "image")] = paths[0] if single else paths
    for key, value in note.get("empty", {}).items():
        row.setdefault(key, value)
    said_turns, words = fields.without_system(sample, note)
    fields.give_system(row, note, words)
    speakers = note.get("from", [])
    extras = note.get("turns", {})
    turns = []
    for number, turn in enumerate(said_turns):
        speaker = _SPEAKERS[turn.role]
        if len(speakers) == len(said_turns) and _ROLES.get(speakers[number]) == turn.role:
            speaker = speakers[number]
        said = {"from": speaker, "value": markers.join(turn)}
        turns.append(said | fields.give_marks(turn, extras.get(str(number), {})))
    row["conversations"] = turns
    return keys.give_meta(row, sample.meta, _KNOWN, MARK)
