"""Shards as other programs write them: tar by WebDataset's users, Parquet by `datasets` and pandas.

`shards/` holds files that `datasets` 5.2.0 wrote (`Dataset.from_list(rows, features).to_parquet`, with
the feature `Json` for contents, whole conversations, and ids of mixed types); members, order and
fields of the tars are those of img2dataset 1.47.0.
"""

from __future__ import annotations

import datetime
import decimal
import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as Pillow

from diptych.data.checking.check import check
from diptych.data.reading.rows import Reject
from diptych.data.sample import Image, Sample, Text
from diptych.data.source import Source, locate

WRITTEN = Path(__file__).with_name("shards")


def picture(colour: str, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Pillow.new("RGB", (24, 16), colour).save(out, kind)
    return out.getvalue()


RED, GREEN, BLUE = picture("red"), picture("green"), picture("blue")


def tar(folder: Path, *members: tuple[str, bytes | str], name: str = "shard.tar") -> Path:
    path = folder / name
    with tarfile.open(path, "w") as archive:
        for member, data in members:
            data = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def parquet(folder: Path, columns: dict[str, Any], rows_a_group: int = 2) -> Path:
    path = folder / "rows.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=rows_a_group)
    return path


def read(path: Any) -> tuple[list[Sample], list[Reject], Source]:
    source = locate(str(path))
    items = list(source.rows())
    good = [item for item in items if isinstance(item, Sample)]
    return good, [item for item in items if isinstance(item, Reject)], source


def pairs(samples: list[Sample]) -> list[tuple[str, bytes | None]]:
    return [(sample.answer, next(sample.images()).data) for sample in samples]


def shown(sample: Sample) -> list[str | bytes | None]:
    """Texts and bytes of the first user turn, in reading order."""
    turn = next(turn for turn in sample.turns if turn.role == "user")
    assert all(isinstance(part, Text | Image) for part in turn.parts)
    return [part.text if isinstance(part, Text) else part.data for part in turn.parts]


# --- tar: names with dots --------------------------------------------------------------------


@pytest.mark.parametrize(
    "members",
    [
        [("IMG.1.jpg", RED), ("IMG.1.txt", "one"), ("IMG.2.jpg", GREEN), ("IMG.2.txt", "two")],
        [("IMG.1.txt", "one"), ("IMG.1.jpg", RED), ("IMG.2.txt", "two"), ("IMG.2.jpg", GREEN)],
        [("IMG.1.jpg", RED), ("IMG.2.jpg", GREEN), ("IMG.1.txt", "one"), ("IMG.2.txt", "two")],
        [("IMG.jpg", RED), ("IMG.txt", "one"), ("IMG.1.jpg", GREEN), ("IMG.1.txt", "two")],
        [("IMG.1.jpg", RED), ("IMG.1.txt", "one"), ("IMG.jpg", GREEN), ("IMG.txt", "two")],
        [
            ("v1.0_1.json", '{"caption": "one"}'),
            ("v1.0_1.jpg", RED),
            ("v1.0_2.json", '{"caption": "two"}'),
            ("v1.0_2.jpg", GREEN),
        ],
        [("a.b/x.jpg", RED), ("a.b/x.txt", "one"), ("a.b/y.jpg", GREEN), ("a.b/y.txt", "two")],
    ],
)
def test_names_with_dots_are_rows_of_their_own(tmp_path, members):
    good, rejects, _ = read(tar(tmp_path, *members))
    assert pairs(good) == [("one", RED), ("two", GREEN)] and not rejects
    assert len({sample.id for sample in good}) == 2


def test_what_webdataset_takes_together_stays_together(tmp_path):
    """Several pictures of one row, and a text with a longer name, have dots, too."""
    talk = [{"role": "user", "content": "<image><image>?"}, {"role": "assistant", "content": "x"}]
    good, rejects, _ = read(
        tar(
            tmp_path,
            *[("a.0.png", RED), ("a.1.png", GREEN), ("a.json", json.dumps({"messages": talk}))],
            *[("b.jpg", BLUE), ("b.caption.txt", "blue")],
            *[("v.1_1.0.png", RED), ("v.1_1.1.png", GREEN)],
            ("v.1_1.json", json.dumps({"messages": talk})),
            *[("v.1_2.0.png", GREEN), ("v.1_2.1.png", RED)],
            ("v.1_2.json", json.dumps({"messages": talk})),
        )
    )
    assert not rejects
    assert [sample.id for sample in good] == ["shard/a", "shard/b", "shard/v.1_1", "shard/v.1_2"]
    assert [[i.data for i in sample.images()] for sample in good] == [
        [RED, GREEN],
        [BLUE],
        [RED, GREEN],
        [GREEN, RED],
    ]


def test_dots_without_texts_are_a_named_reject_that_says_how_many(tmp_path):
    _, (reject,), _ = read(tar(tmp_path, *[(f"v1.{n}.jpg", RED) for n in range(7)]))
    assert reject.error == "FormatError" and "7 members have its key" in reject.message
    _, rejects, _ = read(
        tar(tmp_path, ("IMG.1.jpg", RED), ("IMG.2.jpg", GREEN), ("IMG.2.txt", "two"))
    )
    assert [reject.id for reject in rejects] == ["IMG.1"]


def test_a_whole_shard_of_names_with_one_dot_is_read_row_by_row(tmp_path, monkeypatch):
    monkeypatch.setattr("diptych.data.sources.tar._MAX_ROW_BYTES", 4 * len(RED))
    members: list[tuple[str, bytes | str]] = []
    for number in range(50):
        members += [(f"v1.{number:03d}.jpg", RED), (f"v1.{number:03d}.txt", f"{number}")]
    good, rejects, _ = read(tar(tmp_path, *members))
    assert [sample.answer for sample in good] == [str(n) for n in range(50)] and not rejects


def test_pictures_are_bound_by_what_the_row_calls_them(tmp_path):
    """`1.png` is the member `a.1.png`; a name that is nowhere is not guessed."""
    talk = [{"from": "human", "value": "<image> <image>?"}, {"from": "gpt", "value": "x"}]
    members = [("a.0.png", RED), ("a.1.png", GREEN)]
    for names, want in ((["1.png", "0.png"], [GREEN, RED]), (["p.jpg", "q.jpg"], [RED, GREEN])):
        row = json.dumps({"image": names, "conversations": talk})
        (sample,), _, _ = read(tar(tmp_path, *members, ("a.json", row)))
        assert [image.data for image in sample.images()] == want
    row = json.dumps({"image": ["1.png", "other.png"], "conversations": talk})
    _, (reject,), _ = read(tar(tmp_path, *members, ("a.json", row)))
    assert reject.error == "MissingImage" and "other.png" in reject.message


# --- tar: told by content, and counted ---------------------------------------------------------


def test_members_are_told_by_content(tmp_path):
    jpeg, avif = picture("red", "JPEG"), picture("red", "AVIF")
    good, rejects, source = read(
        tar(
            tmp_path,
            *[("a.jfif", jpeg), ("a.TXT", "A"), ("b", RED), ("b.txt", "B")],
            *[("c.AVIF", avif), ("c.text", "C"), ("d.JPG", jpeg), ("d.caption", "D")],
            *[("e.jpg_large", jpeg), ("e.txt", "E"), ("e.npy", b"\x93NUMPY"), ("e.cls", "7")],
            *[("f.png", RED), ("f.seg.png", GREEN), ("f.txt", "F"), ("f.__key__", "f")],
            *[("._g.jpg", b"left by a Mac"), ("__MACOSX/._h.txt", "left by a Mac")],
            *[("BMW.jpg", jpeg), ("BMW.txt", "G"), ("BMW.note", "BM is no bitmap here")],
        )
    )
    assert pairs(good) == [
        *[("A", jpeg), ("B", RED), ("C", avif), ("D", jpeg), ("E", jpeg), ("F", RED), ("G", jpeg)]
    ]
    assert not rejects
    assert source.passed_over == Counter(
        {
            "members in tar shards (.npy)": 1,
            "members in tar shards (.cls)": 1,
            "members in tar shards (.__key__)": 1,
            "members in tar shards (.note)": 1,
            "further pictures of captions in tar shards (.png)": 1,
            "hidden members in tar shards": 2,
        }
    )


def test_rows_without_text_picture_or_choice_are_named(tmp_path):
    _, rejects, _ = read(
        tar(
            tmp_path,
            *[("a.jpg", RED), ("a.cls", "281")],
            ("README.md", "no row"),
            *[("c.0.png", RED), ("c.1.png", GREEN), ("c.txt", "which?")],
            *[("d.png", RED), ("d.x.txt", "one"), ("d.y.txt", "two")],
            *[("e.png", RED), ("e.json", '{"id": 12, "caption": "A"')],
        )
    )
    assert [(reject.where.rpartition("#")[2], reject.id) for reject in rejects] == [
        *[("a", "a"), ("README", "README"), ("c", "c"), ("d", "d"), ("e", "12")]
    ]
    says = [
        *["class number", "neither text nor picture", "2 pictures (c.0.png, c.1.png)"],
        *["which is the row's text: d.x.txt, d.y.txt", "invalid JSON"],
    ]
    assert all(text in reject.message for text, reject in zip(says, rejects, strict=True))


def test_pictures_alone_need_no_text(tmp_path):
    path = tar(tmp_path, ("a.jpg", RED), ("b.jpg", GREEN), ("b.cls", "7"), ("c.cls", "8"))
    source = locate(str(path), "pictures")
    *good, reject = source.rows()
    assert [item.id for item in good] == ["shard/a", "shard/b"]
    assert isinstance(reject, Reject) and reject.id == "c"
    assert source.passed_over == {"members in tar shards (.cls)": 1}


def test_a_large_member_that_is_not_read_costs_no_row(tmp_path, monkeypatch):
    monkeypatch.setattr("diptych.data.sources.tar.MAX_IMAGE_BYTES", 1000)
    path = tar(tmp_path, ("a.npy", b"\0" * 5000), ("a.png", RED), ("a.txt", "A"))
    good, _, source = read(path)
    assert pairs(good) == [("A", RED)] and sum(source.passed_over.values()) == 1
    _, (reject,), _ = read(tar(tmp_path, ("a.png", RED + b"\0" * 5000), ("a.txt", "A")))
    assert reject.error == "ImageTooLarge"


def img2dataset(key: str, caption: str | None) -> list[tuple[str, bytes | str]]:
    about = {
        **{"caption": caption, "url": f"https://example.org/{key}", "key": key},
        **{"status": "success", "error_message": None, "width": 24, "height": 16},
        **{"original_width": 640, "original_height": 480, "exif": "{}", "sha256": "0" * 64},
    }
    jpeg = picture("red", "JPEG")
    return [
        (f"{key}.jpg", jpeg),
        (f"{key}.json", json.dumps(about, indent=4)),
        (f"{key}.txt", caption or ""),
    ]


def test_a_folder_of_img2dataset(tmp_path):
    """Tars, and beside each a Parquet file (with the rows that failed) and a file of counts."""
    for shard in ("00000", "00001"):
        rows = [img2dataset(f"{shard}{n:04d}", text) for n, text in enumerate(["A cat", None])]
        tar(tmp_path, *rows[0], *rows[1], name=f"{shard}.tar")
        failed = {"caption": ["A dog"], "status": ["failed_to_download"], "key": [f"{shard}0002"]}
        pq.write_table(pa.table(failed), tmp_path / f"{shard}.parquet")
        (tmp_path / f"{shard}_stats.json").write_text('{"count": 3, "successes": 2}')
    good, rejects, source = read(tmp_path)
    assert [sample.id for sample in good] == ["00000/000000000", "00001/000010000"]
    assert good[0].answer == "A cat" and good[0].meta["original_width"] == 640
    assert [reject.id for reject in rejects] == ["000000001", "000010001"]
    assert all(reject.where.endswith(f".tar#{reject.id}") for reject in rejects)
    (what,) = source.passed_over
    assert "img2dataset" in what and source.passed_over[what] == 2


def test_fix_keeps_all_members_of_good_rows(tmp_path):
    path = tar(
        tmp_path,
        *[("IMG.1.jpg", RED), ("IMG.1.txt", "one"), ("IMG.2.jpg", b"none"), ("IMG.2.txt", "two")],
        *[("x.cls", "7"), ("x.png", GREEN), ("x.txt", "x"), ("._x.png", b"hidden")],
    )
    report = check(str(path), progress=False)
    assert [reject.id for reject in report.rejects] == ["shard/IMG.2"]
    report.fix(str(tmp_path / "out.tar"))
    with tarfile.open(tmp_path / "out.tar") as archive:
        names = ["IMG.1.jpg", "IMG.1.txt", "x.cls", "x.png", "x.txt"]
        assert archive.getnames() == names
    assert pairs(read(tmp_path / "out.tar")[0]) == [("one", RED), ("x", GREEN)]


# --- Parquet: JSON text ------------------------------------------------------------------------

CHAT = [
    [
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": "What is \u201cit\u201d?"}],
        },
        {"role": "assistant", "content": "A cat."},
    ],
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}],
]
JSON = pa.json_()


def json_array(values: list[Any]) -> pa.Array:
    texts = [None if value is None else json.dumps(value) for value in values]
    return pa.ExtensionArray.from_storage(JSON, pa.array(texts, pa.string()))


def messages_with_json(kind: pa.DataType) -> pa.Array:
    """`list<struct<role: string, content: arrow.json>>`, as `datasets` writes mixed contents."""
    flat = [message for row in CHAT for message in row]
    content: Any = pa.array([json.dumps(m["content"]) for m in flat], pa.string())
    if kind == JSON:
        content = pa.ExtensionArray.from_storage(JSON, content)
    structs = pa.StructArray.from_arrays(
        [pa.array([m["role"] for m in flat]), content], names=["role", "content"]
    )
    return pa.ListArray.from_arrays(pa.array([0, 2, 4], pa.int32()), structs)


@pytest.mark.parametrize("name", ["datasets_chat", "datasets_chat_whole"])
def test_chat_rows_that_datasets_wrote(name):
    good, rejects, source = read(WRITTEN / f"{name}.parquet")
    assert not rejects and not source.passed_over
    assert [sample.id for sample in good] == ["1", "b", "row-2"]
    assert [[type(part) for part in sample.turns[0].parts] for sample in good] == [
        *[[Image, Text], [Text, Image, Image], [Text]]
    ]
    assert [sample.answer for sample in good] == ["A cat.", "A dog.", "ho"]
    assert good[0].question == "What?" and good[2].question == "hi"


def test_conversations_that_datasets_wrote():
    good, rejects, _ = read(WRITTEN / "datasets_llava.parquet")
    assert not rejects and [sample.answer for sample in good] == ["a", "a"]
    assert [len(list(sample.images())) for sample in good] == [1, 0]
    assert good[0].meta["meta"] == {"a": [1, "x"]}


@pytest.mark.parametrize(
    "messages",
    [
        messages_with_json(JSON),
        messages_with_json(pa.string()),  # pandas writes the text on and drops the type
        json_array(CHAT),
        pa.array([json.dumps(row) for row in CHAT]),
        pa.array([json.dumps(row) for row in CHAT], pa.large_string()),
    ],
    ids=["in structs", "in structs without the type", "whole", "text", "large text"],
)
def test_chat_rows_that_are_json_text(tmp_path, messages):
    columns = {"id": json_array([1, "b"]), "messages": messages, "images": [[RED], []]}
    good, rejects, _ = read(parquet(tmp_path, columns))
    assert not rejects and [sample.id for sample in good] == ["1", "b"]
    assert shown(good[0]) == [RED, "What is \u201cit\u201d?"] and good[0].answer == "A cat."
    assert shown(good[1]) == ["Hi"] and good[1].answer == "Ho"


def test_text_that_only_looks_like_json_stays_text(tmp_path):
    talk = [{"role": "user", "content": '["a", "b"]'}, {"role": "assistant", "content": "A list."}]
    good, _, _ = read(parquet(tmp_path, {"messages": [talk]}))
    assert shown(good[0]) == ['["a", "b"]']


def test_json_faults_name_their_row(tmp_path):
    broken = pa.array(['[{"role": "user"', json.dumps(CHAT[1])])
    columns = {"id": ["first", "second"], "messages": broken}
    good, (reject,), _ = read(parquet(tmp_path, columns))
    assert [sample.id for sample in good] == ["second"]
    assert (reject.id, reject.where.rpartition("#")[2]) == ("first", "0")
    assert json.loads(reject.row) == {"id": "first"}


def test_llava_instruct_mix_vsft(tmp_path):
    """Parts have the fields of all kinds of parts, null where they do not apply; `index` binds."""

    def text(words: str) -> dict[str, Any]:
        return {"index": None, "text": words, "type": "text"}

    def image(index: int) -> dict[str, Any]:
        return {"index": index, "text": None, "type": "image"}

    asked = [image(1), text(" then "), image(0), text("?")]
    answer = {"role": "assistant", "content": [text("Red.")]}
    rows = [[{"role": "user", "content": asked}, answer]]
    images = [[{"bytes": RED, "path": "same.png"}, {"bytes": GREEN, "path": "same.png"}]]
    (sample,), rejects, _ = read(parquet(tmp_path, {"messages": rows, "images": images}))
    assert shown(sample) == [GREEN, " then ", RED, "?"] and not rejects


def test_pictures_inside_the_parts_of_messages(tmp_path):
    asked = [
        {"type": "image", "image": {"bytes": RED, "path": None}, "text": None},
        {"type": "text", "image": None, "text": "?"},
    ]
    answer = [{"type": "text", "image": None, "text": "Red."}]
    rows = [[{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]]
    (sample,), _, _ = read(parquet(tmp_path, {"messages": rows}))
    assert shown(sample) == [RED, "?"] and sample.answer == "Red."


# --- Parquet: columns that cost no more than themselves ------------------------------------------


def test_a_vector_with_a_null_costs_its_values_only(tmp_path):
    """pyarrow 25.0.1 writes it and cannot read it again."""
    vectors = pa.array([[1.0, 2.0], None, [3.0, 4.0], [5.0, 6.0]], pa.list_(pa.float32(), 2))
    columns = {"caption": list("ABCD"), "image": [RED, GREEN, BLUE, RED], "v": vectors}
    path = parquet(tmp_path, columns)
    good, rejects, source = read(path)
    assert pairs(good) == [("A", RED), ("B", GREEN), ("C", BLUE), ("D", RED)] and not rejects
    assert [sample.meta.get("v") for sample in good] == [None, None, [3.0, 4.0], [5.0, 6.0]]
    assert source.passed_over == {"values of the column 'v' (cannot be read)": 2}


def damaged(path: Path, column: int, group: int) -> Path:
    """A Parquet file with a damaged page."""
    data = bytearray(path.read_bytes())
    chunk = pq.ParquetFile(path).metadata.row_group(group).column(column)
    at = chunk.dictionary_page_offset or chunk.data_page_offset
    data[at : at + 20] = b"\xff" * 20
    path.write_bytes(bytes(data))
    return path


def test_a_damaged_column_that_no_row_needs(tmp_path):
    columns = {"caption": list("ABCD"), "image": [RED] * 4, "score": [1.0, 2.0, 3.0, 4.0]}
    good, rejects, source = read(damaged(parquet(tmp_path, columns), 2, 1))
    assert [s.meta.get("score") for s in good] == [1.0, 2.0, None, None] and not rejects
    assert source.passed_over == {"values of the column 'score' (cannot be read)": 2}


@pytest.mark.parametrize("column", [0, 1])
def test_a_damaged_column_that_rows_need(tmp_path, column):
    columns = {"caption": list("ABCD"), "image": [RED] * 4, "score": [1.0, 2.0, 3.0, 4.0]}
    path = damaged(parquet(tmp_path, columns), column, 1)
    good, rejects, _ = read(path)
    # Each row that is lost counts, so that training stops when there are many.
    assert len(good) == 2 and [r.where.rpartition("#")[2] for r in rejects] == ["2", "3"]
    assert all(f"rows 2 to 3 cannot be read (column {list(columns)[column]})" in r.message
               for r in rejects)  # fmt: skip
    check(str(path), progress=False).fix(str(tmp_path / "out.parquet"))
    assert pq.read_table(tmp_path / "out.parquet").column("caption").to_pylist() == ["A", "B"]


def test_bytes_that_are_no_picture_are_counted(tmp_path):
    wav = b"RIFF\x24\0\0\0WAVEfmt "
    columns = {
        "caption": ["A", "B"],
        "mask": [{"bytes": GREEN, "path": None}] * 2,
        "image": [{"bytes": RED, "path": None}] * 2,
        "audio": [{"bytes": wav, "path": "a.wav"}] * 2,
        "embedding": [b"\0\1\2\3"] * 2,
        "vector": pa.array([[0.5] * 512] * 2, pa.list_(pa.float32(), 512)),
    }
    good, rejects, source = read(parquet(tmp_path, columns))
    assert pairs(good) == [("A", RED), ("B", RED)] and not rejects
    assert [set(sample.meta) for sample in good] == [{"_captions"}] * 2
    beside = "(bytes beside the pictures in 'image')"
    assert source.passed_over == {
        f"values of the column 'mask' {beside}": 2,
        f"values of the column 'audio' {beside}": 2,
        f"values of the column 'embedding' {beside}": 2,
        "values of the column 'vector' (512 numbers each)": 2,
    }


def test_conversations_about_sound_or_video_are_refused(tmp_path):
    talk = [{"from": "human", "value": "<image>What is said?"}, {"from": "gpt", "value": "Hello"}]
    sound = [{"bytes": b"RIFF\x24\0\0\0WAVE", "path": "a.wav"}, None]
    columns = {"conversations": [talk, talk], "image": [RED, RED], "audio": sound}
    good, (reject,), _ = read(parquet(tmp_path, columns))
    assert len(good) == 1 and "'audio'" in reject.message
    row = json.dumps({"conversations": talk})
    _, (reject,), _ = read(tar(tmp_path, ("a.json", row), ("a.mp4", b"ftyp"), ("a.png", RED)))
    assert "video (a.mp4)" in reject.message


def test_a_picture_column_of_another_name_is_told_by_content(tmp_path):
    columns = {"txt": ["x"] * 3, "caption": list("ABC"), "jpg": [None, RED, b"<html>"]}
    good, rejects, _ = read(parquet(tmp_path, columns | {"emb": [b"\0\1"] * 3}))
    assert pairs(good) == [("B", RED), ("C", b"<html>")]  # which decoding will name
    assert [reject.error for reject in rejects] == ["FormatError"]
    columns = {"caption": ["A"], "left": [RED], "right": [GREEN]}
    _, (reject,), _ = read(parquet(tmp_path, columns))
    assert "2 pictures (left-0, right-0)" in reject.message


def test_several_picture_columns_keep_their_order(tmp_path):
    talk = [{"from": "human", "value": "<image><image>?"}, {"from": "gpt", "value": "x"}]
    columns = {"conversations": [talk], "image_1": [RED], "image_2": [GREEN], "image_3": [None]}
    columns["image_3"] = pa.array([None], pa.binary())
    (sample,), _, _ = read(parquet(tmp_path, columns))
    assert [image.data for image in sample.images()] == [RED, GREEN]


def test_text_that_was_written_as_bytes(tmp_path):
    """Spark and Impala write strings so."""
    columns = {"id": [b"7", b"8"], "caption": [b"A", b"\xff"], "image": [RED, RED]}
    good, (reject,), _ = read(parquet(tmp_path, columns))
    assert [(sample.id, sample.answer) for sample in good] == [("7", "A")]
    assert reject.id == "8" and "'caption' is not UTF-8" in reject.message


def test_values_that_cannot_be_read_cost_themselves(tmp_path):
    """A day after the year 9999, and text that is no UTF-8, in a column that no format uses."""
    far = pa.array([10**15, 1], pa.int64()).cast(pa.timestamp("ms"))
    bad = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff", b"x"], pa.binary()).buffers())
    columns = {"caption": ["A", "B"], "image": [RED, RED], "at": far, "note": bad}
    good, rejects, source = read(parquet(tmp_path, columns))
    assert [sorted(k for k in s.meta if k[0] != "_") for s in good] == [[], ["at", "note"]]
    assert not rejects and source.passed_over == {
        "values of the column 'at' (cannot be read)": 1,
        "values of the column 'note' (cannot be read)": 1,
    }
    good, (reject,), _ = read(parquet(tmp_path, {"id": [1, 2], "image": [RED] * 2, "caption": bad}))
    assert [s.answer for s in good] == ["x"] and reject.id == "1" and "caption" in reject.message


def test_ids_that_pandas_made_fractions(tmp_path):
    columns = {"id": [7.0, float("nan")], "caption": ["A", "B"], "image": [RED, RED]}
    good, _, _ = read(parquet(tmp_path, columns))
    assert [sample.id for sample in good] == ["7", "row-1"]


def test_odd_columns(tmp_path):
    columns = {
        "caption": ["A"],
        "image": [RED],
        "meta": [{"width": 1}],
        "meta.width": [2],
        "none": pa.nulls(1),
        "": ["nameless"],
    }
    (sample,), _, _ = read(parquet(tmp_path, columns))
    assert (sample.meta["meta"], sample.meta["meta.width"]) == ({"width": 1}, 2)
    _, (reject,), source = read(parquet(tmp_path, {"embedding": [b"\0\1"]}))
    assert "format cannot be told" in reject.message and sum(source.passed_over.values()) == 1


def test_values_of_every_type_survive_as_json(tmp_path):
    columns = {
        "caption": ["A"],
        "image": [RED],
        "day": [datetime.date(2024, 1, 2)],
        "at": pa.array([1], pa.timestamp("ns")),
        "price": [decimal.Decimal("1.50")],
        "deep": [{"a": {"b": None, "c": [1, 2]}}],
        "of": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int32())),
        "half": pa.array([1.5], pa.float16()),
        "word": pa.array(["x"]).dictionary_encode(),
        "nothing": [float("nan")],
        "endless": [float("inf")],
        "box": pa.array([[0.0, 0.5, 1.0, 1.0]], pa.list_(pa.float32(), 4)),
    }
    (sample,), _, _ = read(parquet(tmp_path, columns))
    assert {key: value for key, value in sample.meta.items() if key[0] != "_"} == {
        "day": "2024-01-02",
        "at": "1970-01-01 00:00:00.000000001",
        "price": "1.50",
        "deep": {"a": {"b": None, "c": [1, 2]}},
        "of": {"k": 1},
        "half": 1.5,
        "word": "x",
        "endless": "inf",
        "box": [0.0, 0.5, 1.0, 1.0],
    }
    json.dumps(sample.meta, allow_nan=False)


def test_fix_keeps_the_columns_that_are_not_read(tmp_path):
    columns = {"caption": ["A", "B"], "image": [RED, b"none"], "mask": [GREEN, GREEN]}
    report = check(str(parquet(tmp_path, columns)), progress=False)
    report.fix(str(tmp_path / "out.parquet"))
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == [
        {"caption": "A", "image": RED, "mask": GREEN}
    ]
