"""Drills: the shortest questions about a picture, one for everything that can be looked up in it.

"find Wed" - "Wed atC rankB Wed". Their answers are the steps that `working` writes on the way to
the answers of questions. A new language model learns such look-ups in a minute of nothing else,
and hardly ever among questions of all kinds (docs/log/quickstart.md).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from diptych.synthetic.charts import kind as kinds
from diptych.synthetic.charts.operations import WORDS, Unanswerable, answer
from diptych.synthetic.charts.reading.working import (
    EXTREMES,
    key_of_name,
    named,
    places,
    shade,
    shown,
    spelled,
    working,
)
from diptych.synthetic.charts.style import COLOUR_NAMES
from diptych.synthetic.charts.table import Table

Drill = tuple[str, str]
"""What is asked, and what is said."""
TOTAL = {"en": "total", "zh": "总"}
EARLIER = 0.4
"""Drills of several steps come so much earlier, so that of the first dozen more are of their sort:
they are few of a chart's, and learned later."""


def drills(table: Table, rng: random.Random, others: tuple[str, ...]) -> list[Drill]:
    """Every drill of a chart, in a new order; those of several steps rather at the beginning.

    Args:
        others: names of other charts, of which one is asked for in vain.
    """
    single = [*_along(table), *_colours(table), *_marks(table)]
    several = [*_counts(table, rng), *_pairs(table, rng), *_there(table, rng, others)]
    if table.labelled:
        several += _digits(rng)
    ranked = [(rng.random(), drill) for drill in single]
    ranked += [(rng.random() * EARLIER, drill) for drill in several]
    found = [drill for _, drill in sorted(ranked)]
    # Behind another word, so that names are the tokens that they are within questions.
    return [(spelled(f"find {asked}"), spelled(said)) for asked, said in found]


def _along(table: Table) -> Iterator[Drill]:
    for index, name in enumerate(table.categories):
        for at, end in [places(table, index)] if places(table, index) else []:
            yield at, " ".join([*key_of_name(table, index), name])
            yield end, f"{end} {at}"


def _colours(table: Table) -> Iterator[Drill]:
    if table.colour_of == "category":
        for index, name in enumerate(table.categories):
            colour, at = shade(table, index), list(places(table, index)[:1])
            yield f"{name} colour", " ".join([name, *at, colour])
            yield colour, " ".join([colour, *key_of_name(table, index), name])
    elif table.colour_of == "series" and len(table.series) > 1:
        for index, name in enumerate(table.series):
            yield name, f"{name} {shade(table, index)}"
            yield shade(table, index), f"{shade(table, index)} {named(table, index)} {name}"


def _rows(table: Table) -> list[tuple[str, dict[str, Any]]]:
    """Every row of values that can be meant: the word for it, and the field of an operation."""
    if len(table.series) == 1:
        return [("", {})]
    rows: list[tuple[str, dict[str, Any]]] = [
        (f"{shade(table, i) if table.colour_of == 'series' else name} ", {"series": name})
        for i, name in enumerate(table.series)
    ]
    return [*rows, (f"{TOTAL[table.language]} ", {})] if table.kind == "stacked_bar" else rows


def _marks(table: Table) -> Iterator[Drill]:
    """Rank of every mark, and the largest and smallest of every row."""
    for row, field in _rows(table):
        for name in table.categories:
            if said := _said(table, f"{row}{name}", {"op": "value", "category": name, **field}):
                yield f"{row}{name} value", said
            operation = {"op": "count_above", "category": name, **field}
            if said := _said(table, f"{row}{name}", operation):
                yield f"{row}{name}", said
        for op in ("max", "min"):
            asked = row + EXTREMES[table.language][op]
            if said := _said(table, asked, {"op": op, **field}):
                yield asked, said


def _counts(table: Table, rng: random.Random) -> Iterator[Drill]:
    """How many marks of a row are larger than one of them."""
    for row, field in _rows(table):
        name = rng.choice(table.categories)
        operation = {"op": "count_above", "category": name, **field}
        if said := _said(table, name, operation, whole=True):
            yield f"{row}{name} above", said


def _pairs(table: Table, rng: random.Random) -> Iterator[Drill]:
    for want in ("larger", "smaller", "greater"):
        row, field = rng.choice(_rows(table))
        names = rng.sample(table.categories, 2)
        operation = {"op": "compare", "categories": names, "want": want, **field}
        if want == "greater":
            operation = {"op": "greater", "categories": names, **field}
        asked = f"{row}{' '.join(names)} {want}"
        if said := _said(table, asked, operation, whole=want == "greater"):
            yield asked, said


def _digits(rng: random.Random) -> Iterator[Drill]:
    """The digits that a word for numbers stands for: no picture tells of them."""
    for first in rng.sample(range(10, 100), 2):
        yield f"v{first}", f"v{first} {first}"


def _said(table: Table, asked: str, operation: dict[str, Any], whole: bool = False) -> str:
    """The working of an operation, and its answer where the whole is wanted; else nothing."""
    try:
        found = answer(table, operation)
    except Unanswerable:
        return ""
    steps = working(table, asked, operation, found)
    return shown(steps, found) if steps and whole else steps


def _there(table: Table, rng: random.Random, others: tuple[str, ...]) -> Iterator[Drill]:
    """Names, colours and types, one that is there and one that is not."""
    language = table.language
    name, other = rng.choice(table.categories), rng.choice(others)
    yield f"{name} there", f"{name} here"
    if other not in table.categories and other not in table.series:
        yield f"{other} there", f"{other} none"
    for colour, word in rng.sample(sorted(COLOUR_NAMES[language].items()), 3):
        yield f"{word} there", f"{word} {'here' if colour in table.colours else 'none'}"
    own = kinds.find(table.kind).NAME[language]
    types = [kinds.find(kind).NAME[language] for kind in kinds.names()]
    for asked in (own, rng.choice([name for name in types if name != own])):
        yield f"{asked} type", shown(own, WORDS[language][asked == own])
