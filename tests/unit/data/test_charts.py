"""The chart generator: every answer follows from the table, the same seed gives the same bytes."""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from PIL import Image

from diptych.errors import ConfigError, DataError
from diptych.synthetic.charts import draw, invent, questions
from diptych.synthetic.charts import kind as kinds
from diptych.synthetic.charts.canvas import drawable
from diptych.synthetic.charts.chart import make
from diptych.synthetic.charts.describe import describe
from diptych.synthetic.charts.operations import QUESTION_KIND, Unanswerable, answer
from diptych.synthetic.charts.style import COLOUR_NAMES
from diptych.synthetic.charts.table import Table
from diptych.synthetic.charts.topics import Scale, lists

KINDS = {
    "bar", "horizontal_bar", "grouped_bar", "stacked_bar", "line", "pie", "donut", "funnel",
    "scatter", "table",
}  # fmt: skip
QUESTION_KINDS = {
    "chart_type", "count", "value", "largest_smallest", "comparison", "sum_difference", "colour",
    "trend", "yes_no",
}  # fmt: skip


def _files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("charts") / "set"
    return out, draw(out, num=120, seed=3, workers=2)


def _rows(out: Path, split: str) -> list[dict]:
    return json.loads((out / f"{split}.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_same_seed_same_bytes_with_any_number_of_workers(tmp_path, drawn):
    draw(tmp_path / "one", num=120, seed=3, workers=1)
    assert _files(tmp_path / "one") == _files(drawn[0])


def test_another_seed_gives_other_charts(tmp_path, drawn):
    draw(tmp_path / "other", num=10, seed=4, workers=1)
    mine = {json.loads(p.read_text())["digest"] for p in (tmp_path / "other/tables").iterdir()}
    theirs = {json.loads(p.read_text())["digest"] for p in (drawn[0] / "tables").iterdir()}
    assert not mine & theirs


def test_all_kinds_of_charts_and_questions_in_both_languages(drawn):
    _, summary = drawn
    assert set(kinds.names()) == KINDS
    assert summary["chart_kinds"] == {kind: 12 for kind in sorted(KINDS)}
    assert set(summary["question_kinds"]) == QUESTION_KINDS
    assert summary["language_counts"] == {"en": 60, "zh": 60}
    assert summary["charts"] == {"train": 96, "validation": 6, "test": 18}
    assert set(QUESTION_KIND.values()) == QUESTION_KINDS


def test_rows_are_llava_rows_one_per_question(drawn):
    out, summary = drawn
    ids = set()
    for split in ("train", "validation", "test"):
        rows = _rows(out, split)
        assert len(rows) == summary["questions"][split]
        for row in rows:
            human, gpt = row["conversations"]
            assert human["from"] == "human" and human["value"].startswith("<image>\n")
            assert human["value"].count("<image>") == 1
            assert gpt["from"] == "gpt" and gpt["value"].strip() == gpt["value"] != ""
            assert row["kind"] in QUESTION_KINDS and row["chart"] in KINDS
            ids.add(row["id"])
            with Image.open(out / "images" / row["image"]) as picture:
                assert picture.mode == "RGB"
                assert 150 <= picture.width <= 290 and 150 <= picture.height <= 290
    assert len(ids) == sum(summary["questions"].values())
    per_image = Counter(row["image"] for row in _rows(out, "train"))
    assert min(per_image.values()) >= 5 and max(per_image.values()) <= 10


def test_splits_share_no_table_and_no_picture(drawn):
    out, _ = drawn
    tables, pictures = defaultdict(set), defaultdict(set)
    for split in ("train", "validation", "test"):
        for caption in json.loads((out / f"captions_{split}.json").read_text(encoding="utf-8")):
            assert set(caption) == {"caption", "image", "image_id", "regions"}
            stem = Path(caption["image"]).stem
            table = json.loads((out / "tables" / f"{stem}.json").read_text(encoding="utf-8"))
            tables[split].add(table["digest"])
            data = (out / "images" / caption["image"]).read_bytes()
            pictures[split].add(hashlib.sha256(data).hexdigest())
    for found in (tables, pictures):
        assert not found["train"] & found["test"]
        assert not found["train"] & found["validation"]
        assert not found["validation"] & found["test"]
        assert sum(map(len, found.values())) == 120


def test_answers_follow_from_the_stored_table_alone():
    for index in range(60):
        chart = make(7, index, 0, 224, ("en", "zh"))
        stored = Table.from_dict(json.loads(json.dumps(chart.table.to_dict())))
        assert stored == chart.table
        assert len({question.text for question in chart.questions}) == len(chart.questions)
        for question in chart.questions:
            assert answer(stored, question.operation) == question.answer


def test_descriptions_name_every_category_and_every_visible_number():
    for index in range(40):
        table = make(9, index, 0, 224, ("en", "zh")).table
        text = describe(random.Random(index), table)
        assert table.title in text and all(name in text for name in table.categories)
        if table.labelled or table.has_axis:
            for s in range(len(table.series)):
                assert all(table.text(s, c) in text for c in range(len(table.categories)))


def test_yes_and_no_are_even_and_order_of_names_tells_nothing():
    tally: Counter[tuple[str, str]] = Counter()
    first = 0
    compared = 0
    names = kinds.names()
    for index in range(600):
        rng = random.Random(index)
        name = names[index % len(names)]
        table, pool = invent.invent(rng, name, kinds.find(name), "en", lists("en"), dark=False)
        for question in questions.ask(rng, table, pool):
            if question.kind == "yes_no":
                tally[question.operation["op"], question.answer] += 1
            if question.kind == "comparison":
                compared += 1
                named = answer(table, {**question.operation, "as": "name"})
                first += named == question.operation["categories"][0]
    for op in ("greater", "above", "exists", "has_colour", "is_type", "is_max"):
        yes, no = tally[op, "yes"], tally[op, "no"]
        assert abs(yes - no) < 3.5 * (yes + no) ** 0.5, (op, yes, no)
    assert abs(2 * first - compared) < 3.5 * compared**0.5


def _table(**changes) -> Table:
    plain = dict(
        kind="bar", language="en", title="T", axis="City", unit="", categories=("A", "B", "C"),
        series=("Rain",), values=((10.0, 30.0, 20.0),), scales=(Scale(5, 40),),
        ticks=((0.0, 10.0, 20.0, 30.0),), colours=("red", "blue", "green"),
        colour_of="category", labelled=True, min_gap=(1.0,), order="any",
    )  # fmt: skip
    return Table(**{**plain, **changes})


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ({"op": "chart_type"}, "vertical bar chart"),
        ({"op": "count", "of": "categories"}, "3"),
        ({"op": "value", "category": "B"}, "30"),
        ({"op": "max"}, "B"),
        ({"op": "min"}, "A"),
        ({"op": "compare", "categories": ["A", "C"], "want": "larger"}, "C"),
        ({"op": "compare", "categories": ["A", "C"], "want": "smaller"}, "A"),
        ({"op": "sum", "categories": ["A", "B", "C"]}, "60"),
        ({"op": "difference", "categories": ["A", "B"]}, "20"),
        ({"op": "colour", "name": "B"}, "blue"),
        ({"op": "of_colour", "colour": "green"}, "C"),
        ({"op": "greater", "categories": ["A", "B"]}, "no"),
        ({"op": "above", "category": "C", "than": 15}, "yes"),
        ({"op": "exists", "name": "D"}, "no"),
        ({"op": "is_type", "kind": "pie"}, "no"),
        ({"op": "is_max", "category": "B"}, "yes"),
        ({"op": "has_colour", "colour": "red"}, "yes"),
        ({"op": "has_colour", "colour": "pink"}, "no"),
        ({"op": "count_above", "category": "A"}, "2"),
        ({"op": "max", "as": "colour"}, "blue"),
        ({"op": "min", "as": "place"}, "1"),
        ({"op": "compare", "categories": ["A", "C"], "want": "larger", "as": "end"}, "rightmost"),
        ({"op": "compare", "categories": ["A", "C"], "want": "smaller", "as": "colour"}, "red"),
    ],
)
def test_operations(operation, expected):
    assert answer(_table(), operation) == expected


GROUPED = {
    "kind": "grouped_bar", "series": ("Rain", "Snow"), "colour_of": "series",
    "values": ((10.0, 30.0, 20.0), (15.0, 5.0, 25.0)), "scales": (Scale(5, 40),) * 2,
    "colours": ("red", "blue"), "min_gap": (1.0, 1.0),
}  # fmt: skip


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ({"op": "max", "category": "A"}, "Snow"),
        ({"op": "max", "category": "B", "as": "colour"}, "red"),
        ({"op": "min", "category": "C", "as": "colour"}, "red"),
        ({"op": "min", "series": "Snow", "as": "place"}, "2"),
        ({"op": "count_above", "category": "A", "series": "Snow"}, "1"),
    ],
)
def test_operations_on_several_series(operation, expected):
    assert answer(_table(**GROUPED), operation) == expected


@pytest.mark.parametrize(
    ("table", "way", "expected"),
    [
        (_table(), "colour", ["the red bar", "the blue bar", "the green bar"]),
        (_table(), "place", ["the leftmost bar", "the second bar from the left", "the rightmost bar"]),
        (_table(kind="horizontal_bar"), "place", ["the top bar", "the second bar from the top", "the bottom bar"]),
        (_table(language="zh"), "colour", ["红色的那根柱子", "蓝色的那根柱子", "绿色的那根柱子"]),
        (_table(language="zh"), "place", ["最左边的那根柱子", "左起第二根柱子", "最右边的那根柱子"]),
    ],
)  # fmt: skip
def test_a_category_can_be_pointed_at(table, way, expected):
    assert [questions._refer(table, name, way) for name in table.categories] == expected


@pytest.mark.slow
def test_half_of_what_can_be_pointed_at_is():
    """Questions that name nothing of the chart are answered by looking, not by reading."""
    pointed = named = 0
    for index in range(200):
        chart = make(2, index, 0, 224, ("en", "zh"))
        names = {*chart.table.categories, *chart.table.series}
        for question in chart.questions:
            if question.operation["op"] in ("value", "greater", "compare", "sum", "difference"):
                found = any(name in question.text for name in names)
                named += found
                pointed += not found
    assert 0.3 < pointed / (pointed + named) < 0.6


@pytest.mark.parametrize(
    ("table", "operation", "reason"),
    [
        (_table(), {"op": "delete"}, "malformed"),
        (_table(), {"op": "value"}, "malformed"),
        (_table(), {"op": "compare", "categories": "AB", "want": "larger"}, "malformed"),
        (_table(), {"op": "compare", "categories": ["A", "A"], "want": "larger"}, "malformed"),
        (_table(), {"op": "value", "category": "Z"}, "unknown_name"),
        (_table(), {"op": "value", "category": ["A"]}, "unknown_name"),
        (_table(values=((30.0, 30.0, 5.0),)), {"op": "max"}, "ambiguous"),
        (_table(), {"op": "trend"}, "not_visible"),
        (_table(kind="pie"), {"op": "max", "as": "place"}, "not_visible"),
        (_table(colour_of="all", colours=("red",)), {"op": "max", "as": "colour"}, "not_visible"),
        (_table(), {"op": "compare", "categories": ["A", "B"], "want": "larger", "as": "end"}, "malformed"),
        (_table(), {"op": "max", "category": "A"}, "malformed"),
        (_table(), {"op": "has_colour", "colour": "mauve"}, "unknown_name"),
        (_table(values=((30.0, 30.0, 5.0),)), {"op": "count_above", "category": "A"}, "ambiguous"),
        (_table(kind="pie", ticks=(), labelled=False), {"op": "value", "category": "A"}, "not_visible"),
        (_table(colour_of="none", colours=()), {"op": "colour", "name": "A"}, "not_visible"),
        (_table(labelled=False, values=((20.0, 21.0, 30.0),)), {"op": "difference", "categories": ["A", "B"]}, "ambiguous"),
    ],
)  # fmt: skip
def test_what_the_picture_does_not_settle_is_refused(table, operation, reason):
    with pytest.raises(Unanswerable) as caught:
        answer(table, operation)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("values", "expected"), [((1, 2, 3, 4), "rising"), ((9, 7, 4, 1), "falling"),
                             ((5, 1, 6, 2), "fluctuating")],
)  # fmt: skip
def test_trends(values, expected):
    row = tuple(float(value) for value in values)
    table = _table(kind="line", order="time", categories=("1", "2", "3", "4"), values=(row,))
    assert answer(table, {"op": "trend"}) == expected


def test_one_turn_is_no_clear_trend_and_not_asked():
    table = _table(kind="line", order="time", values=((1.0, 5.0, 2.0),))
    with pytest.raises(Unanswerable, match="ambiguous"):
        answer(table, {"op": "trend"})


def test_the_digest_ignores_order_and_kind():
    turned = _table(kind="pie", categories=("C", "B", "A"), values=((20.0, 30.0, 10.0),))
    assert turned.digest() == _table().digest()
    assert _table(values=((10.0, 30.0, 21.0),)).digest() != _table().digest()


def test_number_formats():
    assert Scale(1, 9, 1, suffix="k").text(3.25) == "3.2k"
    assert Scale(1, 9, thousands=True).text(12345) == "12,345"
    assert Scale(1, 9, 2, prefix="$").text(1.5) == "$1.50"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_topics_are_many_sound_and_drawable(language):
    found = lists(language)
    assert len(found.topics) >= 30
    for topic in found.topics:
        assert 6 <= len(topic.categories) == len(set(topic.categories)) <= 12, topic
        texts = (*topic.titles, topic.measure, topic.unit, topic.axis, *topic.categories)
        assert all(drawable(text, language) for text in texts), topic
        for scale in topic.scales:
            assert 0 < scale.low < scale.high
            assert drawable(scale.text(scale.high), language)
    assert all(drawable(name, language) for names in found.series for name in names)
    assert all(drawable(name, language) for name in COLOUR_NAMES[language].values())
    assert not drawable("龘", language) and not drawable("😀", language)


def test_what_is_drawn_stays_inside_the_picture():
    """The outermost pixels are background: nothing is cut off at an edge."""
    for index in range(80):
        chart = make(5, index, 0, 224, ("en", "zh"))
        picture = Image.open(io.BytesIO(chart.png))
        corner = picture.getpixel((0, 0))
        right = [picture.getpixel((picture.width - 1, y)) for y in range(picture.height)]
        left = [picture.getpixel((0, y)) for y in range(picture.height)]
        top = [picture.getpixel((x, 0)) for x in range(picture.width)]
        bottom = [picture.getpixel((x, picture.height - 1)) for x in range(picture.width)]
        assert {*right, *left, *top, *bottom} == {corner}, (index, chart.table.kind)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num": 0}, {"test_fraction": 0.9, "validation_fraction": 0.2}, {"languages": ("fr",)},
        {"languages": ()}, {"side_pixels": 20}, {"validation_fraction": -0.1},
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(tmp_path, wrong):
    with pytest.raises(ConfigError) as caught:
        draw(tmp_path / "set", **{"num": 4, **wrong})
    assert caught.value.where and caught.value.fix
    assert not (tmp_path / "set").exists()


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataError):
        draw(tmp_path, num=2)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
