"""Questions about a table, with the answers that the picture gives.

Every yes/no answer is tossed before the question is made, so that nothing in the question
hints at it; which of two names comes first is tossed too.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diptych.data.charts import kind as kinds
from diptych.data.charts.operations import QUESTION_KIND, Unanswerable, answer, row
from diptych.data.charts.phrases import PHRASES
from diptych.data.charts.style import COLOUR_NAMES
from diptych.data.charts.table import Table


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
        item = kinds.find(table.kind).ITEM[table.language]
        text = rng.choice(PHRASES[table.language][phrase]).format(
            **{"item": item, "axis": table.axis.lower(), **slots}
        )
        return Question(text, found, QUESTION_KIND[operation["op"]], operation)
    return None


def _form(rng: random.Random, table: Table) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Which column a question is about: suffix of the phrase, field of the operation, slot."""
    if len(table.series) == 1:
        return "", {}, {}
    if table.kind == "stacked_bar" and (not table.labelled or rng.random() < 0.4):
        return "_total", {}, {}
    name = rng.choice(table.series)
    return "_of", {"series": name}, {"s": name}


def _chart_type(rng, table, pool) -> Made:
    return "chart_type", {"op": "chart_type"}, {}


def _count(rng, table, pool) -> Made:
    if len(table.series) > 1 and table.kind not in ("table", "scatter") and rng.random() < 0.4:
        return "count_of", {"op": "count", "of": "series"}, {}
    return "count", {"op": "count", "of": "categories"}, {}


def _value(rng, table, pool) -> Made:
    form, field, slot = _form(rng, table)
    name = rng.choice(table.categories)
    phrase = "total" if form == "_total" else "value" + form
    return phrase, {"op": "value", "category": name, **field}, {"a": name, **slot}


def _extreme(rng, table, pool) -> Made:
    form, field, slot = _form(rng, table)
    op = rng.choice(("max", "min"))
    return op + form, {"op": op, **field}, slot


def _compare(rng, table, pool) -> Made | None:
    if table.order == "stages":  # everyone knows that fewer people pay than look
        return None
    form, field, slot = _form(rng, table)
    a, b = rng.sample(table.categories, 2)
    want = rng.choice(("larger", "smaller"))
    operation = {"op": "compare", "categories": [a, b], "want": want, **field}
    return want + form, operation, {"a": a, "b": b, **slot}


def _sums(rng, table, pool) -> Made:
    form, field, slot = _form(rng, table)
    a, b = rng.sample(table.categories, 2)
    op = rng.choice(("sum", "difference"))
    if form == "_total":
        # Totals are sums themselves: ask for the sum of two segments or the total of one bar.
        return (
            "total",
            {"op": "sum", "category": a, "series": list(table.series)},
            {"a": a},
        )
    return (
        op + form,
        {"op": op, "categories": [a, b], **field},
        {"a": a, "b": b, **slot},
    )


def _colour(rng, table, pool) -> Made | None:
    if table.colour_of == "none":
        return None
    if len(table.colours) == 1:
        return "colour_all", {"op": "colour"}, {}
    names = table.categories if table.colour_of == "category" else table.series
    index = rng.randrange(len(names))
    if rng.random() < 0.6:
        return "colour", {"op": "colour", "name": names[index]}, {"a": names[index]}
    shade = COLOUR_NAMES[table.language][table.colours[index]]
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
    choices = [_is_type, _exists, _is_max]
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
    return "greater" + form, {"op": "greater", "categories": [a, b], **field}, {
        "a": a, "b": b, **slot}  # fmt: skip


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
    return "above", operation, {"a": name, "x": table.scales[0].text(than)}


def _exists(rng, table, pool) -> Made | None:
    absent = [name for name in pool if name not in table.categories]
    if table.order == "time" or not absent:  # the neighbours of an axis can be guessed
        return None
    name = rng.choice(table.categories if rng.random() < 0.5 else absent)
    return "exists", {"op": "exists", "name": name}, {"x": name}


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
    return "is_max", {"op": "is_max", "category": name}, {"a": name}
