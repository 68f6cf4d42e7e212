"""Questions about a table, with the answers that the picture gives.

Every yes/no answer is tossed before the question is made, so that nothing in the question
hints at it; which of two names comes first is tossed too.

About half of the questions point at what they mean by what is seen ("the red slice", "the second
bar from the left") instead of naming it, as people do who look at a chart: a good share of the
human-written questions of ChartQA (arXiv:2203.10244) refer to colours and places.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diptych.synthetic.charts import kind as kinds
from diptych.synthetic.charts.operations import QUESTION_KIND, Unanswerable, answer, row
from diptych.synthetic.charts.phrases import BY_COLOUR, ORDINALS, PHRASES, REFERENCES
from diptych.synthetic.charts.style import COLOUR_NAMES, SHADES
from diptych.synthetic.charts.table import Table


@dataclass(frozen=True, slots=True)
class Question:
    """One question; `operation` is what its answer was computed by."""

    text: str
    answer: str
    kind: str
    operation: dict[str, Any]


def ask(
    rng: random.Random,
    table: Table,
    pool: tuple[str, ...],
    least: int = 7,
    most: int = 10,
) -> list[Question]:
    """Between `least` and `most` different questions, spread over the kinds that apply.

    Args:
        pool: names that the topic could have shown; those absent serve "is there...?".
    """
    makers = {
        "chart_type": _chart_type, "count": _count, "value": _value,
        "largest_smallest": _extreme, "comparison": _compare, "sum_difference": _sums,
        "colour": _colour, "trend": _trend, "yes_no": _yes_no,
    }  # fmt: skip
    number = rng.randint(least, most)
    open_kinds = list(makers)
    rng.shuffle(open_kinds)
    questions: list[Question] = []
    seen: set[str] = set()
    once = {"chart_type", "count"} if len(table.series) == 1 else {"chart_type"}
    for _ in range(4):
        for name in list(open_kinds):
            if len(questions) == number:
                return questions
            question = _try(rng, table, pool, makers[name])
            if question and question.text not in seen:
                seen.add(question.text)
                questions.append(question)
            if name in once or not question:
                open_kinds.remove(name)
    return questions


Made = tuple[str, dict[str, Any], dict[str, str]]
Maker = Callable[[random.Random, Table, tuple[str, ...]], Made | None]


def _try(rng: random.Random, table: Table, pool: tuple[str, ...], maker: Maker) -> Question | None:
    """Some pairs are too close to call; a few other draws usually are not."""
    for _ in range(6):
        made = maker(rng, table, pool)
        if made is None:
            return None
        phrase, operation, slots = made
        try:
            found = answer(table, operation)
        except Unanswerable:
            continue
        shown = kinds.find(table.kind)
        words = {
            "item": shown.ITEM[table.language],
            "mark": shown.MARK[table.language],
            "axis": table.axis.lower(),
        }
        text = rng.choice(PHRASES[table.language][phrase]).format(**{**words, **slots})
        return Question(text, found, QUESTION_KIND[operation["op"]], operation)
    return None


POINTED = 0.55
"""Share of questions that point at what they mean, where the picture allows it."""


def _form(rng: random.Random, table: Table) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Which column a question is about: suffix of the phrase, field of the operation, slots."""
    if len(table.series) == 1:
        return "", {}, {}
    if table.kind == "stacked_bar" and (not table.labelled or rng.random() < 0.4):
        return "_total", {}, {}
    index = rng.randrange(len(table.series))
    name = table.series[index]
    if table.colour_of == "series" and rng.random() < POINTED:
        part = kinds.find(table.kind).PART[table.language]
        return "_part", {"series": name}, {"x": _shade(table, index), "part": part}
    return "_of", {"series": name}, {"s": name}


def _shade(table: Table, index: int) -> str:
    return COLOUR_NAMES[table.language][table.colours[index]]


def _ways(table: Table) -> list[str]:
    """How a category can be pointed at in this picture."""
    ways = ["colour"] if table.colour_of == "category" else []
    return [*ways, "place"] if kinds.find(table.kind).ALONG else ways


def _way(rng: random.Random, table: Table) -> str:
    """`name`, or a way to point."""
    ways = _ways(table)
    return rng.choice(ways) if ways and rng.random() < POINTED else "name"


def _refer(table: Table, name: str, way: str) -> str:
    """A category in the words of a question."""
    if way == "name":
        return name
    words = REFERENCES[table.language]
    kind = kinds.find(table.kind)
    index, last = table.categories.index(name), len(table.categories) - 1
    slots = {"mark": kind.MARK[table.language]}
    if way == "colour":
        return BY_COLOUR[table.language].format(x=_shade(table, index), **slots)
    if index in (0, last):
        return words["first" if index == 0 else "last"][kind.ALONG].format(**slots)
    near = "nth" if index <= last / 2 else "nth_last"
    ordinal = ORDINALS[table.language][index if near == "nth" else last - index]
    return words[near][kind.ALONG].format(n=ordinal, **slots)


def _side(table: Table) -> str:
    """Where counting begins."""
    right = kinds.find(table.kind).ALONG == "right"
    if table.language == "en":
        return "the left" if right else "the top"
    return "左" if right else "上"


def _chart_type(rng, table, pool) -> Made:
    return "chart_type", {"op": "chart_type"}, {}


def _count(rng, table, pool) -> Made:
    if len(table.series) > 1 and table.kind not in ("table", "scatter") and rng.random() < 0.4:
        return "count_of", {"op": "count", "of": "series"}, {}
    if table.kind in ("table", "scatter", "line") or table.order == "stages" or rng.random() < 0.6:
        return "count", {"op": "count", "of": "categories"}, {}
    form, field, slot = _form(rng, table)
    name = rng.choice(table.categories)
    operation = {"op": "count_above", "category": name, **field}
    return "count_above" + form, operation, {"a": _refer(table, name, _way(rng, table)), **slot}


def _value(rng, table, pool) -> Made:
    form, field, slot = _form(rng, table)
    name = rng.choice(table.categories)
    phrase = "total" if form == "_total" else "value" + form
    said = _refer(table, name, _way(rng, table))
    return phrase, {"op": "value", "category": name, **field}, {"a": said, **slot}


def _extreme(rng, table, pool) -> Made:
    op = rng.choice(("max", "min"))
    way = _way(rng, table)
    if len(table.series) > 1 and table.kind in ("grouped_bar", "line") and rng.random() < 0.4:
        name = rng.choice(table.categories)
        slot = {"a": _refer(table, name, way)}
        if rng.random() >= POINTED:
            return op + "_series", {"op": op, "category": name}, slot
        slot["part"] = kinds.find(table.kind).PART[table.language]
        return op + "_series_colour", {"op": op, "category": name, "as": "colour"}, slot
    form, field, slot = _form(rng, table)
    if way == "place" and table.order == "stages":  # the first is always the largest
        way = "name"
    if way == "name" or form in ("_of", "_total"):
        return op + form, {"op": op, **field}, slot
    return f"{op}_{way}{form}", {"op": op, "as": way, **field}, {"side": _side(table), **slot}


def _compare(rng, table, pool) -> Made | None:
    if table.order == "stages":  # everyone knows that fewer people pay than look
        return None
    form, field, slot = _form(rng, table)
    way = _way(rng, table)
    if way == "place":
        pair = [table.categories[0], table.categories[-1]]
        rng.shuffle(pair)
        a, b = pair
        field = {**field, "as": "end"}
    else:
        a, b = rng.sample(table.categories, 2)
        if way == "colour":
            field = {**field, "as": "colour"}
    want = rng.choice(("larger", "smaller"))
    operation = {"op": "compare", "categories": [a, b], "want": want, **field}
    return want + form, operation, {"a": _refer(table, a, way), "b": _refer(table, b, way), **slot}


def _sums(rng, table, pool) -> Made:
    form, field, slot = _form(rng, table)
    a, b = rng.sample(table.categories, 2)
    way = _way(rng, table)
    op = rng.choice(("sum", "difference"))
    if form == "_total":
        # Totals are sums themselves: ask for the sum of two segments or the total of one bar.
        return (
            "total",
            {"op": "sum", "category": a, "series": list(table.series)},
            {"a": _refer(table, a, way)},
        )
    return (
        op + form,
        {"op": op, "categories": [a, b], **field},
        {"a": _refer(table, a, way), "b": _refer(table, b, way), **slot},
    )


def _colour(rng, table, pool) -> Made | None:
    if table.colour_of == "none":
        return None
    if len(table.colours) == 1:
        return "colour_all", {"op": "colour"}, {}
    names = table.categories if table.colour_of == "category" else table.series
    index = rng.randrange(len(names))
    if rng.random() < 0.6:
        said = names[index]
        if table.colour_of == "category" and "place" in _ways(table) and rng.random() < POINTED:
            said = _refer(table, said, "place")
        return "colour", {"op": "colour", "name": names[index]}, {"a": said}
    shade = _shade(table, index)
    return "of_colour", {"op": "of_colour", "colour": shade}, {"x": shade}


def _trend(rng, table, pool) -> Made | None:
    if table.kind == "scatter":
        x, y = table.series
        return "relation", {"op": "trend"}, {"a": x, "b": y}
    if table.order != "time" or table.kind not in ("line", "bar", "grouped_bar", "table"):
        return None
    form, field, slot = _form(rng, table)
    return "trend" + form, {"op": "trend", **field}, slot


def _yes_no(rng, table, pool) -> Made | None:
    choices = [_is_type, _exists, _has_colour, _is_max]
    if table.order != "stages":
        choices += [_greater, _greater, _above, _above]
    for maker in rng.sample(choices, len(choices)):
        made = maker(rng, table, pool)
        if made:
            return made
    return None


def _greater(rng, table, pool) -> Made | None:
    form, field, slot = _form(rng, table)
    a, b = rng.sample(table.categories, 2)
    way = _way(rng, table)
    return "greater" + form, {"op": "greater", "categories": [a, b], **field}, {
        "a": _refer(table, a, way), "b": _refer(table, b, way), **slot}  # fmt: skip


def _above(rng, table, pool) -> Made | None:
    """A threshold between two values; then, by a toss, a category above or below it."""
    if len(table.series) > 1:
        return None
    ranked = sorted(set(row(table, 0)))
    gaps = [
        (low, high)
        for low, high in itertools.pairwise(ranked)
        if high - low >= 2 * table.min_gap[0] * 0.999 or not table.labelled
    ]
    if not gaps:
        return None
    low, high = rng.choice(gaps)
    decimals = table.scales[0].decimals
    than = round((low + high) / 2, decimals)
    if not low < than < high:
        return None
    above = rng.random() < 0.5
    fitting = [
        name
        for name, value in zip(table.categories, table.values[0], strict=True)
        if (value > than) == above
    ]
    name = rng.choice(fitting)
    operation = {"op": "above", "category": name, "than": than}
    said = _refer(table, name, _way(rng, table))
    return "above", operation, {"a": said, "x": table.scales[0].text(than)}


def _exists(rng, table, pool) -> Made | None:
    absent = [name for name in pool if name not in table.categories]
    if table.order == "time" or not absent:  # the neighbours of an axis can be guessed
        return None
    name = rng.choice(table.categories if rng.random() < 0.5 else absent)
    return "exists", {"op": "exists", "name": name}, {"x": name}


def _has_colour(rng, table, pool) -> Made | None:
    if table.colour_of == "none":
        return None
    absent = [name for name in SHADES if name not in table.colours]
    # Half yes; but for black, which dark pictures never show, every colour is as likely as another.
    colour = rng.choice(table.colours if rng.random() < 0.5 else absent)
    shade = COLOUR_NAMES[table.language][colour]
    return "has_colour", {"op": "has_colour", "colour": shade}, {"x": shade}


def _is_type(rng, table, pool) -> Made:
    """Half of the answers are yes for every kind that is named, if all kinds are equally common.

    A grouped bar chart is a sort of bar chart, so no bar chart is named for another; the other
    kinds name bar charts so much more often.
    """
    names = kinds.names()
    bars = [name for name in names if name.endswith("bar")]
    others = [name for name in names if name not in bars and name != table.kind]
    if rng.random() < 0.5:
        name = table.kind
    elif table.kind not in bars and rng.random() < len(bars) / (len(names) - len(bars)):
        name = rng.choice(bars)
    else:
        name = rng.choice(others)
    shown = kinds.find(name).NAME[table.language]
    return "is_type", {"op": "is_type", "kind": name}, {"x": shown}


def _is_max(rng, table, pool) -> Made | None:
    if len(table.series) > 1 or table.order == "stages":
        return None
    values = row(table, 0)
    best = table.categories[values.index(max(values))]
    others = [name for name in table.categories if name != best]
    name = best if rng.random() < 0.5 else rng.choice(others)
    said = _refer(table, name, _way(rng, table))
    return "is_max", {"op": "is_max", "category": name}, {"a": said}
