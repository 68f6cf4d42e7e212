"""Where rows begin and end: CSV by its rules, TSV by its own, and a place for every fault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diptych.data import format as formats
from diptych.data.reading import rows as readers
from diptych.data.reading.cells import read_csv
from diptych.data.reading.rows import Reject, Row, read_json
from diptych.data.sample import Image, Sample, Text, Turn
from diptych.data.source import rows
from diptych.errors import FormatError
from tests.e2e.faulty_inputs import annotation, question, vqa


def file(folder: Path, name: str, data: str | bytes) -> str:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(path)


def values(path: str) -> list[list[str]]:
    items = list(read_csv(path))
    assert all(isinstance(item, Row) for item in items), items
    return [list(item.value.values()) for item in items if isinstance(item, Row)]


def places(items: list[Row | Reject]) -> list[str]:
    return [item.where.rpartition("/")[2] for item in items]


# --- TSV ---------------------------------------------------------------------------------------


def test_in_tsv_a_line_is_a_row(tmp_path):
    """Conceptual Captions and WIT know no quoting: a quotation mark is a character."""
    lines = ['"wide screen\ta.png', '22" screen\tb.png', 'a 24"\tc.png', '""\td.png', "x\te.png\r"]
    path = file(tmp_path, "a.tsv", "caption\timage\n" + "\n".join(lines) + "\n")
    assert values(path) == [line.removesuffix("\r").split("\t") for line in lines]
    assert places(list(read_csv(path))) == [f"a.tsv:{n}" for n in range(2, 7)]


def test_faults_in_tsv_cost_their_line(tmp_path):
    lines = ["1\ta\tb", "2\ta", "3\ta\tb\tc", "4\t\0\tb", "", "5\tx\ty"]
    data = ("id\tcaption\timage\n" + "\n".join(lines)).encode() + b"\n6\t\xff\tz"
    found = list(read_csv(file(tmp_path, "a.tsv", data)))
    assert [item.value["id"] for item in found if isinstance(item, Row)] == ["1", "5"]
    rejects = [item for item in found if isinstance(item, Reject)]
    assert places(list(rejects)) == ["a.tsv:3", "a.tsv:4", "a.tsv:5", "a.tsv:8"]
    assert [reject.id for reject in rejects] == ["2", "3", "4", "6"]
    assert rejects[3].row == "6\t\\xff\tz"


@pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
def test_pairs_without_a_header_line(tmp_path, name):
    mark = "\t" if name.endswith("tsv") else ","
    path = file(tmp_path, name, f"A cat{mark}a.JPG\nA dog{mark}b.jpg\n")
    assert [s.answer for s in rows(path) if isinstance(s, Sample)] == ["A cat", "A dog"]
    path = file(tmp_path, name, f"a.jpg{mark}A cat\n")
    (sample,) = rows(path)
    assert isinstance(sample, Sample) and next(sample.images()).path == "a.jpg"


def test_conceptual_captions_as_published(tmp_path):
    """Captions and addresses, no header: rows cannot be read from the web, and the file says so."""
    path = file(tmp_path, "Train_GCC-training.tsv", "a very typical bus station\thttp://x/a.jpg\n")
    with pytest.raises(FormatError, match="no header line") as error:
        list(rows(path))
    assert error.value.where == f"{path}:1" and "img2dataset" in str(error.value.fix)


# --- CSV ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "want"),
    [
        ('\ufeffcaption;image\n"a;b";c.png\n', ["a;b", "c.png"]),
        ('caption\timage\n"a\tb"\tc.png\n', ["a\tb", "c.png"]),
        ('caption, image\n"a, b", c.png\n', ["a, b", "c.png"]),
        ("caption ,image \r\na,c.png\r\n", ["a", "c.png"]),
        ('caption,image\r\n"a\r\nb",c.png\r\n', ["a\r\nb", "c.png"]),
        ('caption,image\n"a\nb",c.png', ["a\nb", "c.png"]),
        ('caption,image\na 22" screen,c.png\n', ['a 22" screen', "c.png"]),
        ('caption,image\n"a ""b"" c",c.png\n', ['a "b" c', "c.png"]),
    ],
    ids=["semicolon", "tab", "blanks", "blank names", "CRLF", "line break", "inch", "doubled"],
)
def test_csv_as_spreadsheets_write_it(tmp_path, data, want):
    assert values(file(tmp_path, "a.csv", data)) == [want]
    assert next(iter(read_csv(str(tmp_path / "a.csv")))).value.keys() == {"caption", "image"}


@pytest.mark.parametrize(
    ("data", "bad"),
    [
        ('1,"a,x.png\n2,b,y.png\n3,"c"d,z.png\n4,e,f.png\n', ["1", "3"]),
        ('1,a,x.png\n2,"b,y.png\n3,c,z.png\n4,e,f.png', ["2"]),
        ('1,a,x.png\n2,b,y.png\n3,c,z.png\n4,"e,f.png', ["4"]),
        ('1,"a,x.png\n2,"b,y.png\n3,"c,z.png\n4,"e,f.png', ["1", "2", "3", "4"]),
    ],
)
def test_a_stray_quotation_mark_costs_its_line(tmp_path, data, bad):
    found = list(read_csv(file(tmp_path, "a.csv", "id,caption,image\n" + data)))
    assert len(found) == 4
    assert [item.id for item in found if isinstance(item, Reject)] == bad
    assert [item.value["id"] for item in found if isinstance(item, Row)] == [
        number for number in "1234" if number not in bad
    ]
    assert places(found) == [f"a.csv:{n}" for n in range(2, 6)]


def test_a_line_above_the_limit_is_one_reject(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_ROW_BYTES", 100)
    monkeypatch.setattr(readers.files, "CHUNK_BYTES", 20)
    for name, mark in (("a.csv", ","), ("a.tsv", "\t")):
        lines = [f"caption{mark}image", f"{'x' * 500}{mark}a.png", f"b{mark}b.png"]
        first, second = read_csv(file(tmp_path, name, "\n".join(lines)))
        assert isinstance(first, Reject) and "longer than" in first.message
        assert isinstance(second, Row) and second.where.endswith(":3")


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.csv", b"caption,image\ra,b.png\r", "carriage return alone"),
        ("a.tsv", b"caption\timage\ra\tb.png\r", "carriage return alone"),
        ("a.tsv", b"caption,image\na,b.png\n", "one column only, 'caption,image'"),
        ("a.csv", b"caption|image\na|b.png\n", r"one column only, 'caption\|image'"),
        ("a.csv", b'"caption,image\na,b.png\n', "invalid CSV"),
        ("a.csv", "标题,image\na,b.png\n".encode("gbk"), "not UTF-8"),
        ("a.csv", b",caption,image\n0,a,b.png\n", "without a name"),
        ("a.csv", b"caption, caption\na,b.png\n", "repeats a column"),
    ],
)
def test_a_header_that_cannot_be_used_is_named(tmp_path, name, data, says):
    with pytest.raises(FormatError, match=says) as error:
        list(read_csv(file(tmp_path, name, data)))
    assert str(error.value.where).endswith(f"{name}:1") and error.value.fix


TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(TEXTS.filter(str.strip), min_size=1, max_size=5), st.sampled_from(["csv", "tsv"]))
def test_what_is_written_is_read_back(tmp_path, texts, kind):
    samples = [
        Sample(str(n), (Turn("user", (Image("a.png"),)), Turn("assistant", (Text(text),))))
        for n, text in enumerate(texts)
    ]
    refused: list[Reject] = []
    path = str(tmp_path / f"a.{kind}")
    count = formats.write(samples, path, "captions", refuse=refused.append)
    back = list(formats.read(path, "captions")) if count else []
    cannot = [t for t in texts if kind == "tsv" and any(mark in t for mark in "\t\r\n")]
    assert len(refused) == len(cannot)
    assert [s.answer for s in back if isinstance(s, Sample)] == [
        text for text in texts if text not in cannot
    ]


def test_a_cell_that_tsv_cannot_have_is_refused_by_name(tmp_path):
    sample = Sample("7", (Turn("user", (Image("a.png"),)), Turn("assistant", (Text("a\tb"),))))
    with pytest.raises(FormatError, match="'caption' has a tab or a line break") as error:
        formats.write([sample], str(tmp_path / "a.tsv"), "captions")
    assert ".csv" in str(error.value.fix)


def test_json_columns_are_strict(tmp_path):
    data = 'caption,image,n:json\na,b.png,NaN\nc,d.png,"{""k"": 1, ""k"": 2}"\ne,f.png,"[1]"\n'
    first, second, third = rows(file(tmp_path, "a.csv", data))
    assert isinstance(first, Reject) and "'n:json' holds no JSON" in first.message
    assert isinstance(second, Reject) and "twice" in second.message
    assert isinstance(third, Sample) and third.meta["n"] == [1]


# --- places and ids ------------------------------------------------------------------------------


def test_rows_that_share_a_line_are_told_apart(tmp_path):
    texts = ['{"id": 1}', '{"id": "two", "x": tru}', '{"id": 3}', '{"id": 4}']
    one_line = list(read_json(file(tmp_path, "a.json", f"[{', '.join(texts)}]")))
    assert places(one_line) == [f"a.json:1[{n}]" for n in range(4)]
    assert isinstance(one_line[1], Reject) and one_line[1].id == "two"
    lines = list(read_json(file(tmp_path, "b.json", "[\n" + ",\n".join(texts) + "\n]")))
    assert places(lines) == ["b.json:2", "b.json:3", "b.json:4", "b.json:5"]
    mixed = list(read_json(file(tmp_path, "c.json", '[{"id": 1},\n{"id": 2}, {"id": 3}\n]')))
    assert places(mixed) == ["c.json:1[0]", "c.json:2", "c.json:2[2]"]
    spread = list(read_json(file(tmp_path, "d.json", json.dumps([{"a": 1}, {"b": 2}], indent=1))))
    assert places(spread) == ["d.json:2", "d.json:5"]


def test_what_is_lost_says_where_it_begins(tmp_path):
    found = list(read_json(file(tmp_path, "a.json", '[{"id": 1}, {"id": 2, "x": "y}, {"z": 3}]')))
    assert isinstance(found[1], Reject) and found[1].id == "2"
    assert found[1].where.endswith(":1[1]") and "1 rows before" in found[1].message
    found = list(read_json(file(tmp_path, "b.json", '[{"id": 1}, {"id": 2}')))
    assert isinstance(found[2], Reject) and "after 2 rows" in found[2].message


@pytest.mark.parametrize(
    ("text", "id"),
    [
        ('{"id": 7, "x": tru}', "7"),
        ('{"x": [{"id": "inner"}], "id": "outer", "y": NaN}', "outer"),
        ('{"question_id": 12, "x": 1, "x": 2}', "12"),
        ('{"question_id": 12, "id": "a\\u00e9", "x": 1e999}', "a\u00e9"),
        ('{"x": "id", "id" "lost"}', None),
        ('{"id": null, "x": -}', None),
        ('{"text": "\\"id\\": 5", "x": -}', None),
    ],
)
def test_the_id_of_a_row_that_is_no_json(tmp_path, text, id):
    for name in ("a.jsonl", "a.json"):
        data = text if name == "a.jsonl" else f'[{text}, {{"id": "good"}}]'
        reject = next(iter(read_json(file(tmp_path, name, data))))
        assert isinstance(reject, Reject) and reject.id == id, reject


def test_faults_of_vqa_name_their_question(tmp_path):
    questions = [question(1), question(2, question=3), question(3)]
    annotations = [annotation(1), annotation(2), annotation(4)]
    found = [r for r in rows(str(vqa(tmp_path, questions, annotations))) if isinstance(r, Reject)]
    assert [(r.id, r.where.partition("#")[2]) for r in found] == [
        ("2", "questions[1]"),
        ("3", "questions[2]"),
        ("4", "annotations[2]"),
    ]
