"""LLaVA rows: paths and conversations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.e2e.faults.case import CASES, Case, case
from tests.e2e.faulty_inputs import (
    DROP,
    json_lines,
    row,
    symlink_out,
    talk,
)

# --- paths -----------------------------------------------------------------------------------

for name, path in {
    "climbing path": "../outside.png",
    "climbing inside": "sub/../../outside.png",
    "absolute path": "/etc/passwd",
    "Windows path": "C:\\Windows\\win.ini",
    "backslash climbing": "..\\outside.png",
    "file address": "file:///etc/passwd",
    "web address": "http://169.254.169.254/latest/meta-data",
    "object store address": "s3://bucket/picture.png",
    "chained address": "simplecache::file:///etc/passwd",
    "data address in llava": "data:image/png;base64,AAAA",
    "symbolic link out": "link.png",
    "linked folder out": "linked/secret.png",
}.items():

    def _build(folder: Path, path: str = path) -> Path:
        symlink_out(folder)
        return json_lines(folder, [row(1), row(2, image=path)])

    CASES.append(Case(name, _build, good=1, rejects={"UnsafePath": 1}))


@case("very long path", good=1, rejects={"MissingImage": 1})
def _(folder):
    return json_lines(folder, [row(1), row(2, image="a" * 5000)])


@case("unsafe name in the middle of a list", good=1, rejects={"UnsafePath": 1})
def _(folder):
    both = talk("<image><image> which?", "Both.")
    images = ["good.png", "../x.png"]
    return json_lines(folder, [row(1), row(2, image=images, conversations=both)])


# --- conversations ---------------------------------------------------------------------------


def row_case(name: str, error: str | None, says: str = "", **changes: Any) -> None:
    def build(folder: Path) -> Path:
        return json_lines(folder, [row(1), row(2, **changes)])

    rejects = {error: 1} if error else {}
    CASES.append(Case(name, build, good=1 if error else 2, rejects=rejects, says=says))


row_case(
    "more markers",
    "MarkerMismatch",
    "2 <image> markers",
    conversations=talk("<image><image>?", "A"),
)
row_case("no marker", "MarkerMismatch", "0 <image> markers", conversations=talk("What?", "A"))
row_case("more images", "MarkerMismatch", "2 images", image=["good.png", "good.png"])
row_case("marker without image", "MarkerMismatch", "0 images", image=DROP)
row_case("empty conversation", "EmptyConversation", image=DROP, conversations=[])
row_case("only a question", "OneSidedConversation", conversations=talk("<image>?", "A")[:1])
row_case("only an answer", "OneSidedConversation", conversations=talk("", "<image>A")[1:])
row_case(
    "two questions",
    "OneSidedConversation",
    conversations=talk("<image>?", "A")[:1] * 2,
    image=["good.png"] * 2,
)
row_case("empty answer", "EmptyConversation", "turn 2", conversations=talk("<image>?", ""))
row_case("blank answer", "EmptyConversation", conversations=talk("<image>?", " \n"))
row_case(
    "unknown role", "UnknownRole", "robot", conversations=[{"from": "robot", "value": "<image>"}]
)
row_case("conversation is text", "FormatError", conversations="hello")
row_case("conversation is null", "FormatError", conversations=None)
row_case("no conversation", "FormatError", conversations=DROP)
row_case("turn is text", "FormatError", conversations=["hi", "ho"])
row_case("turn without value", "FormatError", conversations=[{"from": "human"}])
row_case("value is null", "FormatError", conversations=[{"from": "human", "value": None}])
row_case("value is a number", "FormatError", conversations=[{"from": "human", "value": 3}])
row_case("image is a number", "FormatError", image=7)
row_case("image is an object", "FormatError", image={"path": "good.png"})
row_case("image list holds null", "FormatError", image=["good.png", None])
row_case("image list holds empty text", "FormatError", image=[""])
row_case("id is a list", "FormatError", id=[1])
row_case("id is a fraction", "FormatError", id=1.5)
row_case("id is true", "FormatError", id=True)
row_case("duplicate id", None, id="row1")
row_case("video row", "FormatError", "video", video="clip.mp4")
row_case("NUL in text", "FormatError", "NUL", conversations=talk("<image>\0?", "A"))
row_case("half a surrogate pair", "FormatError", conversations=talk("<image>\ud800?", "A"))
row_case("reserved key", "FormatError", "_llava", _llava=1)
row_case("null id", None, id=None)
row_case("integer id", None, id=2)
row_case("no id", None, id=DROP)
row_case("huge integer id", None, id=10**30)
row_case("text only, null image", None, image=None, conversations=talk("Hello?", "Hi."))
row_case("text only, empty list", None, image=[], conversations=talk("Hello?", "Hi."))
row_case("other scripts", None, conversations=talk("<image>图表？", "🙂 é"))
row_case(
    "empty system turn",
    None,
    conversations=[{"from": "system", "value": ""}, *talk("<image>?", "A")],
)


@case("integer and text ids clash", good=2, rejects={})
def _(folder):
    return json_lines(folder, [row(1, id=5), row(2, id="5")])


@case(
    "sample longer than the context",
    good=1,
    rejects={"SampleTooLong": 1},
    says="context",
    options={"measure": lambda s: (len(s.turns[0].text), 1), "context": 100},
)
def _(folder):
    return json_lines(folder, [row(1), row(2, conversations=talk("<image>" + "long " * 50, "A"))])
