"""Descriptions: one or two sentences that state a chart's type, title and data."""

from __future__ import annotations

import random

from diptych.synthetic.charts import kind as kinds
from diptych.synthetic.charts.style import COLOUR_NAMES
from diptych.synthetic.charts.table import Table

OPENINGS = {
    "en": (
        'A {kind} titled "{title}".',
        'This {kind} is titled "{title}".',
        'The picture shows a {kind} with the title "{title}".',
    ),
    "zh": (
        "这是一张{kind}，标题是“{title}”。",
        "标题为“{title}”的{kind}。",
        "图中是{kind}：“{title}”。",
    ),
}


def describe(rng: random.Random, table: Table) -> str:
    """The description of a chart: every category with its values, and its colours."""
    kind = kinds.find(table.kind).NAME[table.language]
    opening = rng.choice(OPENINGS[table.language]).format(kind=kind, title=table.title)
    english = table.language == "en"
    colour = COLOUR_NAMES[table.language]
    comma, stop = (", ", ".") if english else ("，", "。")
    parts = []
    visible = table.labelled or table.has_axis
    for c, category in enumerate(table.categories):
        name = category
        if table.colour_of == "category":
            shade = colour[table.colours[c]]
            name += f" ({shade})" if english else f"（{shade}）"
        if len(table.series) == 1:
            parts.append(f"{name} {table.text(0, c)}" if visible else name)
        else:
            cells = [f"{series} {table.text(s, c)}" for s, series in enumerate(table.series)]
            parts.append(
                f"{name}: {comma.join(cells)}" if english else f"{name}：{comma.join(cells)}"
            )
    joint = comma if len(table.series) == 1 else ("; " if english else "；")
    text = opening + (" " if english else "") + joint.join(parts) + stop
    if table.colour_of == "series" and len(table.series) > 1:
        shades = [
            f"{series} {'is' if english else '是'}{' ' if english else ''}{colour[shade]}"
            for series, shade in zip(table.series, table.colours, strict=True)
        ]
        text += (" " if english else "") + comma.join(shades) + stop
    elif table.colour_of == "all" or (table.colour_of == "series" and len(table.series) == 1):
        shade = colour[table.colours[0]]
        text += f" All in {shade}." if english else f"颜色是{shade}。"
    return text
