"""At least sixty faulty or odd inputs: each gets its named reason or loads right, none is lost.

A case writes its files and says how many rows are good and which rejects there are; or which
error the data set as a whole raises. Every case also runs the promises that hold for all: no
other exception, rows in = rows used + rows rejected, every reject has a place and a message.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diptych import errors
from diptych.data.check import check
from diptych.data.index import Index
from tests.e2e.faulty_inputs import (
    DROP,
    annotation,
    coco,
    encoded,
    folder_with_picture,
    json_lines,
    link,
    noise,
    parquet,
    png,
    png_claiming,
    question,
    raw_file,
    row,
    symlink_out,
    talk,
    tar,
    vqa,
)


@dataclass
class Case:
    name: str
    build: Callable[[Path], Any]
    good: int = 0
    rejects: dict[str, int] = field(default_factory=dict)
    raises: type[errors.DiptychError] | None = None
    says: str = ""
    options: dict[str, Any] = field(default_factory=dict)


CASES: list[Case] = []


def case(name: str, **expected: Any) -> Callable[[Callable[[Path], Any]], Any]:
    def add(build: Callable[[Path], Any]) -> Callable[[Path], Any]:
        CASES.append(Case(name, build, **expected))
        return build

    return add


# --- pictures: one good row, and one about the picture in question -----------------------------


def picture_case(name: str, data: bytes | None, error: str | None, says: str = "") -> None:
    def build(folder: Path) -> Path:
        if data is not None:
            (folder / "odd.img").write_bytes(data)
        return json_lines(folder, [row(1), row(2, image="odd.img")])

    rejects = {error: 1} if error else {}
    CASES.append(Case(name, build, good=1 if error else 2, rejects=rejects, says=says))


jpeg = encoded(noise(), "JPEG", quality=90)
animated = encoded(
    noise(), "GIF", save_all=True, append_images=[noise(seed=1), noise(seed=2)], duration=50
)
exif = Image.Exif()
exif[0x0112] = 6
deep = Image.fromarray((np.arange(64 * 48).reshape(48, 64) * 20).astype(np.uint16))
picture_case("missing picture", None, "MissingImage", "odd.img")
picture_case("empty picture", b"", "EmptyImage")
picture_case("truncated JPEG", jpeg[: len(jpeg) // 2], "TruncatedImage")
picture_case("truncated PNG", encoded(noise(), "PNG")[:2000], "TruncatedImage")
picture_case("header only", png()[:20], "TruncatedImage")
picture_case("truncated WebP", encoded(noise(), "WEBP")[:300], "TruncatedImage")
picture_case("truncated GIF", encoded(noise(), "GIF")[:900], "TruncatedImage")
picture_case("truncated BMP", encoded(noise(), "BMP")[:900], "TruncatedImage")
picture_case("truncated TIFF", encoded(noise(), "TIFF")[:900], "TruncatedImage")
picture_case("web page as picture", b"<!doctype html><html>404</html>", "NotAnImage")
picture_case("text as picture", b"hello", "NotAnImage")
picture_case("SVG", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "NotAnImage")
picture_case("format not allowed", encoded(noise(), "ICO"), "NotAnImage")
picture_case("bomb by header", png_claiming(50_000, 50_000), "ImageTooLarge", "pixels")
picture_case("bomb below Pillow's error", png_claiming(10_000, 10_000), "ImageTooLarge")
picture_case("CMYK", encoded(noise().convert("CMYK"), "JPEG"), None)
picture_case("palette", encoded(noise().quantize(16), "PNG"), None)
picture_case("palette with alpha", encoded(noise().quantize(16), "PNG", transparency=3), None)
picture_case("alpha", encoded(noise().convert("RGBA"), "PNG"), None)
picture_case("grey with alpha", encoded(noise().convert("LA"), "PNG"), None)
picture_case("16 bit", encoded(deep, "PNG"), None)
picture_case("one bit", encoded(noise().convert("1"), "PNG"), None)
picture_case("animated", animated, None)
picture_case("EXIF-rotated", encoded(noise(), "JPEG", exif=exif), None)
picture_case("damaged EXIF", jpeg[:2] + b"\xff\xe1\x00\x0cExif\0\0XXXX" + jpeg[2:], None)
picture_case("1x1", png(1, 1), None)
picture_case("1x4000", png(1, 4000), None)
picture_case("progressive JPEG", encoded(noise(), "JPEG", progressive=True), None)
picture_case("PPM", encoded(noise(), "PPM"), None)


@case("folder instead of picture", good=1, rejects={"NotAnImage": 1}, says="folder")
def _(folder):
    (folder / "odd.img").mkdir()
    return json_lines(folder, [row(1), row(2, image="odd.img")])


@case("named pipe instead of picture", good=1, rejects={"NotAnImage": 1})
def _(folder):
    os.mkfifo(folder / "odd.img")
    return json_lines(folder, [row(1), row(2, image="odd.img")])


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
row_case("duplicate id", "DuplicateId", "row1", id="row1")
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


@case("integer and text ids clash", good=1, rejects={"DuplicateId": 1})
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


# --- JSON lines ------------------------------------------------------------------------------


def line_case(name: str, line: Any, error: str | None, says: str = "") -> None:
    def build(folder: Path) -> Path:
        return json_lines(folder, [row(1), line, row(3)])

    rejects = {error: 1} if error else {}
    CASES.append(Case(name, build, good=2 if error else 3, rejects=rejects, says=says))


good_line = json.dumps(row(2))
line_case("cut line", good_line[:40], "FormatError", "line 2")
line_case("missing brace", good_line[:-1], "FormatError", "line 2")
line_case("two objects on a line", good_line + good_line, "FormatError", "Extra data")
line_case("single quotes", good_line.replace('"', "'"), "FormatError", "line 2")
line_case("trailing comma", good_line[:-1] + ",}", "FormatError", "line 2")
line_case("plain text", "not JSON at all", "FormatError", "line 2")
line_case("list as row", "[1, 2]", "FormatError", "array")
line_case("number as row", "42", "FormatError", "number")
line_case("null as row", "null", "FormatError", "null")
line_case("NaN", good_line[:-1] + ', "score": NaN}', "FormatError", "NaN")
line_case("infinite number", good_line[:-1] + ', "score": 1e999}', "FormatError", "too large")
line_case("5000 digits", good_line[:-1] + f', "n": {"9" * 5000}}}', "FormatError", "digits")
line_case("repeated key", good_line[:-1] + ', "id": "again"}', "FormatError", "'id' occurs twice")
line_case("nested a hundred thousand deep", "[" * 100_000 + "]" * 100_000, "FormatError", "deep")
line_case(
    "nested deep inside a row",
    good_line[:-1] + ', "x": ' + "[" * 50_000 + "]" * 50_000 + "}",
    "FormatError",
    "deep",
)
line_case(
    "latin-1 bytes", good_line.encode().replace(b"Answer", b"\xe9t\xe9"), "FormatError", "0xe9"
)
line_case("NUL bytes", good_line.encode().replace(b"Answer", b"A\0B"), "FormatError", "NUL")
line_case("only NUL bytes", b"\0" * 50, "FormatError", "NUL")
line_case("U+2028 inside a string", good_line.replace("Answer", "A\u2028B\u0085C"), None)
line_case("carriage return", good_line.encode() + b"\r", None)
line_case(
    "huge line", json.dumps(row(2, conversations=talk("<image>" + "x" * 3_000_000, "A"))), None
)
line_case(
    "ten thousand turns",
    json.dumps(row(2, conversations=talk("<image>", "A") + talk("Q", "A") * 5000)),
    None,
)


@case("byte order mark", good=2)
def _(folder):
    text = "\ufeff" + json.dumps(row(1)) + "\n" + json.dumps(row(2))
    return raw_file(folder, text, "data.jsonl")


@case("Windows line ends and blank lines", good=2)
def _(folder):
    text = json.dumps(row(1)) + "\r\n\r\n   \r\n" + json.dumps(row(2)) + "\r\n"
    return raw_file(folder, text, "data.jsonl")


@case("UTF-16 file", raises=errors.FormatError, says="UTF-16")
def _(folder):
    return raw_file(folder, json.dumps(row(1)).encode("utf-16"), "data.jsonl")


@case("empty file", raises=errors.FormatError, says="empty")
def _(folder):
    return raw_file(folder, b"", "data.jsonl")


@case("file of blanks", raises=errors.FormatError, says="empty")
def _(folder):
    return raw_file(folder, b" \n\n", "data.json")


@case("no such file", raises=errors.DataError, says="no such file")
def _(folder):
    return folder / "nothing.json"


@case("unknown format", raises=errors.FormatError, says="llava")
def _(folder):
    return json_lines(folder, [{"foo": 1}, {"bar": 2}])


@case("no such format", raises=errors.PartNotFound, options={"format": "lava"}, says="lava")
def _(folder):
    return json_lines(folder, [row(1)])


@case("picture given as data", raises=errors.FormatError)
def _(folder):
    return folder / "good.png"


@case("all rows of another format", rejects={"FormatError": 2}, options={"format": "messages"})
def _(folder):
    return json_lines(folder, [row(1), row(2)])


# --- JSON arrays -----------------------------------------------------------------------------


def array_text(*items: Any) -> str:
    dumped = [i if isinstance(i, str) else json.dumps(i) for i in items]
    return "[\n" + ",\n".join(dumped) + "\n]\n"


def array_case(
    name: str, text: str | bytes, good: int, rejects: dict[str, int], says: str = ""
) -> None:
    CASES.append(
        Case(name, lambda f: raw_file(f, text, "data.json"), good=good, rejects=rejects, says=says)
    )


indented = json.dumps([row(1), row(2), row(3)], indent=2)
single = json.dumps([row(1), row(2), row(3)])
array_case(
    "element without its brace",
    array_text(row(1), good_line[:-1], row(3)),
    2,
    {"FormatError": 1},
    "data.json:3",
)
array_case(
    "element with a broken string",
    array_text(row(1), good_line.replace('Question 2?"', "Question 2?"), row(3)),
    2,
    {"FormatError": 1},
)
array_case(
    "element with a stray bracket",
    array_text(row(1), good_line.replace('"id"', ']"id"'), row(3)),
    2,
    {"FormatError": 1},
)
array_case(
    "indented, one brace missing",
    indented.replace("  },\n  {", "  ,\n  {", 1),
    2,
    {"FormatError": 1},
)
array_case(
    "one line, one brace missing",
    single.replace('}]}, {"id": "row2"', '}], {"id": "row2"'),
    2,
    {"FormatError": 1},
)
array_case("array cut off in a row", single[:-120], 2, {"FormatError": 1})
array_case("array not closed", single[:-1], 3, {"FormatError": 1}, "not closed")
array_case("missing comma", single.replace("}]}, {", "}]} {"), 3, {})
array_case("trailing comma in array", single[:-1] + ", ]", 3, {})
array_case("text after the array", single + " more", 3, {"FormatError": 1}, "after")
array_case(
    "latin-1 in array",
    single.encode().replace(b"Answer 2", b"\xe9t\xe9"),
    2,
    {"FormatError": 1},
    "0xe9",
)
array_case(
    "numbers among rows", array_text(row(1), "7", row(3), '"text"', "null"), 2, {"FormatError": 3}
)
array_case("array with a mark and CRLF", ("\ufeff" + indented).replace("\n", "\r\n"), 3, {})
array_case("one object", json.dumps(row(1), indent=2), 1, {})


@case("empty array", raises=errors.FormatError)
def _(folder):
    return raw_file(folder, "[]", "data.json")


@case(
    "empty array with a format",
    raises=errors.DataError,
    options={"format": "llava"},
    says="no rows",
)
def _(folder):
    return raw_file(folder, "[]", "data.json")


# --- messages --------------------------------------------------------------------------------


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


# --- captions: COCO, rows, CSV, folders --------------------------------------------------------

picture_row = {"id": 1, "file_name": "good.png"}
caption_row = {"id": 1, "image_id": 1, "caption": "A cat."}


@case("COCO annotation of an unknown image", good=1, rejects={"MissingImage": 1}, says="42")
def _(folder):
    return coco(folder, [picture_row], [caption_row, caption_row | {"id": 2, "image_id": 42}])


@case("COCO annotation without caption", good=1, rejects={"FormatError": 1})
def _(folder):
    return coco(folder, [picture_row], [caption_row, {"id": 2, "image_id": 1}])


@case(
    "COCO empty caption and null caption",
    good=1,
    rejects={"EmptyConversation": 1, "FormatError": 1},
)
def _(folder):
    more = [caption_row | {"id": 2, "caption": ""}, caption_row | {"id": 3, "caption": None}]
    return coco(folder, [picture_row], [caption_row, *more])


@case("COCO image id twice", good=1, rejects={"DuplicateId": 1})
def _(folder):
    return coco(folder, [picture_row, picture_row], [caption_row])


@case("COCO image without file name", rejects={"FormatError": 1})
def _(folder):
    return coco(folder, [{"id": 1}], [caption_row])


@case("COCO file cut off", good=1, rejects={"FormatError": 2})
def _(folder):
    path = coco(folder, [picture_row], [caption_row, caption_row | {"id": 2}])
    path.write_text(path.read_text()[:-30])
    return path


@case("caption rows with faults", good=2, rejects={"FormatError": 3, "EmptyConversation": 2})
def _(folder):
    rows = [
        {"caption": "A cat.", "image": "good.png", "image_id": "x"},
        {"caption": ["One.", "Two."], "image": "good.png", "image_id": "x"},
        {"caption": 5, "image": "good.png"},
        {"caption": ["One.", 2], "image": "good.png"},
        {"caption": "A cat."},
        {"caption": [], "image": "good.png"},
        {"caption": "", "image": "good.png"},
    ]
    return json_lines(folder, rows)


@case("CSV with faults", good=3, rejects={"FormatError": 5, "MissingImage": 1})
def _(folder):
    lines = [
        "image,caption",
        "good.png,A cat.",
        "good.png",
        "good.png,a,b",
        'good.png,"two\nlines, and a comma"',
        "gone.png,Gone.",
        "good.png,\xe9",
        "good.png,A\0B",
        'good.png,"quote "inside" it"',
        "good.png,Last.",
    ]
    return raw_file(folder, "\r\n".join(lines).encode("latin-1"), "data.csv")


@case("CSV with an open quote", good=1, rejects={"FormatError": 1})
def _(folder):
    return raw_file(folder, 'image,caption\ngood.png,A.\ngood.png,"open\ngood.png,B.\n', "data.csv")


@case("CSV without the columns", raises=errors.FormatError)
def _(folder):
    return raw_file(folder, "a,b\n1,2\n", "data.csv")


@case("CSV with a column twice", raises=errors.FormatError, says="repeats")
def _(folder):
    return raw_file(folder, "image,image,caption\n1,2,3\n", "data.csv")


@case("CSV with only a header", raises=errors.FormatError)
def _(folder):
    return raw_file(folder, "image,caption\n", "data.csv")


@case(
    "folder of pictures and texts",
    good=1,
    rejects={"FormatError": 2, "MissingImage": 1, "EmptyConversation": 1},
)
def _(folder):
    pictures = folder / "pictures"
    pictures.mkdir()
    for name in ("a.png", "b.png", "c.png", "d.png"):
        (pictures / name).write_bytes(png())
    (pictures / "a.txt").write_text("A cat.\n")
    (pictures / "b.txt").write_text("")
    (pictures / "c.txt").write_bytes(b"\xe9")
    (pictures / "e.txt").write_text("no picture")
    return pictures


@case("empty folder", raises=errors.DataError, says="holds no data")
def _(folder):
    (folder / "empty").mkdir()
    return folder / "empty"


@case("folder with two data files", raises=errors.DataError, says="several")
def _(folder):
    json_lines(folder, [row(1)], "a.jsonl")
    json_lines(folder, [row(1)], "b.jsonl")
    return folder


@case("glob without a match", raises=errors.DataError, says="pattern")
def _(folder):
    return folder / "*.jsonl"


# --- VQA -------------------------------------------------------------------------------------


@case(
    "VQA question without annotation and the other way", good=1, rejects={"OneSidedConversation": 2}
)
def _(folder):
    return vqa(folder, [question(1), question(2)], [annotation(1), annotation(3)])


@case("VQA annotated twice", good=1, rejects={"DuplicateId": 1})
def _(folder):
    return vqa(folder, [question(1)], [annotation(1), annotation(1)])


@case("VQA asked twice", good=1, rejects={"OneSidedConversation": 1})
def _(folder):
    return vqa(folder, [question(1), question(1)], [annotation(1)])


@case("VQA fields of wrong types", good=1, rejects={"FormatError": 4, "EmptyConversation": 1})
def _(folder):
    questions = [
        question(1),
        question(2, question=None),
        question(3, image=5),
        question(4, question=""),
        question(5),
        question(6),
    ]
    answers = [annotation(n) for n in range(1, 5)]
    answers += [
        annotation(5, answers="?", multiple_choice_answer=3),
        annotation(6, answers=[{"a": 1}]),
    ]
    return vqa(folder, questions, answers)


@case("VQA without annotations file", raises=errors.FormatError, says="annotations")
def _(folder):
    path = vqa(folder, [question(1)], [annotation(1)])
    (folder / "v2_annotations.json").unlink()
    return path


@case(
    "VQA picture by its usual name is missing", rejects={"MissingImage": 1}, says="000000000007.jpg"
)
def _(folder):
    return vqa(folder, [question(7, image=DROP)], [annotation(7)])


# --- tar -------------------------------------------------------------------------------------

llava_member = json.dumps({"conversations": talk("<image>?", "A")}).encode()


def tar_case(
    name: str, members: list[Any], good: int, rejects: dict[str, int], says: str = ""
) -> None:
    start = [("a.png", png()), ("a.txt", b"A cat.")]
    CASES.append(
        Case(name, lambda f: tar(f, start + members), good=good, rejects=rejects, says=says)
    )


tar_case("tar row with a conversation", [("b.json", llava_member), ("b.png", png())], 2, {})
tar_case(
    "tar member climbs", [("../b.png", png()), ("../b.txt", b"B")], 1, {"UnsafePath": 1}, "../b"
)
tar_case("tar member is absolute", [("/b.png", png()), ("/b.txt", b"B")], 1, {"UnsafePath": 1})
tar_case(
    "tar symbolic link",
    [(link("b.png", "/etc/passwd"), b""), ("b.txt", b"B")],
    1,
    {"UnsafePath": 1},
    "symbolic",
)
tar_case(
    "tar hard link",
    [(link("b.png", "a.png", tarfile.LNKTYPE), b""), ("b.txt", b"B")],
    1,
    {"UnsafePath": 1},
    "hard",
)
tar_case(
    "tar device",
    [(link("b.png", "", tarfile.CHRTYPE), b""), ("b.txt", b"B")],
    1,
    {"UnsafePath": 1},
    "device",
)
tar_case(
    "tar pipe", [(link("b.png", "", tarfile.FIFOTYPE), b""), ("b.txt", b"B")], 1, {"UnsafePath": 1}
)
tar_case(
    "tar member twice",
    [("b.png", png()), ("b.png", png()), ("b.txt", b"B")],
    1,
    {"FormatError": 1},
    "twice",
)
tar_case(
    "tar key comes again",
    [("b.png", png()), ("b.txt", b"B"), ("a.png", png()), ("a.txt", b"A")],
    2,
    {"DuplicateId": 1},
)
tar_case("tar picture without text", [("b.png", png())], 1, {"FormatError": 1})
tar_case("tar text without picture", [("b.txt", b"B")], 1, {"FormatError": 1})
tar_case(
    "tar markers and pictures differ",
    [("b.json", llava_member), ("b.0.png", png()), ("b.1.png", png())],
    1,
    {"MarkerMismatch": 1},
)
tar_case("tar broken JSON", [("b.json", b"{"), ("b.png", png())], 1, {"FormatError": 1})
tar_case(
    "tar JSON of no format", [("b.json", b'{"x": 1}'), ("b.png", png())], 1, {"FormatError": 1}
)
tar_case("tar latin-1 text", [("b.txt", b"\xe9"), ("b.png", png())], 1, {"FormatError": 1})
tar_case("tar empty picture", [("b.txt", b"B"), ("b.png", b"")], 1, {"EmptyImage": 1})
tar_case(
    "tar truncated picture", [("b.txt", b"B"), ("b.jpg", jpeg[:500])], 1, {"TruncatedImage": 1}
)


@case("tar cut off in a member", good=1, rejects={"DataError": 1}, says="breaks off")
def _(folder):
    path = tar(
        folder,
        [("a.txt", b"A"), ("a.png", png()), ("b.txt", b"B"), ("b.png", encoded(noise(), "PNG"))],
    )
    path.write_bytes(path.read_bytes()[: 512 * 7 + 100])
    return path


@case("tar with a damaged header", good=1, rejects={"DataError": 1})
def _(folder):
    path = tar(folder, [("a.txt", b"A"), ("a.png", png()), ("b.txt", b"B"), ("b.png", png())])
    data = bytearray(path.read_bytes())
    data[512 * 6 : 512 * 6 + 40] = b"x" * 40
    path.write_bytes(bytes(data))
    return path


@case("file that is no tar", rejects={"DataError": 1})
def _(folder):
    return raw_file(folder, b"no tar " * 1000, "shard.tar")


@case("empty tar file", rejects={"DataError": 1})
def _(folder):
    return raw_file(folder, b"", "shard.tar")


@case("good shard beside a broken one", good=1, rejects={"DataError": 1})
def _(folder):
    shards = folder / "shards"
    shards.mkdir()
    tar(shards, [("a.txt", b"A"), ("a.png", png())], "0.tar")
    raw_file(shards, b"no tar", "1.tar")
    return shards


# --- Parquet -----------------------------------------------------------------------------------


@case(
    "Parquet with faults",
    good=2,
    rejects={"EmptyImage": 1, "NotAnImage": 1, "MissingImage": 2, "FormatError": 1},
)
def _(folder):
    pictures = [
        {"bytes": png(), "path": "a.png"},
        {"bytes": png(), "path": None},
        {"bytes": b"", "path": "c.png"},
        {"bytes": b"hello", "path": "d.png"},
        {"bytes": None, "path": "e.png"},
        None,
        {"bytes": png(), "path": "g.png"},
    ]
    turns = [talk("<image>?", "A")] * 5 + [talk("<image>?", "A"), None]
    del pictures[5], turns[5]
    pictures.append({"bytes": None, "path": "h.png"})
    turns.append(talk("<image>?", "A"))
    return parquet(folder, {"image": pictures, "conversations": turns})


@case("Parquet with binary column and captions", good=2)
def _(folder):
    return parquet(folder, {"image": [png(), png(3, 3)], "caption": ["A", "B"]})


@case("Parquet marker without picture", good=1, rejects={"MarkerMismatch": 1})
def _(folder):
    columns = {"images": [[png()], []], "conversations": [talk("<image>?", "A")] * 2}
    return parquet(folder, columns)


@case("Parquet of no format", rejects={"FormatError": 2})
def _(folder):
    return parquet(folder, {"x": [1, 2]})


@case("file that is no Parquet", rejects={"DataError": 1})
def _(folder):
    return raw_file(folder, b"PAR1 but not really", "rows.parquet")


@case("Parquet with a damaged page", good=2, rejects={"DataError": 1}, says="rows 2 to 3")
def _(folder):
    import pyarrow
    import pyarrow.parquet

    path = folder / "rows.parquet"
    columns = {"image": [encoded(noise(seed=n), "PNG") for n in range(4)], "caption": list("ABCD")}
    with pyarrow.parquet.ParquetWriter(
        path, pyarrow.table(columns).schema, compression="zstd"
    ) as out:
        for start in (0, 2):
            out.write_table(pyarrow.table({k: v[start : start + 2] for k, v in columns.items()}))
    group = pyarrow.parquet.ParquetFile(path).metadata.row_group(1)
    data = bytearray(path.read_bytes())
    at = group.column(0).dictionary_page_offset or group.column(0).data_page_offset
    data[at : at + 200] = b"\xff" * 200
    path.write_bytes(bytes(data))
    return path


@case("shards and data files together", raises=errors.DataError, says="one set")
def _(folder):
    return [str(tar(folder, [("a.txt", b"A")])), str(json_lines(folder, [row(1)]))]


def test_the_corpus_is_large_and_its_names_differ():
    assert len(CASES) >= 60
    assert max(Counter(c.name for c in CASES).values()) == 1


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name.replace(" ", "-"))
def test_each_fault_has_its_name_and_nothing_is_lost(case: Case, tmp_path: Path):
    folder = tmp_path / "data"
    folder.mkdir()
    path = case.build(folder_with_picture(folder))
    path = path if isinstance(path, list) else str(path)
    if case.raises is not None:
        with pytest.raises(case.raises) as caught:
            check(path, workers=2, **case.options)
        assert case.says in str(caught.value)
        assert caught.value.exit_code == 2
        return
    report = check(path, workers=2, **case.options)
    found = Counter(reject.error for reject in report.rejects)
    assert found == Counter(case.rejects), [r.message for r in report.rejects]
    assert report.num_samples == case.good
    assert report.ledger.num_read == case.good + sum(case.rejects.values())
    for reject in report.rejects:
        assert reject.where and reject.message and hasattr(errors, reject.error)
    assert case.says in " ".join(f"{r.where} {r.message}" for r in report.rejects)
    json.dumps(report.to_dict())
    # The index makes the same pass: its ledger is the report's, and good samples load.
    index = Index.build(path, tmp_path / "cache", workers=2, progress=False, **case.options)
    assert index.ledger.num_rejected == sum(case.rejects.values())
    assert len(index) == case.good
    for sample in index:
        for image in sample.images():
            assert index.image_bytes(image)
