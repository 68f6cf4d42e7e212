"""LLaVA conversations: id, image (a path or a list), turns with `<image>` markers.

    {"id": "1", "image": "a.png", "conversations": [
        {"from": "human", "value": "<image>\\nWhat is shown?"},
        {"from": "gpt", "value": "A cat."}]}

A file is a JSON array or JSON lines. Speakers are human or user, gpt or assistant, system.
Markers may stand in any turn and are bound to the images in order; their number must agree.
Source: the LLaVA project's data format (haotian-liu/LLaVA, docs/Finetune_Custom_Data.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from diptych.data import format as contract
from diptych.data.rows import Reject, Row, read_json
from diptych.data.sample import Image, Sample, Turn
from diptych.errors import FormatError, UnknownRole

MARK = "_llava"
_KNOWN = frozenset({"id", "image", "images", "video", "conversations"})
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
    sample_id = contract.take_id(row, note)
    if value.get("video") is not None:
        raise FormatError("video rows cannot be read yet")
    paths = _image_paths(value, note)
    conversations = contract.require(value, "conversations", list, "a list of turns")
    turns = [_turn(turn, number) for number, turn in enumerate(conversations)]
    contract.check_markers([text for _, text, _ in turns], len(paths))
    images = iter([Image(path) for path in paths])
    speakers = [speaker for speaker, _, _ in turns]
    extras = {str(n): extra for n, (_, _, extra) in enumerate(turns) if extra}
    if any(_SPEAKERS[_ROLES[s]] != s for s in speakers):
        note["from"] = speakers
    if extras:
        note["turns"] = extras
    sample = Sample(
        sample_id,
        tuple(Turn(_ROLES[s], contract.split_markers(text, images)) for s, text, _ in turns),
        row.where,
        contract.take_meta(value, _KNOWN, MARK, note),
    )
    return contract.checked(sample)


def _image_paths(value: dict[str, Any], note: dict[str, Any]) -> list[str]:
    if value.get("image") is not None and value.get("images") is not None:
        raise FormatError("the row has both 'image' and 'images'")
    key = "images" if value.get("images") is not None else "image"
    given = value.get(key)
    paths = contract.image_list(given, key)
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
        speaker = contract.require(turn, "from", str, "text")
        text = contract.require(turn, "value", str, "text")
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
    note = contract.noted(sample, MARK)
    row = contract.give_id(sample, note)
    paths = [contract.image_path(image) for image in sample.images()]
    if paths:
        single = len(paths) == 1 and not note.get("list")
        row[note.get("key", "image")] = paths[0] if single else paths
    for key, value in note.get("empty", {}).items():
        row.setdefault(key, value)
    speakers = note.get("from", [])
    extras = note.get("turns", {})
    turns = []
    for number, turn in enumerate(sample.turns):
        speaker = _SPEAKERS[turn.role]
        if len(speakers) == len(sample.turns) and _ROLES.get(speakers[number]) == turn.role:
            speaker = speakers[number]
        said = {"from": speaker, "value": contract.join_markers(turn)}
        turns.append(said | extras.get(str(number), {}))
    row["conversations"] = turns
    return contract.give_meta(row, sample.meta, _KNOWN, MARK)
