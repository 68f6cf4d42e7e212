"""What is told of a chart's picture, and the working and drills that are made of the same words."""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from diptych.synthetic.charts import draw
from diptych.synthetic.charts.chart import make
from diptych.synthetic.charts.reading.drill import drills
from diptych.synthetic.charts.reading.working import MARK, digits, number, value, working
from diptych.synthetic.charts.style import COLOUR_NAMES


def _files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _rows(out: Path, split: str) -> list[dict]:
    return json.loads((out / f"{split}.json").read_text(encoding="utf-8"))


def test_regions_say_what_stands_where():
    for index in range(120):
        chart = make(11, index, 0, 160 if index < 60 else 224, ("en", "zh"))
        table = chart.table
        words = [told for told, *_ in chart.regions]
        joined = "".join(text for *_, text in chart.regions)
        for name in (*table.categories, table.title):
            assert name.replace(" ", "") in joined.replace(" ", ""), (name, joined)
        for told, left, top, right, bottom, text in chart.regions:
            assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1
            assert ("isMark" in told) == (text == "")
            # Numbers are told by how they begin and how they are written.
            assert told.startswith(text) or told.split()[-2:] == number(text)
        colours = COLOUR_NAMES[table.language]
        if table.colour_of == "category" and table.kind in ("pie", "donut", "scatter"):
            for name, colour in zip(table.categories, table.colours, strict=True):
                about = [
                    told for told in words if told.startswith(f"{name} isName {colours[colour]}")
                ]
                assert about or f"{name} isName" not in " ".join(words), (name, words)
        # How a mark compares is told at the mark alone, where it can be seen.
        standing = re.compile(r"[a-z]*rank[A-Z]$|largest$|smallest$|最大$|最小$|\w+(Most|Least)$")
        for told, *_, text in chart.regions:
            assert not text or not any(standing.match(w) for w in told[len(text) :].split()), told


def test_marks_are_told_with_their_place_cell_and_rank():
    table = make(11, 3, 0, 224, ("en",)).table
    chart = make(11, 3, 0, 224, ("en",))
    assert table.kind == "grouped_bar"
    told = [t for t, *_ in chart.regions if "isMark" in t and " at" in t]
    assert len(told) == len(table.series) * len(table.categories)
    for s, colour in enumerate(table.colours):
        for c in range(len(table.categories)):
            larger = sum(v > table.values[s][c] for v in table.values[s])
            letter = "ABCDEFG"[c]
            [mark] = [t for t in told if f"{colour}{letter}" in t.split()]
            assert f"at{letter}" in mark and f"rank{'ABCDEFG'[larger]}" in mark
            share = table.values[s][c] / table.ticks[0][-1]
            assert f"size{'ABCDEFGHIJKLMN'[min(13, int(14 * share))]}" in mark


def test_whole_stacks_have_ranks_at_their_tops():
    chart = make(11, 8, 0, 224, ("en",))
    table = chart.table
    assert table.kind == "stacked_bar"
    totals = table.totals()
    for c, total in enumerate(totals):
        word = f"totalrank{'ABCDEFG'[sum(other > total for other in totals)]}"
        [top] = [t for t, *_ in chart.regions
                 if {"isMark", f"{table.colours[-1]}{'ABCDEFG'[c]}"} <= set(t.split())]  # fmt: skip
        assert word in top.split()
    others = [t for t, *_ in chart.regions if f" {table.colours[0]}A " in t]
    assert others and not any("totalrank" in t for t in others)


def test_numbers_are_told_by_how_they_begin_and_how_they_are_written():
    assert number("$1.38") == ["v13", "likeusddpddx"]
    assert number("0.56") == ["v56", "likedpddx"]
    assert number("7%") == ["v70", "likedpctx"]
    assert number("6.4亿") == ["v64", "likedpdyix"]
    assert number("12,345") == ["v12", "likeddcdddx"]
    assert number("0") == ["v00", "likedx"] and number("30°") == ["v30"]
    for text in ("Wed", "1月的", "(2024)", "3rd quarter", "", "-"):
        assert number(text) == [], text
    assert digits("$1.38") == ["v13", "13", "likeusddpddx"] and digits("12 km") == []


def test_every_written_value_is_told_under_one_word():
    kinds = set()
    for index in range(80):
        chart = make(14, index, 0, 224, ("en", "zh"))
        table = chart.table
        told = [text.split() for text, *_ in chart.regions if "isMark" not in text]
        if not table.labelled or (table.kind == "line" and len(table.series) > 1):
            continue
        kinds.add(table.kind)
        for s in range(len(table.series)):
            for c in range(len(table.categories)):
                [words] = [words for words in told if value(table, s, c) in words]
                assert words[1:] == number(table.text(s, c)), (table.kind, words)
    assert kinds >= {"bar", "horizontal_bar", "grouped_bar", "pie", "funnel", "table"}, kinds


def test_boxes_of_words_lie_on_ink():
    """Where a word is said to stand, the picture is not blank."""
    for index in range(20):
        chart = make(12, index, 0, 224, ("en", "zh"))
        picture = Image.open(io.BytesIO(chart.png)).convert("RGB")
        for _, left, top, right, bottom, text in chart.regions:
            box = (left * picture.width, top * picture.height,
                   right * picture.width, bottom * picture.height)  # fmt: skip
            part = picture.crop(tuple(round(at) for at in box))
            if text.strip("-—·.,()（）/") and min(part.size) > 1:
                assert len(part.getcolors(1 << 16)) > 1, (index, text, box)


def test_working_leads_to_the_answer():
    """What is looked up is told somewhere in the picture, and decides between larger and smaller."""
    seen = Counter()
    for index in range(120):
        chart = make(13, index, 0, 224, ("en", "zh"))
        told = {word for text, *_ in chart.regions for word in text.split()}
        for question in chart.questions:
            steps = working(chart.table, question.text, question.operation, question.answer)
            op = question.operation["op"]
            seen[op, bool(steps)] += 1
            codes = re.findall(r"\b[a-z]+[A-Z]{1,2}\b|\b[a-z]+(?:Most|Least|Name|Val)\b", steps)
            assert set(codes) <= told, (question, steps, told)
            ranks = re.findall(r"rank([A-Z])", steps)
            if op == "compare":
                first = (
                    (ranks[0] < ranks[1]) == (question.operation["want"] == "larger")
                    if ranks
                    else 0
                )
                name = question.operation["categories"][0 if first else 1]
                how = {k: v for k, v in question.operation.items() if k in ("as", "series")}
                if ranks and "as" not in how:
                    assert question.answer == name
            if op in ("value", "above") and steps:
                found = [f"v{two}" for two in re.findall(r"\bv(\d\d)", steps)]
                assert len(found) == {"value": 1, "above": 2}[op]
                assert op != "value" or found == number(question.answer)[:1], steps
            if op == "trend" and ranks:
                extreme = {"rising": ranks[1] == "A", "falling": ranks[0] == "A"}
                words = {"上升": "rising", "下降": "falling"}
                assert extreme.get(words.get(question.answer, question.answer), True), steps
            if op in ("compare", "greater") and ranks:  # the rank that is asked for, and whose
                smaller = question.operation.get("want") == "smaller"
                assert ranks[2:] == [(max if smaller else min)(ranks[:2])], steps
                if op == "greater":
                    assert steps.endswith("first") == (question.answer in ("yes", "是")), steps
                one, two, last = (re.split(r"rank[A-Z] ?", part) for part in steps.split(" ;")[-3:])
                assert last[1] == (one if ranks[2] == ranks[0] else two)[1], steps
            if op == "of_colour" and "Name" in steps:
                word = re.search(r"[a-z]+Name", steps)[0]
                holders = {text for *_, text in (r for r in chart.regions if word in r[0].split())}
                assert holders <= {question.answer}, (holders, question)
            if op == "count_above" and ranks:
                assert question.answer == str("ABCDEFGHIJ".index(ranks[0]))
    assert all(
        seen[op, True] > 5
        for op in ("compare", "greater", "max", "min", "colour", "is_max", "value", "trend")
    )
    assert not seen["chart_type", True] and not seen["exists", False]


def test_training_answers_show_their_working_and_pages_are_drawn(tmp_path):
    out = tmp_path / "set"
    draw(out, num=20, seed=3, workers=1, working=True, pages=8)
    plain = tmp_path / "plain"
    draw(plain, num=20, seed=3, workers=2)
    for split in ("train", "validation", "test"):
        for row, short in zip(_rows(out, split), _rows(plain, split), strict=True):
            answer_text = row["conversations"][1]["value"]
            *_, last = answer_text.rsplit(MARK, 1)
            assert last.strip() == short["conversations"][1]["value"]
            assert split == "train" or MARK not in answer_text
    answers = [r["conversations"][1]["value"] for r in _rows(out, "train")]
    assert any(MARK in text for text in answers)
    # A blank before Chinese or a number would be a token of its own.
    assert not any(re.search(r" [\d\u4e00-\u9fff]", text) for text in answers if MARK in text)
    pages = _rows(out, "pages")
    assert len(pages) == 8 and all(len(row["regions"]) > 10 for row in pages)
    draw(tmp_path / "again", num=20, seed=3, workers=2, working=True, pages=8)
    assert _files(tmp_path / "again") == _files(out)


@pytest.mark.slow
def test_drills_ask_for_what_can_be_looked_up_and_training_alone_has_them(tmp_path):
    asked = Counter()
    for index in range(60):
        chart = make(13, index, 0, 224, ("en", "zh"))
        told = {word for text, *_ in chart.regions for word in text.split()}
        for question, said in drills(chart.table, random.Random(index), ("Nowhere",)):
            codes = re.findall(
                r"\b(?:at|end|[a-z]*rank)[A-Z]\b|\b[a-z]+(?:Most|Least|Name)\b", said
            )
            if chart.table.order == "stages":  # values fall, the place is the rank
                told |= {f"rank{letter}" for letter in "ABCDEFGH"}
            assert set(codes) <= told, (question, said)
            assert question.startswith("find") and len(said.split()) < 20
            asked[re.sub(r"[A-Z]$", "", codes[0]) if codes else said.split()[-1]] += 1
            if question == "find Nowhere there":
                assert said == "Nowhere none"
            if re.search(r"\babove$", question):  # the last letter of the rank, counted
                letter, counted = re.search(r"rank([A-Z]).*=\s*(\d+)$", said).groups()
                assert int(counted) == "ABCDEFGH".index(letter)
                asked["above"] += 1
    assert all(asked[word] > 9 for word in ("at", "end", "rank", "here", "none", "above")), asked
    draw(tmp_path / "some", num=40, seed=3, workers=1, working=True, practice=True)
    draw(tmp_path / "none", num=40, seed=3, workers=1, working=True)
    rows, plain = _rows(tmp_path / "some", "train"), _rows(tmp_path / "none", "train")
    assert [row for row in rows if row["kind"] != "drill"] == plain
    per_chart = Counter(row["image"] for row in rows if row["kind"] == "drill")
    assert set(per_chart) == {row["image"] for row in plain} and max(per_chart.values()) == 3
    first = _rows(tmp_path / "some", "drills")
    assert {row["image"] for row in first} < set(per_chart)
    assert all(2 <= len(row["conversations"]) <= 8 for row in first)
    assert first[0]["conversations"][0]["value"].startswith("<image>\nfind")
    for split in ("validation", "test"):
        assert _rows(tmp_path / "some", split) == _rows(tmp_path / "none", split)
