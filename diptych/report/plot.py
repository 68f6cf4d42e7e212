"""Geometry of the page's charts: scales, ticks and paths, in percent of the plot's box.

Positions are percentages, so the browser stretches the chart to any width while letters keep
their size. Only line paths live in a stretched box of their own (`PATH_BOX` units a side).
Templates in `template/plots.html.j2` draw what is computed here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

PATH_BOX = 1000
MAX_POINTS = 240
LETTER = 2.3
"""Width of a letter, in percent of the plot of a phone (300 pixels)."""


@dataclass(frozen=True)
class Line:
    """One curve: `x` and `y` of equal length, and what it is called."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Boundary:
    """A vertical rule with a name, where a stage begins."""

    x: float
    name: str


@dataclass(frozen=True)
class Chart:
    """A line chart ready to draw.

    Attributes:
        title, unit: what stands above it.
        summary: the chart in words, for those who do not see it.
        y_ticks, x_ticks: (percent, label).
        curves: (name, path of the measured values, path of the smoothed values or "").
        boundaries: (percent, name, row): names of short stages stand in rows above each other.
        hover: columns for the script: `x` and, per curve, `y` in percent, and labels.
    """

    title: str
    unit: str
    summary: str
    y_ticks: list[tuple[float, str]]
    x_ticks: list[tuple[float, str]]
    curves: list[tuple[str, str, str]]
    boundaries: list[tuple[float, str, int]] = field(default_factory=list)
    hover: dict[str, Any] = field(default_factory=dict)


def ticks(low: float, high: float, num: int = 5) -> list[float]:
    """About `num` round numbers that cover low..high; the first and last enclose the range.

    Steps are 1, 2, 2.5 or 5 times a power of ten.
    """
    if not high > low:
        pad = abs(low) / 2 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / num
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * f for f in (1, 2, 2.5, 5, 10) if power * f >= rough * 0.999999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) if step > 1e-9 else k * step for k in range(first, last + 1)]


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    label: Callable[[float], str],
    unit: str = "",
    from_zero: bool = False,
    smooth: bool = False,
    boundaries: Sequence[Boundary] = (),
) -> Chart | None:
    """A chart of lines over optimizer steps, or None when no line has two points.

    Args:
        label: writes a value of the y axis.
        from_zero: the y axis starts at zero.
        smooth: adds a running mean, for series with much noise.
    """
    lines = [line for line in lines if len(line.x) >= 2]
    if not lines:
        return None
    x_low, x_high = min(min(line.x) for line in lines), max(max(line.x) for line in lines)
    if x_high <= x_low:
        return None
    values = [y for line in lines for y in line.y]
    y_at = ticks(0.0 if from_zero and min(values) >= 0 else min(values), max(values))

    def across(x: float) -> float:
        return round(100 * (x - x_low) / (x_high - x_low), 2)

    def down(y: float) -> float:
        return round(100 * (y_at[-1] - y) / (y_at[-1] - y_at[0]), 2)

    curves, hover_lines, sentences = [], [], []
    for line in lines:
        x, y = _thin(line.x), _thin(line.y)
        steady = _thin(_running_mean(line, boundaries)) if smooth else []
        curves.append((line.name, _path(x, y, across, down), _path(x, steady, across, down)))
        shown = steady or y
        hover_lines.append(
            {"name": line.name, "y": [down(v) for v in shown], "label": [label(v) for v in shown]}
        )
        sentences.append(f"{line.name} from {label(shown[0])} to {label(shown[-1])}")
    longest = max(lines, key=lambda line: len(line.x))
    x = _thin(longest.x)
    return Chart(
        title=title,
        unit=unit,
        summary=f"{title}: " + "; ".join(sentences) + f" over {len(longest.x)} steps.",
        y_ticks=[(down(y), label(y)) for y in y_at],
        x_ticks=[(across(x), f"{x:.0f}") for x in ticks(x_low, x_high) if x_low <= x <= x_high],
        curves=curves,
        boundaries=_in_rows([(across(b.x), b.name) for b in boundaries]),
        hover={
            "x": [across(v) for v in x],
            "step": [f"{v:.0f}" for v in x],
            "lines": hover_lines,
        },
    )


def _in_rows(named: list[tuple[float, str]]) -> list[tuple[float, str, int]]:
    """A row for each name, the lowest in which it does not run into the one before it."""
    ends: list[float] = []
    placed = []
    for at, name in named:
        row = next((k for k, end in enumerate(ends) if end <= at), len(ends))
        ends[row : row + 1] = [at + LETTER * (len(name) + 1)]
        placed.append((at, name, row))
    return placed


def _thin(values: Sequence[float]) -> list[float]:
    """At most MAX_POINTS of the values, evenly spread, first and last included."""
    if len(values) <= MAX_POINTS:
        return list(values)
    stride = (len(values) - 1) / (MAX_POINTS - 1)
    return [values[round(k * stride)] for k in range(MAX_POINTS)]


def _running_mean(line: Line, boundaries: Sequence[Boundary]) -> list[float]:
    """Centred mean over a twentieth of a stage; it never mixes the steps of two stages."""
    starts = [k for k, x in enumerate(line.x) if any(b.x == x for b in boundaries)]
    edges = [*dict.fromkeys([0, *starts]), len(line.y)]
    means: list[float] = []
    for first, last in pairwise(edges):
        values = line.y[first:last]
        half = max(1, len(values) // 40)
        sums = [0.0, *accumulate(values)]
        for k in range(len(values)):
            start, stop = max(0, k - half), min(len(values), k + half + 1)
            means.append((sums[stop] - sums[start]) / (stop - start))
    return means


def _path(
    x: Sequence[float],
    y: Sequence[float],
    across: Callable[[float], float],
    down: Callable[[float], float],
) -> str:
    scale = PATH_BOX / 100
    pairs = [f"{across(a) * scale:.1f} {down(b) * scale:.1f}" for a, b in zip(x, y, strict=False)]
    return "M" + "L".join(pairs) if pairs else ""
