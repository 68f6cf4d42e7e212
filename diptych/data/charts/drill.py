"""Drills: the shortest questions about a picture, one for everything that can be looked up in it.

"find Wed" - "Wed atC rankB Wed". Their answers are the steps that `working` writes on the way to
the answers of questions. A new language model learns such look-ups in a minute of nothing else,
and hardly ever among questions of all kinds (docs/quickstart.md).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from diptych.data.charts import kind as kinds
from diptych.data.charts.operations import WORDS, row
from diptych.data.charts.style import COLOUR_NAMES
from diptych.data.charts.table import Table
from diptych.data.charts.working import (
    EXTREMES,
    cell,
    extreme,
    named,
    path_to,
    places,
    rank,
    shade,
    shown,
    spelled,
    working,
)

Drill = tuple[str, str]
"""What is asked, and what is said."""


def drills(table: Table, rng: random.Random, others: tuple[str, ...]) -> list[Drill]:
    """Every drill of a chart, in a new order.

    Args:
        others: names of other charts, of which one is asked for in vain.
    """
    found = [
        *_along(table), *_colours(table), *_ranks(table), *_extremes(table),
        *_pairs(table, rng), *_there(table, rng, others),
    ]  # fmt: skip
    rng.shuffle(found)
    # Behind another word, so that names are the tokens that they are within questions.
    return [(spelled(f"find {asked}"), spelled(said)) for asked, said in found]


def _ranked(table: Table) -> bool:
    """Whether marks are told with their rank, and the colour of a series tells them apart."""
    if table.kind in ("table", "scatter") or (table.kind == "stacked_bar" and not table.labelled):
        return False
    return len(table.series) == 1 or table.colour_of == "series"


def _along(table: Table) -> Iterator[Drill]:
    for index, name in enumerate(table.categories):
        for at, end in [places(table, index)] if places(table, index) else []:
            yield at, f"{at} {name}"
            yield end, f"{end} {at}"


def _colours(table: Table) -> Iterator[Drill]:
    if table.colour_of == "category":
        for index, name in enumerate(table.categories):
            colour, at = shade(table, index), list(places(table, index)[:1])
            yield f"{name} colour", " ".join([name, *at, colour])
            yield colour, " ".join([colour, *(at or [named(table, index)]), name])
    elif table.colour_of == "series" and len(table.series) > 1:
        for index, name in enumerate(table.series):
            yield name, f"{name} {shade(table, index)}"
            yield shade(table, index), f"{shade(table, index)} {named(table, index)} {name}"


def _ranks(table: Table) -> Iterator[Drill]:
    if not _ranked(table):
        return
    single = len(table.series) == 1
    for series in range(len(table.series)):
        for index, name in enumerate(table.categories):
            if key := path_to(table, index):
                words = [name, *key, *([] if single else [cell(table, series, index)])]
                asked = name if single else f"{shade(table, series)} {name}"
                yield asked, " ".join([*words, rank(row(table, series), index), name])


def _extremes(table: Table) -> Iterator[Drill]:
    if not _ranked(table) or table.order == "stages":
        return
    for series in range(len(table.series)):
        values = row(table, series)
        for op, best in (("max", max(values)), ("min", min(values))):
            if values.count(best) == 1:
                index = values.index(best)
                asked = EXTREMES[table.language][op]
                if len(table.series) > 1:
                    asked = f"{shade(table, series)} {asked}"
                words = [extreme(table, series, op), *path_to(table, index)]
                yield asked, " ".join([*words, table.categories[index]])


def _pairs(table: Table, rng: random.Random) -> Iterator[Drill]:
    if not _ranked(table) or len(table.categories) < 2:
        return
    for want in ("larger", "smaller", "greater"):
        series = rng.randrange(len(table.series))
        one, two = rng.sample(range(len(table.categories)), 2)
        if row(table, series)[one] == row(table, series)[two]:
            continue
        names = [table.categories[index] for index in (one, two)]
        operation: dict[str, Any] = {"op": "compare", "categories": names, "want": want}
        if want == "greater":
            operation = {"op": "greater", "categories": names}
        asked = " ".join([*names, want])
        if len(table.series) > 1:
            operation["series"] = table.series[series]
            asked = f"{shade(table, series)} {asked}"
        if said := working(table, asked, operation, ""):
            larger = row(table, series)[one] > row(table, series)[two]
            yield asked, shown(said, _yes(table, larger)) if want == "greater" else said


def _yes(table: Table, so: bool) -> str:
    return WORDS[table.language][so]


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
        yield f"{asked} type", shown(own, _yes(table, asked == own))
