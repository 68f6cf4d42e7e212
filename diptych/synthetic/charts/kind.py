"""Kind: one type of chart.

A part of `kinds/` is a module with

    NAME: dict            language -> what the chart is called, the answer to "what type is it?"
    ITEM: dict            language -> what one category is drawn as ("bars", "slices"...)
    MARK: dict            language -> one such thing ("bar"; in Chinese with its measure word)
    PART: dict            language -> what one series is drawn as; where series carry the colours
    ALONG: str            how the categories follow each other: `right`, `down`, or not at all
    CATEGORIES: (3, 7)    fewest and most categories
    SERIES: (1, 1)        fewest and most series
    AXIS: bool            values can be read against an axis
    COLOUR_OF: tuple      what may carry the colours: `category`, `series`, `all`, `none`
    draw(canvas, table, style, box) -> None
                          draws into `box` (left, bottom, right, top in pixels; y upwards)

The file's stem is the kind's name; adding the file is adding the kind.
"""

from __future__ import annotations

from functools import cache
from typing import Protocol

from diptych import parts
from diptych.synthetic.charts.canvas import Box, Canvas
from diptych.synthetic.charts.style import Style
from diptych.synthetic.charts.table import Table

FOLDER = "synthetic.charts.kinds"


class Kind(Protocol):
    """What a module of `kinds/` offers."""

    NAME: dict[str, str]
    ITEM: dict[str, str]
    MARK: dict[str, str]
    PART: dict[str, str]
    ALONG: str
    CATEGORIES: tuple[int, int]
    SERIES: tuple[int, int]
    AXIS: bool
    COLOUR_OF: tuple[str, ...]

    def draw(self, canvas: Canvas, table: Table, style: Style, box: Box) -> None:
        """Draw the table into the box."""


@cache
def find(name: str) -> Kind:
    """The kind of that name."""
    return parts.find(FOLDER, name)  # type: ignore[return-value]


@cache
def names() -> tuple[str, ...]:
    """All kinds, sorted."""
    return tuple(parts.names(FOLDER))
