"""Fields that carry meaning for other readers: obeyed here, or named.

LLaMA-Factory and ms-swift write the system words into a column of their own and mark turns that
shall not be learned; many tools name pictures in one column and say where they belong by a marker
in the text. What Diptych follows of that is read here, for all formats alike. What it does not
follow is either refused (it would change what is learned) or counted (`unread`).
"""

from __future__ import annotations

from typing import Any

from diptych.data.reading.markers import IMAGE_MARKER
from diptych.data.sample import Sample, Turn
from diptych.errors import FormatError

SYSTEM_KEYS = ("system", "system_prompt")
PICTURE_KEYS = ("image", "images")
_OTHER_MEDIA = ("video", "videos", "audio", "audios")
_OTHER_PICTURE_KEYS = (
    "image_path", "image_paths", "image_url", "image_urls", "image_file", "image_files",
    "img", "imgs", "img_path", "picture", "pictures", "photo", "Image", "image_name", "image_0",
    "image_1", "image1", "media",
)  # fmt: skip
_TURN_MARKS = (
    "weight", "loss", "loss_mask", "loss_weight", "loss_scale", "train", "trainable", "training",
)  # fmt: skip
_SPOKEN_ELSEWHERE = (
    "tool_calls", "function_call", "reasoning_content", "reasoning", "thinking", "refusal",
)  # fmt: skip
_FOLLOWED_ELSEWHERE = {
    "tools": "tool definitions",
    "functions": "tool definitions",
    "objects": "boxes of things in the picture",
    "bbox": "boxes of things in the picture",
    "bboxes": "boxes of things in the picture",
    "rejected": "an answer to learn against",
    "rejected_response": "an answer to learn against",
    "rejected_messages": "an answer to learn against",
    "chosen": "an answer to prefer",
    "kto_tag": "whether the answer is a good one",
    "weight": "a weight of the row",
    "loss_weight": "a weight of the row",
    "loss_scale": "a weight of the row",
    "channel": "a channel of the loss",
}
_READ = frozenset(
    {"kind", "answers", "choices", "regions", "id", "image_id", "question_id", "split"}
)
"""Columns that other rooms of Diptych read, or that only say where a row comes from."""


_LOOKED_FOR = frozenset({*_TURN_MARKS, *_OTHER_MEDIA, *_OTHER_PICTURE_KEYS})


def take_system(value: dict[str, Any], note: dict[str, Any]) -> str | None:
    """The system words that a row has beside its turns; `note` remembers their column.

    Raises:
        FormatError: they are no text, or stand in two columns.
    """
    given = [key for key in SYSTEM_KEYS if key in value]
    if not given:
        return None
    spoken = [key for key in given if value[key]]
    if len(spoken) > 1:
        raise FormatError(f"the row has both '{spoken[0]}' and '{spoken[1]}'")
    if blank := {key: value[key] for key in given if not value[key]}:
        note["no_system"] = blank
    if not spoken:
        return None
    words = value[spoken[0]]
    if not isinstance(words, str):
        raise FormatError(f"'{spoken[0]}' is no text")
    note["system"] = spoken[0]
    return words


def without_system(sample: Sample, note: dict[str, Any]) -> tuple[tuple[Turn, ...], str | None]:
    """The turns as the row had them, and the system words that stood in a column."""
    if "system" in note and sample.turns and sample.turns[0].role == "system":
        return sample.turns[1:], sample.turns[0].text
    return sample.turns, None


def give_marks(turn: Turn, marks: dict[str, Any]) -> dict[str, Any]:
    """The marks of a turn as the row had them, as far as they say what the turn says now."""
    if turn.role != "assistant" or is_learned(marks, turn.role) == turn.learn:
        return marks
    # Whether it is learned is content, and was changed on the way.
    kept = {key: mark for key, mark in marks.items() if key not in _TURN_MARKS}
    return kept if turn.learn else {**kept, "weight": 0}


def give_system(row: dict[str, Any], note: dict[str, Any], words: str | None) -> None:
    """The opposite of `take_system`."""
    if words is not None:
        row[note["system"]] = words
    for key, blank in note.get("no_system", {}).items():
        row.setdefault(key, blank)


def refuse_unseen(value: dict[str, Any], *, pictures: bool = True) -> None:
    """Make sure that a row is to be learned, and shows nothing which would be passed over.

    Args:
        pictures: also columns that may name pictures; formats with columns of their own for them
            look themselves.

    Raises:
        FormatError: it has a video or sound, names pictures in a column that is not read, or is
            marked as not to be learned.
    """
    if _LOOKED_FOR.isdisjoint(value):  # asked of every row read
        return
    for key in _TURN_MARKS:
        if key in value and not isinstance(value[key], list) and value[key] in (0, False):
            raise FormatError(f"the row is marked as not to be learned ('{key}': {value[key]!r})")
    for key in _OTHER_MEDIA:
        if value.get(key):
            raise FormatError(f"{key.rstrip('s')} rows cannot be read yet ('{key}' is not empty)")
    if not pictures or any(value.get(key) for key in PICTURE_KEYS):
        return
    for key in _OTHER_PICTURE_KEYS:
        if value.get(key):
            raise FormatError(
                f"the row names pictures in '{key}', which is not read: it would be learned "
                "without them",
                fix="rename the column to `image`",
            )


def picture_column(value: dict[str, Any]) -> str | None:
    """`image` or `images`, whichever a row uses.

    Raises:
        FormatError: both.
    """
    given = [key for key in PICTURE_KEYS if value.get(key) not in (None, "", [])]
    if len(given) > 1:
        raise FormatError("the row has both 'image' and 'images'")
    return given[0] if given else None


def is_learned(marks: dict[str, Any], role: str) -> bool:
    """Whether a turn with these keys beside its text is learned (`weight: 0`, `loss: false`).

    Raises:
        FormatError: a weight that is neither 0 nor 1, or something is said in another key.
    """
    for key in _SPOKEN_ELSEWHERE:
        if marks.get(key):
            raise FormatError(f"it says something in '{key}', which is not learned")
    learned = True
    for key in _TURN_MARKS:
        mark = marks.get(key)
        if mark is None:
            continue
        if not isinstance(mark, bool | int | float) or mark not in (0, 1):
            raise FormatError(
                f"its '{key}' is {mark!r}, and only 0 and 1 are followed",
                fix="an answer is learned or not; repeat a row that shall count more",
            )
        learned = learned and bool(mark)
    return learned or role != "assistant"


_OF_PARTS = frozenset({"index", "image_wh"})
"""Keys of content parts that are read, or only say what the picture says itself."""


def unread(sample: Sample) -> list[str]:
    """What a row says and nothing here follows, one short text each."""
    found = []
    for key, value in sample.meta.items():
        if key.startswith("_") or key in _READ or value in (None, "", [], {}):
            continue
        about = _FOLLOWED_ELSEWHERE.get(key)
        found.append(f"column '{key}' is not followed" + (f" ({about})" if about else ""))
    if any(IMAGE_MARKER in turn.text for turn in sample.turns):
        found.append(f"'{IMAGE_MARKER}' in a text is read as the characters that it is")
    for name in ("_llava", "_messages"):
        note = sample.meta.get(name)
        if isinstance(note, dict):
            found += _unread_of_turns(sample, note)
    return found


def _unread_of_turns(sample: Sample, note: dict[str, Any]) -> list[str]:
    found = []
    first = 1 if "system" in note else 0
    for number, said in note.get("turns", {}).items():
        of_messages = not said.keys().isdisjoint(("extra", "shape", "context", "front"))
        extra = said.get("extra", {}) if of_messages else said
        if of_messages:
            found += _unread_of_parts(said.get("shape", said.get("context")))
        turn = sample.turns[int(number) + first]
        for key, value in extra.items():
            if value in (None, "", [], {}):
                continue
            if key not in _TURN_MARKS:
                found.append(f"key '{key}' of a turn is not followed")
            elif turn.role != "assistant" and value:
                found.append(f"'{key}' of a turn that is no answer is not followed")
    return found


def _unread_of_parts(shape: Any) -> list[str]:
    parts = [part for part in shape if isinstance(part, dict)] if isinstance(shape, list) else []
    keys = [key for part in parts for key in (*part.get("extra", ()), *part.get("inner", ()))]
    return [f"key '{key}' of a part is not followed" for key in keys if key not in _OF_PARTS]
