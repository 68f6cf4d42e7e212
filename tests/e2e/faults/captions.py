"""Captions: COCO, rows, CSV, folders."""

from __future__ import annotations

from diptych import errors
from tests.e2e.faults.case import case
from tests.e2e.faulty_inputs import (
    coco,
    json_lines,
    png,
    raw_file,
    row,
)

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


@case("CSV with an open quote", good=2, rejects={"FormatError": 1})
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
