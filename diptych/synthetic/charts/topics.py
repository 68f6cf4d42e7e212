"""What a chart can be about: titles, categories, units and plausible values, per language.

Many topics share one pool of categories, as in life: rainfall, rents and museums are all
counted by city. The lists themselves stand in `topics_en.py` and `topics_zh.py`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, slots=True)
class Scale:
    """How the values of a topic look on the chart.

    Attributes:
        low, high: range of the displayed numbers.
        decimals: digits after the point.
        suffix: stands behind every number: `%`, `k`, `M`, `万`...
        prefix: stands before every number: `$`, `€`, `¥`.
        thousands: comma every three digits.
    """

    low: float
    high: float
    decimals: int = 0
    suffix: str = ""
    prefix: str = ""
    thousands: bool = False

    def text(self, value: float) -> str:
        """The number as it stands on the chart and in the answers."""
        digits = f"{value:{',' if self.thousands else ''}.{self.decimals}f}"
        return f"{self.prefix}{digits}{self.suffix}"


@dataclass(frozen=True, slots=True)
class Topic:
    """One subject.

    Attributes:
        titles: equivalent titles.
        measure: what the numbers are, as the value axis says it.
        unit: of the numbers, for axis or title; empty where the scale's suffix says it.
        axis: what the categories are ("City").
        categories: 6-12 names.
        scales: ways to show the numbers.
        order: `any` (categories may be drawn in any order), `time` (contiguous run in the given
            order) or `stages` (in the given order, values falling).
        share: whether the numbers are parts of a whole (pie, donut, stacked bars).
    """

    titles: tuple[str, ...]
    measure: str
    unit: str
    axis: str
    categories: tuple[str, ...]
    scales: tuple[Scale, ...]
    order: str = "any"
    share: bool = False


def parse(rows: str, pools: dict[str, str], scales: dict[str, Scale]) -> tuple[Topic, ...]:
    """Topics from lines `titles; measure; unit; axis; pool; scales; how`.

    Titles are separated by `|`; `how` is empty or one of `time`, `stages`, `share`.
    """
    topics = []
    for row in rows.strip().splitlines():
        titles, measure, unit, axis, pool, formats, how = (cell.strip() for cell in row.split(";"))
        topics.append(
            Topic(
                titles=tuple(title.strip() for title in titles.split("|")),
                measure=measure,
                unit=unit,
                axis=axis,
                categories=tuple(pools[pool].split()),
                scales=tuple(scales[name] for name in formats.split()),
                order=how if how in ("time", "stages") else "any",
                share=how == "share",
            )
        )
    return tuple(topics)


@dataclass(frozen=True, slots=True)
class Lists:
    """All topics of one language, and the names for the series of multi-series charts."""

    topics: tuple[Topic, ...]
    series: tuple[tuple[str, ...], ...]


@cache
def lists(language: str) -> Lists:
    """The lists of a language (`en` or `zh`)."""
    module = importlib.import_module(f"diptych.synthetic.charts.topics_{language}")
    return Lists(module.TOPICS, module.SERIES)
