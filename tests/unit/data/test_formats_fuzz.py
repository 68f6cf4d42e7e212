"""The row readers never crash and never lose a line, whatever the bytes are."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from diptych.data import format as formats
from diptych.data.reading import json_window
from diptych.data.reading.cells import read_csv
from diptych.data.reading.rows import Reject, Row, read_json
from diptych.data.reading.strict_json import parse_json
from diptych.data.sample import Sample
from diptych.errors import DataError, FormatError

FEW = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(
    [
        "id",
        "image",
        "images",
        "conversations",
        "messages",
        "caption",
        "question",
        "answers",
        "annotations",
        "_meta",
    ]
)
ROWS = st.dictionaries(KEYS | st.text(max_size=3), VALUES, max_size=6)


@FEW
@given(st.binary(max_size=300))
@example(b'[{"a": 1}, {"a": "x]')
@example(b"[[[[")
@example(b'{"a": 1}\n\xff\n{"b": 2}')
@example(b"[1")
def test_any_bytes_give_rows_and_rejects(tmp_path, data):
    path = tmp_path / "data.json"
    path.write_bytes(data)
    for reader in (read_json, read_csv):
        try:
            items = list(reader(str(path)))
        except FormatError:
            continue
        assert all(isinstance(item, Row | Reject) for item in items)


@FEW
@given(ROWS, st.sampled_from(["llava", "messages", "captions", "vqa", "pictures"]))
def test_any_row_is_parsed_or_refused_by_name(row, name):
    part = formats.find(name)
    try:
        sample = part.parse(Row(row, "f:1", "", 0))
    except DataError:
        return
    assert isinstance(sample, Sample)
    assert part.parse(Row(json.loads(json.dumps(part.render(sample))), "f:1", "", 0)) == sample


@FEW
@given(st.lists(ROWS, min_size=1, max_size=8), st.sampled_from([None, 1]), st.booleans())
def test_good_rows_come_back_whole(tmp_path, rows, indent, array):
    path = tmp_path / ("data.json" if array else "data.jsonl")
    if array:
        path.write_text(json.dumps(rows, indent=indent))
    else:
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = list(read_json(str(path)))
    assert len(found) == len(rows)
    for item, row in zip(found, rows, strict=True):
        if isinstance(item, Row):
            assert item.value == row
        else:  # refused for a NUL or half a surrogate pair, never for its form
            assert "NUL" in item.message or "surrogate" in item.message


@FEW
@given(st.integers(0, 40), st.integers(1, 60), st.integers(1, 40))
def test_windows_of_any_size_see_the_same_rows(tmp_path, seed, chunk, padding):
    rows = [
        {"id": i, "t": "é" * padding + ']}{["\\' * (seed % 3), "n": [i] * seed} for i in range(5)
    ]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(rows, ensure_ascii=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_window.files, "CHUNK_BYTES", chunk)
        found = list(read_json(str(path)))
    assert [item.value for item in found if isinstance(item, Row)] == rows


def test_one_damaged_place_costs_one_row(tmp_path):
    """Every position of every row, struck by what hurts most: brackets, quotes, NUL bytes."""
    rows = [{"id": i, "text": "two words", "list": [{"a": 1}, {"b": 2}]} for i in range(3)]
    path = tmp_path / "data.json"
    for joint in (",\n", ", "):
        start, end = ("[\n", "\n]\n") if "\n" in joint else ("[", "]")
        # Without line ends, the first row's first key is what tells rows apart.
        for which in range("\n" not in joint, len(rows)):
            for damage in ("\0\0", '"', "]", "}", "{", "[", "x"):
                lines = [json.dumps(row) for row in rows]
                # A bracket in front of a row closes the array, and rightly so.
                for offset in range(damage == "]", len(lines[which])):
                    line = lines[which]
                    struck = line[:offset] + damage + line[offset + len(damage) :]
                    text = joint.join([*lines[:which], struck, *lines[which + 1 :]])
                    path.write_text(start + text + end)
                    good = [i.value for i in read_json(str(path)) if isinstance(i, Row)]
                    for number, row in enumerate(rows):
                        # A quote that opens across a joint may take the next row along.
                        near = joint == ", " and number == which + 1
                        assert number == which or near or row in good, (struck, joint)


def test_line_numbers_in_arrays_and_lines(tmp_path):
    rows = [{"id": i} for i in range(3)]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(rows, indent=2))
    assert [r.where.rsplit(":")[-1] for r in read_json(str(path))] == ["2", "5", "8"]
    path = tmp_path / "data.jsonl"
    path.write_text("\n\n".join(json.dumps(r) for r in rows))
    assert [r.where.rsplit(":")[-1] for r in read_json(str(path))] == ["1", "3", "5"]


def test_a_row_above_the_limit_is_one_reject(tmp_path, monkeypatch):
    monkeypatch.setattr("diptych.data.reading.rows.MAX_ROW_BYTES", 1000)
    monkeypatch.setattr("diptych.data.reading.json_window.files.CHUNK_BYTES", 100)
    path = tmp_path / "data.jsonl"
    path.write_text(f'{{"id": 1}}\n{{"id": "{"x" * 5000}"}}\n{{"id": 3}}\n')
    _first, second, third = read_json(str(path))
    assert isinstance(second, Reject) and second.where.endswith(":2")
    assert third.value == {"id": 3} and third.where.endswith(":3")


@pytest.mark.parametrize("text", ['{"a": NaN}', '{"a": 1e999}', '{"a": 1, "a": 2}', '"\\u0000"'])
def test_strict_values(text):
    with pytest.raises(FormatError):
        parse_json(text)
