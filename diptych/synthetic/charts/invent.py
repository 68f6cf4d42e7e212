"""Random tables: what a chart shows, chosen so that a person could read it off the picture.

Where the numbers do not stand in the picture they lie on ticks or simple fractions between
them; largest, smallest and compared values differ by what the eye can see.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

from diptych.synthetic.charts.kind import Kind
from diptych.synthetic.charts.style import CONFUSABLE, SHADES
from diptych.synthetic.charts.table import Table
from diptych.synthetic.charts.topics import Lists, Scale, Topic

# Longest number text for which the kind's labels stay apart; other kinds take any.
LABEL_CHARACTERS = {"stacked_bar": 4, "grouped_bar": 5, "line": 5, "pie": 5, "donut": 4}
Values = tuple[tuple[float, ...], ...]
PATTERNS = ("rising", "falling", "mixed")


def invent(
    rng: random.Random, name: str, kind: Kind, language: str, lists: Lists, dark: bool
) -> tuple[Table, tuple[str, ...]]:
    """A table for a chart of the kind `name`, and all names that its topic could have shown."""
    topic = _topic(rng, name, lists.topics)
    number = rng.randint(kind.CATEGORIES[0], min(kind.CATEGORIES[1], len(topic.categories)))
    categories = _categories(rng, topic, number)
    title = rng.choice(topic.titles)
    scale = rng.choice(topic.scales)
    series: tuple[str, ...] = (topic.measure,)
    scales: tuple[Scale, ...]
    values: Values
    if name == "scatter":
        other = rng.choice(_partners(topic, lists.topics))
        scales = (scale, rng.choice(other.scales))
        series = (topic.measure, other.measure)
        joint = " and " if language == "en" else "与"
        title = joint.join(series) if rng.random() < 0.6 else f"{series[1]} / {series[0]}"
    else:
        columns = rng.randint(*kind.SERIES)
        if columns > 1:
            fitting = [
                s for s in lists.series if len(s) >= columns and not set(s) & set(categories)
            ]
            names = rng.choice(fitting)
            series = tuple(names[i] for i in sorted(rng.sample(range(len(names)), columns)))
        scales = (scale,) * columns
    labelled = _labelled(rng, name, scale, len(series))
    ticks: Values = ()
    if name in ("pie", "donut"):
        scales, values, gaps = _parts(rng, scale, number, labelled)
    elif name == "scatter":
        values, ticks, gaps = _cloud(rng, scales, number)
    elif name == "stacked_bar":
        values, ticks, gaps = _stack(rng, scale, number, len(series), labelled)
    else:
        values, ticks, gaps = _columns(rng, scale, number, len(series), labelled, topic.order)
        while name == "line" and any(len(set(at)) < len(at) for at in zip(*values, strict=True)):
            # One point would hide another.
            values, ticks, gaps = _columns(rng, scale, number, len(series), labelled, topic.order)
        if name == "funnel":
            values = tuple(tuple(sorted(row, reverse=True)) for row in values)
    table = Table(
        kind=name,
        language=language,
        title=title,
        axis=topic.axis,
        unit="" if name == "scatter" else topic.unit,
        categories=categories,
        series=series,
        values=values,
        scales=scales,
        ticks=ticks if kind.AXIS else (),
        labelled=labelled,
        min_gap=gaps,
        order=topic.order,
        **_colours(rng, name, kind, number, len(series), dark),
    )
    return table, topic.categories


def _suits(name: str, topic: Topic, topics: Sequence[Topic]) -> bool:
    if name == "line":
        return topic.order == "time"
    if name == "funnel":
        return topic.order in ("stages", "any")
    if name in ("pie", "donut", "stacked_bar"):
        return topic.share
    if name == "scatter":
        return topic.order == "any" and bool(_partners(topic, topics))
    return topic.order in ("any", "time")


def fits(name: str, lists: Lists) -> bool:
    """Whether any topic of the lists can be drawn as the kind `name`."""
    return any(_suits(name, topic, lists.topics) for topic in lists.topics)


def _topic(rng: random.Random, name: str, topics: Sequence[Topic]) -> Topic:
    fitting = [topic for topic in topics if _suits(name, topic, topics)]
    # Orders are chosen before topics: there are few lists of stages and of dates.
    orders = sorted({topic.order for topic in fitting})
    weights = [{"any": 2.0, "time": 2.0, "stages": 3.0}[order] for order in orders]
    order = rng.choices(orders, weights)[0]
    return rng.choice([topic for topic in fitting if topic.order == order])


def _partners(topic: Topic, topics: Sequence[Topic]) -> list[Topic]:
    # Topics that measure something else about the same things.
    return [t for t in topics if t.categories == topic.categories and t.measure != topic.measure]


def _categories(rng: random.Random, topic: Topic, number: int) -> tuple[str, ...]:
    if topic.order == "time":
        first = rng.randint(0, len(topic.categories) - number)
        return topic.categories[first : first + number]
    chosen = rng.sample(range(len(topic.categories)), number)
    return tuple(
        topic.categories[i] for i in (sorted(chosen) if topic.order == "stages" else chosen)
    )


def _labelled(rng: random.Random, name: str, scale: Scale, columns: int) -> bool:
    if name in ("table", "scatter"):
        return name == "table"
    if name == "line" and columns > 1:
        return False
    if len(scale.text(scale.high)) > LABEL_CHARACTERS.get(name, 99):
        return False
    return rng.random() < (
        0.5 if name in ("bar", "horizontal_bar", "grouped_bar", "line") else 0.75
    )


def _colours(
    rng: random.Random, name: str, kind: Kind, number: int, columns: int, dark: bool
) -> dict:
    colour_of = rng.choice(kind.COLOUR_OF)
    need = {"category": number, "series": columns, "all": 1, "none": 0}[colour_of]
    free = [shade for shade in SHADES if not (dark and shade == "black")]
    chosen = rng.sample(free, need)
    while name in ("line", "scatter") and any(pair <= set(chosen) for pair in CONFUSABLE):
        chosen = rng.sample(free, need)
    return {"colours": tuple(chosen), "colour_of": colour_of}


def _axis(rng: random.Random, scale: Scale, top: float) -> tuple[tuple[float, ...], float]:
    """Ticks from 0 to at least `top`, and the step between them."""
    unit = 10.0**-scale.decimals
    steps = [
        factor * 10.0**power
        for power in range(-3, 7)
        for factor in (1, 2, 2.5, 5)
        if 3.5 <= top / (factor * 10.0**power) <= 7.1
    ]
    fitting = [s for s in steps if math.isclose(s / unit, round(s / unit)) and s >= unit]
    step = rng.choice(fitting) if fitting else max(unit, round(top / 5 / unit) * unit)
    number = math.ceil(top / step - 1e-9)
    return tuple(round(step * i, scale.decimals) for i in range(number + 1)), step


def _quantum(rng: random.Random, scale: Scale, step: float) -> float:
    """The fraction of a step on which unlabelled values lie."""
    unit = 10.0**-scale.decimals
    parts = [n for n in (2, 4, 5) if math.isclose(step / n / unit, round(step / n / unit))]
    return step / rng.choice(parts or [1])


def _levels(
    rng: random.Random,
    scale: Scale,
    low: float,
    high: float,
    quantum: float,
    number: int,
) -> list[float]:
    """`number` different multiples of the quantum; repeated where there are too few."""
    first, last = math.ceil(low / quantum - 1e-9), math.floor(high / quantum + 1e-9)
    pool = range(first, max(last, first + 1) + 1)
    if len(pool) >= number:
        chosen = rng.sample(pool, number)
    else:
        chosen = [rng.choice(pool) for _ in range(number)]
    return [round(level * quantum, scale.decimals) for level in chosen]


def _apart(rng: random.Random, scale: Scale, low: float, high: float, number: int) -> list[float]:
    """Any values, not just multiples, but no two so close that bars look the same."""
    unit = 10.0**-scale.decimals
    coarse = max(unit, math.ceil(high / 30 / unit) * unit)
    slack = int(coarse * 0.4 / unit)
    values = _levels(rng, scale, low, high - slack * unit, coarse, number)
    return [round(value + rng.randint(0, slack) * unit, scale.decimals) for value in values]


def _shape(rng: random.Random, values: list[float], order: str) -> tuple[float, ...]:
    """Over time, a third of the columns rise, a third fall, the rest goes up and down."""
    if order != "time":
        return tuple(values)
    pattern = rng.choice(PATTERNS)
    ranked = sorted(values)
    if pattern == "rising":
        return tuple(ranked)
    if pattern == "falling":
        return tuple(reversed(ranked))
    half = len(ranked) // 2
    low, high = ranked[:half], ranked[half:]
    rng.shuffle(low)
    rng.shuffle(high)
    pairs = itertools.zip_longest(high, low) if len(high) > len(low) or rng.random() < 0.5 else (
        itertools.zip_longest(low, high))  # fmt: skip
    return tuple(value for pair in pairs for value in pair if value is not None)


def _columns(
    rng: random.Random,
    scale: Scale,
    number: int,
    columns: int,
    labelled: bool,
    order: str,
) -> tuple[Values, Values, tuple[float, ...]]:
    top = rng.uniform(0.45, 1.0) * scale.high
    ticks, step = _axis(rng, scale, top)
    unit = 10.0**-scale.decimals
    quantum = unit if labelled else _quantum(rng, scale, step)
    low = max(0.15 * ticks[-1], unit) if labelled else max(0.2 * ticks[-1], min(step, quantum * 2))
    high = min(ticks[-1], 100.0) if scale.suffix == "%" else ticks[-1]
    values = tuple(
        _shape(
            rng,
            _apart(rng, scale, low, high, number)
            if labelled
            else _levels(rng, scale, low, high, quantum, number),
            order,
        )
        for _ in range(columns)
    )
    return values, (ticks,), (quantum,) * columns


def _stack(
    rng: random.Random, scale: Scale, number: int, columns: int, labelled: bool
) -> tuple[Values, Values, tuple[float, ...]]:
    top = rng.uniform(0.6, 1.0) * scale.high
    ticks, step = _axis(rng, scale, top)
    quantum = 10.0**-scale.decimals if labelled else _quantum(rng, scale, step)
    high = ticks[-1] / columns
    low = max(0.35 * high, quantum)
    values = tuple(
        tuple(
            _apart(rng, scale, low, high, number)
            if labelled
            else _levels(rng, scale, low, high, quantum, number)
        )
        for _ in range(columns)
    )
    return values, (ticks,), (quantum,) * columns


def _parts(
    rng: random.Random, scale: Scale, number: int, labelled: bool
) -> tuple[tuple[Scale, ...], Values, tuple[float, ...]]:
    """Parts of a whole: percentages that add up to 100, or amounts; none under 6 %."""
    percent = rng.random() < 0.55
    spare = 100 - 7 * number
    while True:
        cuts = sorted(rng.randint(0, spare) for _ in range(number - 1))
        shares = [7 + b - a for a, b in zip([0, *cuts], [*cuts, spare], strict=True)]
        ranked = sorted(shares)
        gaps = [b - a for a, b in itertools.pairwise(ranked)]
        # The largest and the smallest stand out; unlabelled, by what the eye can see.
        wanted = 1 if labelled else 5
        if gaps[0] >= wanted and gaps[-1] >= wanted:
            break
    rng.shuffle(shares)
    if percent:
        return (Scale(1, 99, suffix="%"),), (tuple(float(s) for s in shares),), (float(wanted),)
    biggest = rng.uniform(0.6, 1.0) * scale.high
    factor = biggest / max(shares)
    row = tuple(max(round(s * factor, scale.decimals), 10.0**-scale.decimals) for s in shares)
    gap = 10.0**-scale.decimals if labelled else 4.5 * factor
    return (scale,), (row,), (gap,)


def _cloud(
    rng: random.Random, scales: tuple[Scale, ...], number: int
) -> tuple[Values, Values, tuple[float, ...]]:
    """Points whose y rises with x, falls, or has nothing to do with it."""
    rows, ticks, gaps = [], [], []
    for scale in scales:
        column, axis, gap = _columns(rng, scale, number, 1, False, "any")
        rows.append(list(column[0]))
        ticks.append(axis[0])
        gaps.append(gap[0])
    pattern = rng.choice(PATTERNS)
    if pattern != "mixed":
        order = sorted(range(number), key=lambda i: rows[0][i])
        ranked = sorted(rows[1], reverse=pattern == "falling")
        for rank, index in enumerate(order):
            rows[1][index] = ranked[rank]
    return tuple(tuple(row) for row in rows), tuple(ticks), tuple(gaps)
