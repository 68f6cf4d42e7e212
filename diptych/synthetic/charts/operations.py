"""Operations: what can be asked of a table, and the one place where answers are computed.

An operation is plain data such as `{"op": "difference", "categories": ["A", "B"]}`; the
question maker and the language model behind `--writer` both declare one with every question.

    chart_type                                        name of the kind
    count        of: categories | series              how many
    count_above  category, [series]                   how many categories are larger than it
    value        category [series]                    as displayed; without series the total
    max, min     [series]                             the category; or category: the series
    compare      categories: [a, b], want: larger | smaller, [series]   the category
    sum          categories: [a, b, ...], [series]    as displayed; or category, series: [a, b]
    difference   categories: [a, b], [series]         as displayed, never negative
    colour       name                                 of a category or series
    of_colour    colour                               the category or series
    trend        [series]                             rising, falling, fluctuating
    greater      categories: [a, b], [series]         yes if a is greater than b
    above        category, than: number, [series]     yes or no
    exists       name                                 yes if there is such a category
    is_type      kind                                 yes or no
    is_max       category, [series]                   yes or no
    has_colour   colour                               yes if anything is drawn in it

Where the answer is a category or a series, `as` says how it is told: `name` (the default),
`colour`, `place` (its number, counted from the left or the top) or `end` (leftmost, bottom...).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from diptych.synthetic.charts import kind as kinds
from diptych.synthetic.charts.style import COLOUR_NAMES
from diptych.synthetic.charts.table import Table

WORDS = {
    "en": {
        True: "yes", False: "no", "rising": "rising", "falling": "falling",
        "mixed": "fluctuating", "unrelated": "no clear trend",
    },
    "zh": {
        True: "是", False: "否", "rising": "上升", "falling": "下降", "mixed": "波动",
        "unrelated": "无明显趋势",
    },
}  # fmt: skip


ENDS = {
    "en": {"right": ("leftmost", "rightmost"), "down": ("top", "bottom")},
    "zh": {"right": ("最左边", "最右边"), "down": ("最上面", "最下面")},
}


class Unanswerable(Exception):
    """The picture does not settle this; `reason` is a word for the count of discarded ones."""

    def __init__(self, reason: str):
        self.reason = reason
        super().__init__(reason)


def answer(table: Table, operation: dict[str, Any]) -> str:
    """The answer that the picture gives.

    Raises:
        Unanswerable: `malformed` (unknown operation, missing or wrong fields), `unknown_name`,
            `not_visible` (the picture does not show it), `ambiguous` (ties, or too close to call).
    """
    compute = _OPERATIONS.get(str(operation.get("op")))
    if compute is None:
        raise Unanswerable("malformed")
    try:
        return compute(table, operation)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Unanswerable("malformed") from error


def _series(table: Table, operation: dict[str, Any]) -> int | None:
    """Index of the series meant; None for the total over several series."""
    name = operation.get("series")
    if name is None:
        return 0 if len(table.series) == 1 else None
    if name not in table.series:
        raise Unanswerable("unknown_name")
    return table.series.index(name)


def _category(table: Table, name: Any) -> int:
    if name not in table.categories:
        raise Unanswerable("unknown_name")
    return table.categories.index(name)


def _categories(table: Table, operation: dict[str, Any], at_least: int = 2) -> list[int]:
    if not isinstance(operation["categories"], list):
        raise Unanswerable("malformed")
    indices = [_category(table, name) for name in operation["categories"]]
    if len(set(indices)) != len(indices) or len(indices) < at_least:
        raise Unanswerable("malformed")
    return indices


def row(table: Table, series: int | None) -> tuple[float, ...]:
    """Values of one series, or the totals; refused where they cannot be seen."""
    if table.kind == "stacked_bar" and not table.labelled and series is not None:
        raise Unanswerable("not_visible")
    if series is None:
        if table.kind != "stacked_bar":
            raise Unanswerable("malformed")
        return table.totals()
    return table.values[series]


def _gap(table: Table, series: int | None) -> float:
    return table.min_gap[series or 0] * 0.999


def _readable(table: Table) -> None:
    if not (table.labelled or table.has_axis):
        raise Unanswerable("not_visible")


def _show(table: Table, series: int | None, value: float) -> str:
    scale = table.scales[series or 0]
    return scale.text(round(value, scale.decimals))


def _told(table: Table, operation: dict[str, Any], index: int) -> str:
    """A category, told as the operation wants it."""
    how = operation.get("as", "name")
    if how == "name":
        return table.categories[index]
    if how == "colour":
        if table.colour_of != "category":
            raise Unanswerable("not_visible")
        return COLOUR_NAMES[table.language][table.colours[index]]
    along = kinds.find(table.kind).ALONG
    if not along:
        raise Unanswerable("not_visible")
    if how == "place":
        return str(index + 1)
    ends = {0: 0, len(table.categories) - 1: 1}
    if how != "end" or index not in ends:
        raise Unanswerable("malformed")
    return ENDS[table.language][along][ends[index]]


def _chart_type(table: Table, operation: dict[str, Any]) -> str:
    return kinds.find(table.kind).NAME[table.language]


def _count(table: Table, operation: dict[str, Any]) -> str:
    return str(len({"categories": table.categories, "series": table.series}[operation["of"]]))


def _value(table: Table, operation: dict[str, Any]) -> str:
    _readable(table)
    series = _series(table, operation)
    return _show(table, series, row(table, series)[_category(table, operation["category"])])


def _count_above(table: Table, operation: dict[str, Any]) -> str:
    series = _series(table, operation)
    values = row(table, series)
    mine = _category(table, operation["category"])
    others = [value - values[mine] for i, value in enumerate(values) if i != mine]
    if any(abs(difference) < _gap(table, series) for difference in others):
        raise Unanswerable("ambiguous")
    return str(sum(difference > 0 for difference in others))


def _best(values: Sequence[float], operation: dict[str, Any], gap: float) -> int:
    """Index of the largest or smallest, where the eye can tell."""
    sign = 1 if operation["op"] == "max" else -1
    signed = [sign * value for value in values]
    first, second = sorted(signed, reverse=True)[:2]
    if first - second < gap:
        raise Unanswerable("ambiguous")
    return signed.index(first)


def _extreme(table: Table, operation: dict[str, Any]) -> str:
    if "category" not in operation:
        series = _series(table, operation)
        values = row(table, series)
        return _told(table, operation, _best(values, operation, _gap(table, series)))
    if len(table.series) == 1 or table.kind == "scatter":
        raise Unanswerable("malformed")
    category = _category(table, operation["category"])
    column = [row(table, s)[category] for s in range(len(table.series))]
    index = _best(column, operation, _gap(table, 0))
    if operation.get("as", "name") == "name":
        return table.series[index]
    if operation["as"] != "colour" or table.colour_of != "series":
        raise Unanswerable("not_visible")
    return COLOUR_NAMES[table.language][table.colours[index]]


def _pair(table: Table, operation: dict[str, Any]) -> tuple[int, int, float]:
    series = _series(table, operation)
    one, other = _categories(table, operation)[:2]
    values = row(table, series)
    if abs(values[one] - values[other]) < _gap(table, series):
        raise Unanswerable("ambiguous")
    return one, other, values[one] - values[other]


def _compare(table: Table, operation: dict[str, Any]) -> str:
    one, other, difference = _pair(table, operation)
    larger = {"larger": True, "smaller": False}[operation["want"]]
    return _told(table, operation, one if (difference > 0) == larger else other)


def _greater(table: Table, operation: dict[str, Any]) -> str:
    return WORDS[table.language][_pair(table, operation)[2] > 0]


def _sum(table: Table, operation: dict[str, Any]) -> str:
    _readable(table)
    if "category" in operation:
        category = _category(table, operation["category"])
        names = operation["series"]
        if isinstance(names, str) or len(set(names)) < 2:
            raise Unanswerable("malformed")
        chosen = [_series(table, {"series": name}) for name in names]
        return _show(table, 0, sum(row(table, s)[category] for s in chosen))
    series = _series(table, operation)
    values = row(table, series)
    return _show(table, series, sum(values[i] for i in _categories(table, operation)))


def _difference(table: Table, operation: dict[str, Any]) -> str:
    _readable(table)
    series = _series(table, operation)
    difference = abs(_pair(table, operation)[2])
    # Read against an axis, a small difference of two readings has a large error.
    if not table.labelled and difference < 0.2 * max(row(table, series)):
        raise Unanswerable("ambiguous")
    return _show(table, series, difference)


def _names_with_colour(table: Table) -> Sequence[str]:
    if table.colour_of == "category":
        return table.categories
    if table.colour_of == "series" and len(table.series) > 1:
        return table.series
    raise Unanswerable("not_visible")


def _colour(table: Table, operation: dict[str, Any]) -> str:
    name = operation.get("name")
    if name is None and len(table.colours) == 1:
        return COLOUR_NAMES[table.language][table.colours[0]]
    names = _names_with_colour(table)
    if name not in names:
        raise Unanswerable("unknown_name")
    return COLOUR_NAMES[table.language][table.colours[names.index(name)]]


def _of_colour(table: Table, operation: dict[str, Any]) -> str:
    names = _names_with_colour(table)
    words = [COLOUR_NAMES[table.language][colour] for colour in table.colours]
    if operation["colour"] not in words:
        raise Unanswerable("unknown_name")
    return names[words.index(operation["colour"])]


def _trend(table: Table, operation: dict[str, Any]) -> str:
    words = WORDS[table.language]
    if table.kind == "scatter":
        return words[_relation(table)]
    if table.order != "time":
        raise Unanswerable("not_visible")
    values = row(table, _series(table, operation))
    steps = [later - earlier for earlier, later in itertools.pairwise(values)]
    if 0.0 in steps:
        raise Unanswerable("ambiguous")
    turns = sum((a > 0) != (b > 0) for a, b in itertools.pairwise(steps))
    if turns == 1:  # one turn is neither a trend nor an up and down
        raise Unanswerable("ambiguous")
    return words["mixed" if turns else "rising" if steps[0] > 0 else "falling"]


def _relation(table: Table) -> str:
    """Whether y rises with x, by the share of point pairs that agree (Kendall's tau)."""
    points = list(zip(*table.values, strict=True))
    pairs = [(a[0] - b[0]) * (a[1] - b[1]) for i, a in enumerate(points) for b in points[i + 1 :]]
    tau = sum((pair > 0) - (pair < 0) for pair in pairs) / len(pairs)
    if abs(tau) >= 0.9:
        return "rising" if tau > 0 else "falling"
    if abs(tau) <= 0.35:
        return "unrelated"
    raise Unanswerable("ambiguous")


def _above(table: Table, operation: dict[str, Any]) -> str:
    _readable(table)
    series = _series(table, operation)
    value = row(table, series)[_category(table, operation["category"])]
    if abs(value - float(operation["than"])) < _gap(table, series) / 2:
        raise Unanswerable("ambiguous")
    return WORDS[table.language][value > float(operation["than"])]


def _exists(table: Table, operation: dict[str, Any]) -> str:
    return WORDS[table.language][str(operation["name"]) in table.categories]


def _has_colour(table: Table, operation: dict[str, Any]) -> str:
    if table.colour_of == "none":
        raise Unanswerable("not_visible")
    words = COLOUR_NAMES[table.language]
    if operation["colour"] not in words.values():
        raise Unanswerable("unknown_name")
    shown = {words[colour] for colour in table.colours}
    return WORDS[table.language][operation["colour"] in shown]


def _is_type(table: Table, operation: dict[str, Any]) -> str:
    if operation["kind"] not in kinds.names():
        raise Unanswerable("unknown_name")
    return WORDS[table.language][operation["kind"] == table.kind]


def _is_max(table: Table, operation: dict[str, Any]) -> str:
    category = _category(table, operation["category"])
    series = _series(table, operation)
    best = _best(row(table, series), {"op": "max"}, _gap(table, series))
    return WORDS[table.language][category == best]


_OPERATIONS = {
    "chart_type": _chart_type, "count": _count, "count_above": _count_above, "value": _value,
    "max": _extreme, "min": _extreme, "compare": _compare, "sum": _sum,
    "difference": _difference, "colour": _colour,
    "of_colour": _of_colour, "trend": _trend, "greater": _greater, "above": _above,
    "exists": _exists, "has_colour": _has_colour, "is_type": _is_type, "is_max": _is_max,
}  # fmt: skip

QUESTION_KIND = {
    "chart_type": "chart_type", "count": "count", "count_above": "count", "value": "value",
    "max": "largest_smallest", "min": "largest_smallest", "compare": "comparison",
    "sum": "sum_difference",
    "difference": "sum_difference", "colour": "colour", "of_colour": "colour", "trend": "trend",
    "greater": "yes_no", "above": "yes_no", "exists": "yes_no", "has_colour": "yes_no",
    "is_type": "yes_no", "is_max": "yes_no",
}  # fmt: skip
