"""Working: what is looked up in a picture on the way to an answer, step by step.

A model that answers "which is larger, Wed or Thu?" at once has to find two bars and compare
them inside one token. Written down, every step is small: find the one, find the other, say which
of their ranks is asked for, find whose it is:
`Wed atC rankC Wed ; Thu atD rankD Thu ; rankC Wed = Wed`.
The words are those in which `chart.regions` tells what stands where, so that every step is
either read off one place of the picture or follows from the steps before it:

    atC, endB    third from the left or top, second from the right or bottom
    rankA        largest of its series, by letters from there
    redC         the mark of the red series at place C
    redMost, redLeast   the largest and the smallest mark of the red series
    redName      the name that the colour red stands for
    totalrankA, totalMost    the same of whole stacks
    nameC        the name at place C
    ofE          one of five marks, where they stand in no row
    valC, redVal the number at place C, or in the red slice
    columnB, cellBC   the second column of a table, and its cell in row C
    v34          a number that begins with the digits 3 and 4, wherever its point stands
    likedpdpctx  how a number is written: a digit, a point, a digit, a per cent sign
    sizeC        how large a mark is, in fourteen steps: no question asks for it, ranks grow from it
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from typing import Any

from diptych.synthetic.charts import kind as kinds
from diptych.synthetic.charts.operations import row
from diptych.synthetic.charts.style import COLOUR_NAMES
from diptych.synthetic.charts.table import Table

MARK = " ="
"""Stands between the working and the answer."""
EXTREMES = {"en": {"max": "largest", "min": "smallest"}, "zh": {"max": "最大", "min": "最小"}}
SIZES = 14
"""Steps of the sizes that are told of marks."""
_LETTERS = string.ascii_uppercase
_SIGNS = {
    "$": "usd", "€": "eur", "¥": "yen", "%": "pct", "万": "wan", "亿": "yi", ",": "c", ".": "p",
}  # fmt: skip
_NUMBER = re.compile(r"[$€¥]?\d[\d,]*(\.\d+)?[^\d\s月年日]?")


def places(table: Table, category: int) -> tuple[str, ...]:
    """A category's place from both ends, where the kind has a row of them."""
    if not kinds.find(table.kind).ALONG:
        return ()
    last = len(table.categories) - 1
    return (f"at{_LETTERS[category]}", f"end{_LETTERS[last - category]}")


def name_at(table: Table, category: int) -> str:
    """The word of the place where a category's name stands; by its mark's place it would be one
    of many."""
    return f"name{_LETTERS[category]}"


def rank(table: Table, series: int | None, category: int) -> str:
    """How many values of the series (None: how many totals) are larger, as a letter from A.

    Raises:
        Unanswerable: the picture does not show them.
    """
    values = row(table, series)
    letter = _LETTERS[sum(value > values[category] for value in values)]
    return f"rank{letter}" if series is not None else f"totalrank{letter}"


def cell(table: Table, series: int, category: int) -> str:
    """The mark of a series at a place, where the series carry the colours."""
    return f"{table.colours[series]}{_LETTERS[category]}"


def named(table: Table, index: int) -> str:
    """The name of the category or series that a colour stands for."""
    return f"{table.colours[index]}Name"


def extreme(table: Table, series: int | None, op: str) -> str:
    """The word of the largest or smallest mark (`op`: max or min) of a series or of the totals."""
    if len(table.series) == 1:
        return EXTREMES[table.language][op]
    whose = "total" if series is None else table.colours[series]
    return whose + {"max": "Most", "min": "Least"}[op]


def size(table: Table, series: int, category: int) -> str:
    """How large a mark is drawn, as a letter from A: its value against the last tick, of a funnel
    against the widest, of a disc against half of it."""
    value = table.values[series][category]
    if table.ticks:
        whole = table.ticks[0][-1]
    else:
        whole = max(table.values[0]) if places(table, category) else sum(table.values[0]) / 2
    return f"size{_LETTERS[min(SIZES - 1, int(SIZES * value / whole))]}"


def number(text: str) -> list[str]:
    """What is told of a number that is written somewhere: its first two digits, without zeros
    before them, and the way it is written; nothing where the text is no number.

    Two digits are what an answer within five per cent needs.
    """
    if not _NUMBER.fullmatch(text):
        return []
    digits = re.sub(r"\D", "", text).lstrip("0") + "00"
    form = "".join(_SIGNS.get(sign, sign) for sign in re.sub(r"\d", "d", text))
    # The last letter keeps one of these words from being the beginning of another.
    known = form.isascii() and form.isalnum()
    return [f"v{digits[:2]}", *([f"like{form}x"] if known else [])]


def digits(text: str) -> list[str]:
    """`number`, its two digits once more behind the word for them; nothing of what is no number,
    such as one with a unit of several letters."""
    found = number(text)
    return [found[0], found[0][1:], *found[1:]] if found else []


def column(table: Table, series: int) -> list[str]:
    """The word of a column of a table with several."""
    several = table.kind == "table" and len(table.series) > 1
    return [f"column{_LETTERS[series]}"] if several else []


def value(table: Table, series: int, category: int) -> str:
    """The word of the place where a value is written."""
    if table.kind == "table":
        return f"cell{_LETTERS[series]}{_LETTERS[category]}"
    if table.colour_of == "series" and len(table.series) > 1:
        return cell(table, series, category)
    if places(table, category):
        return f"val{_LETTERS[category]}"
    return f"{table.colours[category]}Val"


def amount(table: Table) -> str:
    """How many marks there are, told at each where they stand in no row."""
    return f"of{_LETTERS[len(table.categories) - 1]}"


def shade(table: Table, index: int) -> str:
    """The colour of a category or series, in the table's language."""
    return COLOUR_NAMES[table.language][table.colours[index]]


def key_of_name(table: Table, category: int) -> list[str]:
    """Words that lead from a mark to the name of its category."""
    if where := places(table, category):
        return [where[0], name_at(table, category)]
    return [named(table, category)]


def spelled(steps: str) -> str:
    """Steps without the blanks before Chinese and numbers, which would be tokens of their own."""
    return re.sub(r" (?=[0-9\u3400-\u9fff])", "", steps)


def shown(steps: str, answer: str) -> str:
    """An answer behind its working."""
    return spelled(f"{steps}{MARK} {answer}") if steps else answer


def working(table: Table, text: str, operation: dict[str, Any], answer: str) -> str:
    """What to look up before the answer of a question; empty where it is seen at once.

    Args:
        text: the question, which tells a name from a place or a colour that is pointed at.
    """
    steps = _STEPS.get(operation["op"])
    return spelled(" ; ".join(steps(_Asked(table, text, operation, answer)))) if steps else ""


class _Asked:
    """A question about a table, with what its steps are made of."""

    def __init__(self, table: Table, text: str, operation: dict[str, Any], answer: str):
        self.table, self.text, self.operation, self.answer = table, text, operation, answer
        name = operation.get("series")
        self.single = len(table.series) == 1
        self.series: int | None = 0 if self.single else None
        if isinstance(name, str) and name in table.series:
            self.series = table.series.index(name)
        # A table and a cloud of points have no marks with ranks; those of several series are told
        # apart by colour.
        if table.kind == "stacked_bar":  # totals are seen, segments only by their numbers
            self.told = self.series is None or table.labelled
        else:
            self.told = table.kind not in ("table", "scatter") and self.series is not None

    def head(self) -> list[str]:
        """A series that is named, with its colour."""
        if self.single or self.series is None:
            return []
        name = self.table.series[self.series]
        if name not in self.text:
            return []
        key = column(self.table, self.series) or [shade(self.table, self.series)]
        return [f"{name} {key[0]}"]

    def pointed(self, name: str) -> tuple[int, list[str]]:
        """Index of a category, and the word that the question has for it."""
        index = self.table.categories.index(name)
        if name in self.text:
            return index, [name]
        if self.table.colour_of == "category" and shade(self.table, index) in self.text:
            return index, [shade(self.table, index)]
        last = len(self.table.categories) - 1
        return index, list(
            places(self.table, index)[:1] if index <= last / 2 else places(self.table, index)[1:]
        )

    def key(self, index: int) -> list[str]:
        """What a category's name and its mark have in common: the place, or else the colour."""
        if where := places(self.table, index):
            return [where[0]]
        return [shade(self.table, index)] if self.table.colour_of == "category" else []

    def path(self, name: str) -> tuple[int, list[str]] | None:
        """Words that lead from the question to one mark; None where they do not."""
        index, words = self.pointed(name)
        key = self.key(index)
        if not words or not key:
            return None
        if words[0] != key[0]:
            words += key
        if self.table.colour_of == "series" and not self.single and self.series is not None:
            words.append(cell(self.table, self.series, index))
        return index, words

    def valued(self, *names: str) -> list[str]:
        """Every category with the number that is written for it."""
        if self.series is None or not self.table.labelled:
            return []
        found = []
        for name in names:
            path = self.path(name)
            if path is None:
                return []
            index, words = path
            where = value(self.table, self.series, index)
            words += [] if words[-1] == where else [where]
            found.append(" ".join([*words, *digits(self.table.text(self.series, index))]))
        return [*self.head(), *found]

    def ranked(self, *names: str) -> list[str]:
        """Every category with its rank; of two, the rank that is asked for once more."""
        if self.table.kind == "table" and len(names) == 2:
            return self.valued(*names)
        if not self.told:
            return []
        found, ranks, named = [], [], []
        for number, name in enumerate(names):
            path = self.path(name)
            if path is None:
                return []
            index, words = path
            ranks.append(rank(self.table, self.series, index))
            # Whether the first is meant is easier to see from that word than from its name.
            order = ("first", "second")[number] if self.operation["op"] == "greater" else words[0]
            named.append(order)
            found.append(" ".join([*words, ranks[-1], order]))
        if len(ranks) == 2:
            wanted = max(ranks) if self.operation.get("want") == "smaller" else min(ranks)
            found.append(f"{wanted} {named[ranks.index(wanted)]}")
        return [*self.head(), *found]


def _colour(asked: _Asked) -> list[str]:
    name = asked.operation.get("name")
    if name is None:
        return []
    if name not in asked.table.categories:
        return [f"{name} {asked.answer}"]
    # A name beside a row of marks does not show its colour, the mark at its place does.
    index, words = asked.pointed(name)
    words += [where for where in asked.key(index) if where not in (*words, asked.answer)]
    return [" ".join([*words, asked.answer])]


def _of_colour(asked: _Asked) -> list[str]:
    colour = asked.operation["colour"]
    where: list[str] = []
    table = asked.table
    names = table.categories if table.colour_of == "category" else table.series
    if asked.answer in names:
        index = names.index(asked.answer)
        where = [named(table, index)]
        if table.colour_of == "category":
            where = key_of_name(table, index)
    return [" ".join([colour, *where, asked.answer])]


def _count(asked: _Asked) -> list[str]:
    if asked.operation["of"] != "categories":
        return []
    last = places(asked.table, len(asked.table.categories) - 1)
    return [f"endA {last[0]}" if last else amount(asked.table)]


def _extreme(asked: _Asked) -> list[str]:
    if "category" in asked.operation or not asked.told:
        return []
    op = asked.operation["op"]
    values = row(asked.table, asked.series)
    best = values.index((max if op == "max" else min)(values))
    words = [extreme(asked.table, asked.series, op), *asked.key(best)]
    if asked.answer == asked.table.categories[best]:
        words += key_of_name(asked.table, best)[-1:]
    words.append(asked.answer)
    if asked.table.order == "stages":  # the first is the largest, no mark has to tell it
        del words[0]
    return [*asked.head(), " ".join(dict.fromkeys(words))]


def _found(asked: _Asked, word: str, there: bool) -> list[str]:
    return [f"{word} {'here' if there else 'none'}"]


def _exists(asked: _Asked) -> list[str]:
    name = asked.operation["name"]
    return _found(asked, name, name in asked.table.categories)


def _has_colour(asked: _Asked) -> list[str]:
    colours = {shade(asked.table, i) for i in range(len(asked.table.colours))}
    return _found(asked, asked.operation["colour"], asked.operation["colour"] in colours)


def _above(asked: _Asked) -> list[str]:
    than = asked.table.scales[0].text(float(asked.operation["than"]))
    found = asked.valued(asked.operation["category"])
    return [*found, " ".join([than, *digits(than)])] if found else []


def _trend(asked: _Asked) -> list[str]:
    """The ranks at both ends: a row that keeps rising begins with the smallest value and ends with
    the largest."""
    table = asked.table
    if not asked.told or asked.series is None or not places(table, 0):
        return []
    found = []
    for index in (0, len(table.categories) - 1):
        at, end = places(table, index)
        words = [end, at] if index else [at]
        if not asked.single:
            words.append(cell(table, asked.series, index))
        found.append(" ".join([*words, rank(table, asked.series, index)]))
    return [*asked.head(), *found]


_STEPS: dict[str, Callable[[_Asked], list[str]]] = {
    "is_type": lambda asked: [kinds.find(asked.table.kind).NAME[asked.table.language]],
    "exists": _exists,
    "has_colour": _has_colour,
    "colour": _colour,
    "of_colour": _of_colour,
    "count": _count,
    "value": lambda asked: asked.valued(asked.operation["category"]),
    "above": _above,
    "max": _extreme,
    "min": _extreme,
    "compare": lambda asked: asked.ranked(*asked.operation["categories"]),
    "greater": lambda asked: asked.ranked(*asked.operation["categories"]),
    "is_max": lambda asked: asked.ranked(asked.operation["category"]),
    "count_above": lambda asked: asked.ranked(asked.operation["category"]),
    "trend": _trend,
}  # fmt: skip
