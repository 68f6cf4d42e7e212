"""Slices of a disc."""

from __future__ import annotations

import math

from diptych.synthetic.charts import plot
from diptych.synthetic.charts.canvas import Align, Box, Canvas
from diptych.synthetic.charts.style import Style, ink_on
from diptych.synthetic.charts.table import Table

NAME = {"en": "pie chart", "zh": "饼图"}
ITEM = {"en": "slices", "zh": "扇区"}
MARK = {"en": "slice", "zh": "个扇区"}
ALONG = ""
CATEGORIES = (3, 6)
SERIES = (1, 1)
AXIS = False
COLOUR_OF = ("category",)


def draw(canvas: Canvas, table: Table, style: Style, box: Box) -> None:
    """See `kind.py`."""
    slices(canvas, table, style, box, 0.0)


def slices(canvas: Canvas, table: Table, style: Style, box: Box, hole: float) -> None:
    """Draw the disc; `hole` is the share of the radius left empty (donut)."""
    colours = plot.fills(table, style)
    size = style.text_size
    widest = max(canvas.text_size(name, size)[0] for name in table.categories)
    beside = widest < 0.25 * box.width and not style.show_measure
    if beside:  # names around the disc
        radius = min(box.width / 2 - widest - 6, box.height / 2 - size - 4)
    else:
        box = plot.legend(canvas, style, box, list(zip(table.categories, colours, strict=True)))
        radius = min(box.width, box.height) / 2 - 2
    x, y = (box.left + box.right) / 2, (box.bottom + box.top) / 2
    total = sum(table.values[0])
    start = style.start_angle
    for index, value in enumerate(table.values[0]):
        end = start + 360 * value / total
        fill = colours[index]
        canvas.mark = (0, index)
        canvas.wedge(x, y, radius, radius * hole, start, end, fill, style.background)
        start = end
    for index, value in enumerate(table.values[0]):
        end = start + 360 * value / total
        middle = math.radians((start + end) / 2)
        right, up = math.cos(middle), math.sin(middle)
        if table.labelled:
            at = radius * ((1 + hole) / 2 if hole else 0.66)
            text = table.text(0, index)
            canvas.text(
                x + at * right, y + at * up, text, size, ink_on(colours[index]), mark=(0, index)
            )
        if beside:
            align: Align = "left" if right > 0.15 else "right" if right < -0.15 else "center"
            away = radius + 4
            canvas.text(
                x + away * right, y + (away + size * 0.4) * up, table.categories[index], size,
                style.ink, align,
            )  # fmt: skip
        start = end
