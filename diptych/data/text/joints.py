"""Joints: how a picture joins the text beside it, in one turn.

The same rule is written twice: in Python for training, and in Jinja (`diptych/convert`) for
the template that leaves with a model; tests/unit/convert/test_chat_parts.py holds both together.

- `line`: pictures at the start of a turn have a line break behind each, pictures at its end one
  before each, however the row wrote that; inside a sentence the text stays as it is (InternVL).
- `front`: a single picture stands at the front of its turn with a line break behind it, wherever
  the row has it; several are joined as with `line` (LLaVA, LLaVA-NeXT).
- `none`: exactly as the row has it.
- `begin`: pictures at the start of a conversation stand before the tokenizer's beginning token,
  and nothing stands between (BLIP-2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from diptych.data.sample import Image, Text
from diptych.errors import ConfigError

Joint = Literal["line", "front", "none", "begin"]
JOINTS: tuple[Joint, ...] = get_args(Joint)


def joined(parts: Sequence[Text | Image], joint: str) -> list[Text | Image]:
    """The parts of a turn with what stands between them.

    Raises:
        ConfigError: there is no such joint.
    """
    if joint not in JOINTS:
        raise ConfigError(
            f"there is no joint '{joint}'",
            where="model.language_model.picture_joint",
            fix=f"one of {', '.join(JOINTS)}",
        )
    images = [p for p in parts if isinstance(p, Image)]
    if not images or joint in ("none", "begin"):
        return list(parts)
    if joint == "front" and len(images) == 1:
        text = "".join(p.text for p in parts if isinstance(p, Text)).strip()
        return [images[0], Text("\n" + text)] if text else [images[0]]
    spoken = [n for n, p in enumerate(parts) if isinstance(p, Text) and p.text.strip()]
    if not spoken:
        return _lines(images)
    first, last = spoken[0], spoken[-1]
    before = [p for p in parts[:first] if isinstance(p, Image)]
    after = [p for p in parts[last + 1 :] if isinstance(p, Image)]
    middle = list(parts[first : last + 1])
    if before:
        middle[0] = Text("\n" + _text(middle[0]).lstrip())
    if after:
        middle[-1] = Text(_text(middle[-1]).rstrip() + "\n")
    return [*_lines(before), *middle, *_lines(after)]


def _lines(images: Sequence[Image]) -> list[Text | Image]:
    found: list[Text | Image] = []
    for image in images:
        found += [Text("\n"), image] if found else [image]
    return found


def _text(part: Text | Image) -> str:
    return part.text if isinstance(part, Text) else ""
