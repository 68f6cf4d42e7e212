"""OpenAI-style messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.e2e.faults.case import CASES, Case
from tests.e2e.faulty_inputs import (
    json_lines,
)


def messages_case(name: str, error: str | None, messages: Any, says: str = "", **more: Any) -> None:
    def build(folder: Path) -> Path:
        first = {"id": "a", "messages": [said("user", "Hi"), said("assistant", "Ho")]}
        return json_lines(folder, [first, {"id": "b", "messages": messages} | more])

    rejects = {error: 1} if error else {}
    CASES.append(Case(name, build, good=1 if error else 2, rejects=rejects, says=says))


def said(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def shows(part: Any) -> list[dict[str, Any]]:
    return [said("user", [part, {"type": "text", "text": "?"}]), said("assistant", "A")]


messages_case("content part of unknown type", "FormatError", shows({"type": "audio"}), "audio")
messages_case("content part is text", "FormatError", shows("hello"))
messages_case("image part without image", "FormatError", shows({"type": "image"}))
messages_case("image_url is a number", "FormatError", shows({"type": "image_url", "image_url": 3}))
messages_case(
    "fewer images than places",
    "MarkerMismatch",
    [said("user", [{"type": "image"}, {"type": "image"}]), said("assistant", "A")],
    "2 places",
    images=["good.png"],
)
messages_case("tool turn", "UnknownRole", [said("user", "q"), said("tool", "A")])
messages_case("content is null", "FormatError", [said("user", None), said("assistant", "A")])
messages_case(
    "empty list of parts", "EmptyConversation", [said("user", []), said("assistant", "A")]
)
messages_case(
    "web image",
    "UnsafePath",
    shows({"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}),
)
messages_case(
    "broken base64",
    "FormatError",
    shows({"type": "image_url", "image_url": {"url": "data:image/png;base64,@@"}}),
)
messages_case(
    "base64 that is no picture",
    "NotAnImage",
    shows({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}),
)
messages_case(
    "marker typed by a user is text", None, [said("user", "<image>?"), said("assistant", "A")]
)
messages_case("image part with a path", None, shows({"type": "image", "image": "good.png"}))
