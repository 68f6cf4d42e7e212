"""Every format reads what it writes, and rows survive a detour through every other format."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from diptych import parts
from diptych.data import format as formats
from diptych.data.reading.rows import Reject, Row
from diptych.data.sample import Image, Text, Turn
from diptych.errors import FormatError

FORMATS = parts.names(formats.FOLDER)


def talk(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


LLAVA_ROWS: list[dict[str, Any]] = [
    {"id": "a", "image": "x/a.png", "conversations": talk("<image>\nWhat?", "A \u2028 cat.")},
    {"id": 7, "image": ["a.png"], "conversations": talk("What?\n<image>", "图")},
    {"image": ["a.png", "b.png"], "conversations": talk("<image> or <image>?", "b")},
    {"id": None, "image": None, "conversations": talk("Hi", "Ho")},
    {"id": "e", "image": "", "conversations": talk("Hi", "Ho"), "messages": "a stranger's key"},
    {"id": "f", "images": ["a.png"], "conversations": talk("<image>", "x"), "_meta": {"id": "y"}},
    {
        "id": "g",
        "image": "a.png",
        "score": [1, 2.5, {"deep": None}],
        "answers": ["x", "y"],
        "conversations": [
            {"from": "system", "value": ""},
            {"from": "user", "value": "<image>", "weight": 0},
            {"from": "assistant", "value": "x"},
            {"from": "human", "value": "And?"},
            {"from": "gpt", "value": "y", "weight": 1},
        ],
    },
]
MESSAGE_ROWS: list[dict[str, Any]] = [
    {"id": "a", "messages": [said("user", "Hi <image>"), said("assistant", "Ho")]}
    for said in [lambda role, content: {"role": role, "content": content}]
] + [
    {
        "id": 3,
        "messages": [
            {
                "role": "user",
                "name": "kim",
                "content": [
                    {"type": "text", "text": "See "},
                    {"type": "text", "text": ""},
                    {"type": "text", "text": "this"},
                    {"type": "image", "image": "a.png"},
                    {"type": "image", "path": "b.png", "detail": "low"},
                    {"type": "image_url", "image_url": {"url": "c.png", "detail": "high"}},
                    {"type": "image_url", "image_url": "d.png"},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "Fine."}]},
        ],
    },
    {
        "images": ["a.png", "b.png"],
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "image"}]},
            {"role": "assistant", "content": "Two."},
        ],
    },
    {
        "id": "m",
        "images": ["a.png"],
        "conversations": 1,
        "messages": [
            {"role": "user", "content": "<image>\nWhat?"},
            {"role": "assistant", "content": "A cat."},
        ],
    },
    {
        "id": "r",
        "images": ["a.png"],
        "messages": [
            {"role": "user", "content": [{"type": "image", "image": "a.png"}]},
            {"role": "assistant", "content": "A cat."},
        ],
    },
    {
        "id": "n",
        "images": [],
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}],
    },
]
CAPTION_ROWS: list[dict[str, Any]] = [
    {"caption": "A cat.", "image": "a.png", "image_id": "coco_1"},
    {"caption": ["One.", "Two."], "image": "b.png", "image_id": 2},
    {"caption": ["Only."], "image": "c.png"},
    {"id": 4, "text": "Other names.", "file_name": "d.png", "license": 1},
]
COCO = {
    "info": {"year": 2014},
    "licenses": [{"id": 1}],
    "images": [
        {"id": 9, "file_name": "9.jpg", "width": 3, "license": 1},
        {"id": 2, "file_name": "2.jpg"},
    ],
    "annotations": [
        {"id": 1, "image_id": 2, "caption": "A cat."},
        {"id": 2, "image_id": 9, "caption": "A dog.", "extra": [1]},
        {"id": 3, "image_id": 2, "caption": "Still a cat."},
    ],
}
QUESTIONS = {
    "info": {"version": "2.0"},
    "data_subtype": "val2014",
    "questions": [
        {"question_id": 11, "image_id": 1, "question": "What?"},
        {"question_id": 12, "image_id": 1, "question": "How many?", "image": "own.png", "x": 1},
    ],
}
ANNOTATIONS = {
    "info": {"version": "2.0"},
    "annotations": [
        {
            "question_id": number,
            "image_id": 1,
            "question_type": "what",
            "answer_type": "other",
            "multiple_choice_answer": "cat",
            "answers": [
                {"answer": "cat", "answer_confidence": "yes", "answer_id": 1},
                {"answer": "dog", "answer_confidence": "maybe", "answer_id": 2},
            ],
        }
        for number in (11, 12)
    ],
}
FLAT_VQA_ROWS: list[dict[str, Any]] = [
    {"question_id": 1, "image": "a.png", "question": "What?", "answer": ["cat", "cat", "dog"]},
    {"id": "q", "image": "a.png", "question": "What?", "answer": "cat", "kind": "colour"},
    {"question_id": "z", "image": "a.png", "question": "?", "multiple_choice_answer": "no"},
]


def written(folder: Path, rows: Any, name: str) -> str:
    path = folder / name
    if name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    else:
        path.write_text(json.dumps(rows))
    return str(path)


def read_back(path: str) -> Any:
    text = Path(path).read_text(encoding="utf-8")
    return (
        [json.loads(t) for t in text.split("\n") if t] if path.endswith("l") else json.loads(text)
    )


def test_every_format_has_the_whole_contract():
    assert {"llava", "messages", "captions", "vqa"} <= set(FORMATS)
    for name in FORMATS:
        module = formats.find(name)
        for function in ("sniff", "parse", "render", "read", "write"):
            assert callable(getattr(module, function)), f"{name} has no {function}"
            assert getattr(module, function).__doc__


@pytest.mark.parametrize("ending", [".json", ".jsonl"])
@pytest.mark.parametrize(
    ("format", "rows", "detours"),
    [
        ("llava", LLAVA_ROWS, ["llava", "messages"]),
        ("messages", MESSAGE_ROWS[1:], ["messages", "llava"]),
        ("messages", MESSAGE_ROWS, ["messages"]),
        ("captions", CAPTION_ROWS, ["captions", "llava", "messages"]),
        ("vqa", FLAT_VQA_ROWS, ["llava", "messages"]),
    ],
)
def test_round_trips_lose_nothing(tmp_path, format, rows, detours, ending):
    source = written(tmp_path, rows, f"in{ending}")
    assert formats.detect(source) == format
    for detour in detours:
        middle, back = str(tmp_path / f"middle{ending}"), str(tmp_path / f"back{ending}")
        if format == "vqa":
            back = str(tmp_path / "back.jsonl")
        there = formats.convert(source, middle, None, detour)
        home = formats.convert(middle, back, detour, format)
        assert (there.num_used, home.num_used) == (len(rows), len(rows)), (there, home)
        assert read_back(back) == rows, detour


@pytest.mark.parametrize("ending", [".json", ".jsonl"])
@pytest.mark.parametrize("detour", ["captions", "llava", "messages"])
def test_coco_files_survive(tmp_path, detour, ending):
    source = written(tmp_path, COCO, "coco.json")
    middle, back = str(tmp_path / f"middle{ending}"), str(tmp_path / "back.json")
    formats.convert(source, middle, None, detour)
    formats.convert(middle, back, None, "captions")
    theirs = read_back(back)
    assert theirs["annotations"] == COCO["annotations"]
    assert theirs["images"] == COCO["images"]
    assert {k: theirs[k] for k in ("info", "licenses")} == {
        k: COCO[k] for k in ("info", "licenses")
    }


@pytest.mark.parametrize("detour", ["vqa", "vqa flat", "llava", "messages"])
def test_vqa_pairs_survive(tmp_path, detour):
    source = written(tmp_path, QUESTIONS, "v2_OpenEnded_mscoco_val_questions.json")
    written(tmp_path, ANNOTATIONS, "v2_mscoco_val_annotations.json")
    (tmp_path / "middle").mkdir()
    middle = str(tmp_path / "middle" / ("questions.json" if detour == "vqa" else "rows.json"))
    back = f"{tmp_path}/q.json,{tmp_path}/a.json"
    middle = str(tmp_path / "flat.jsonl") if detour == "vqa flat" else middle
    formats.convert(source, middle, None, detour.split()[0])
    formats.convert(middle, back, None, "vqa")
    assert read_back(f"{tmp_path}/q.json") == QUESTIONS
    assert read_back(f"{tmp_path}/a.json") == ANNOTATIONS


def test_vqa_samples(tmp_path):
    source = written(tmp_path, QUESTIONS, "questions.json")
    written(tmp_path, ANNOTATIONS, "annotations.json")
    first, second = formats.read(source)
    assert not isinstance(first, Reject) and not isinstance(second, Reject)
    image = Image("COCO_val2014_000000000001.jpg")
    assert first.turns == (
        Turn("user", (image, Text("What?"))),
        Turn("assistant", (Text("cat"),)),
    )
    assert first.id == "11" and first.meta["answers"] == ["cat", "dog"]
    assert (first.meta["kind"], first.meta["question_id"], first.meta["image_id"]) == (
        "other",
        11,
        1,
    )
    assert next(second.images()).path == "own.png"


def test_most_common_answer_is_said():
    rows = Row({"question_id": 1, "image": "a", "question": "?", "answers": ["b", "c", "c"]}, "f:1")
    assert formats.find("vqa").parse(rows).answer == "c"


def test_csv_survives(tmp_path):
    path = tmp_path / "in.csv"
    with open(path, "w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["image", "caption", "image_id", "note"])
        writer.writerow(["a.png", 'a "quoted", text\nin two lines', "1", ""])
        writer.writerow(["b.png", "图", "2", "x"])
    for detour in ("captions", "llava", "messages"):
        middle, back = str(tmp_path / "middle.jsonl"), str(tmp_path / "back.csv")
        formats.convert(str(path), middle, None, detour)
        formats.convert(middle, back, None, "captions")
        with open(path, newline="") as first, open(back, newline="") as second:
            theirs = [
                {k: v for k, v in r.items() if not k.endswith(":json")}
                for r in csv.DictReader(second)
            ]
            assert theirs == list(csv.DictReader(first))


def test_json_values_survive_csv(tmp_path):
    rows = [{"caption": "A.", "image": "a.png", "image_id": n, "tags": [n]} for n in range(3)]
    source = written(tmp_path, rows, "in.jsonl")
    formats.convert(source, str(tmp_path / "middle.csv"), None, "captions")
    formats.convert(str(tmp_path / "middle.csv"), str(tmp_path / "back.jsonl"), None, "captions")
    assert read_back(str(tmp_path / "back.jsonl")) == rows


def test_folder_of_texts_survives(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        (folder / "sub").mkdir(parents=True)
        for name in ("a.png", "sub/b.jpg"):
            (folder / name).write_bytes(b"picture")
    (first / "a.txt").write_text("A cat.\n")
    (first / "sub" / "b.txt").write_text("Two\nlines")
    formats.convert(str(first), str(tmp_path / "middle.json"), None, "captions")
    ledger = formats.convert(str(tmp_path / "middle.json"), str(second), None, "captions")
    assert ledger.num_used == 2
    for name in ("a.txt", "sub/b.txt"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_edits_on_the_way_win_over_notes(tmp_path):
    source = written(tmp_path, LLAVA_ROWS[1:2], "in.json")
    formats.convert(source, str(tmp_path / "middle.jsonl"), None, "messages")
    row = read_back(str(tmp_path / "middle.jsonl"))[0]
    row["messages"][1]["content"] = "edited"
    row["id"] = "new"
    middle = written(tmp_path, [row], "edited.jsonl")
    formats.convert(middle, str(tmp_path / "back.json"), None, "llava")
    back = read_back(str(tmp_path / "back.json"))[0]
    assert back["id"] == "new" and back["image"] == ["a.png"]
    assert back["conversations"][1]["value"] == "edited"


def test_what_a_format_cannot_hold_is_a_reject_with_its_row(tmp_path):
    rows = [MESSAGE_ROWS[0], MESSAGE_ROWS[-1]]
    source, out = written(tmp_path, rows, "in.jsonl"), str(tmp_path / "out.jsonl")
    ledger = formats.convert(source, out, None, "llava")
    assert (ledger.num_read, ledger.num_used, ledger.num_rejected) == (2, 1, 1)
    reject = read_back(out + ".rejects.jsonl")[0]
    assert reject["error"] == "FormatError" and "Hi <image>" in reject["row"]
    with pytest.raises(FormatError, match="marker|contains"):
        samples = (s for s in formats.read(source) if not isinstance(s, Reject))
        formats.write(samples, out, "llava")
    assert len(read_back(out)) == 1, "a failed write must leave the old file"


@pytest.mark.parametrize("note", [7, {"turns": 3, "from": 5, "list": []}, {"file": 1, "image": 2}])
@pytest.mark.parametrize("to", ["llava", "messages", "captions", "vqa"])
def test_notes_that_others_wrote_do_no_harm(tmp_path, note, to):
    marks = ("_llava", "_messages", "_captions", "_coco", "_vqa", "_vqa_pair", "_text_file")
    rows = []
    for kept in ("llava", "captions"):
        base = LLAVA_ROWS[0] if kept == "llava" else CAPTION_ROWS[0]
        rows.append(base | {m: note for m in marks if m != f"_{kept}"})
        source = written(tmp_path, rows[-1:], "in.jsonl")
        out = tmp_path / ("out_questions.json" if to == "vqa" else "out.json")
        ledger = formats.convert(source, str(out), None, to)
        assert ledger.num_read == 1 == ledger.num_used + ledger.num_rejected


def test_newline_after_the_marker_is_kept():
    row = Row({"id": "1", "image": "a.png", "conversations": talk("<image>\nWhat?", "A.")}, "f:1")
    assert formats.find("llava").parse(row).turns[0].parts == (Image("a.png"), Text("\nWhat?"))
