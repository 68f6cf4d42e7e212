"""Stages of a process, each narrower than the one above."""

from __future__ import annotations

from diptych.synthetic.charts import plot
from diptych.synthetic.charts.canvas import Box, Canvas
from diptych.synthetic.charts.style import Style, ink_on
from diptych.synthetic.charts.table import Table

NAME = {"en": "funnel chart", "zh": "漏斗图"}
ITEM = {"en": "stages", "zh": "个阶段"}
MARK = {"en": "stage", "zh": "个阶段"}
ALONG = "down"
CATEGORIES = (3, 6)
SERIES = (1, 1)
AXIS = False
COLOUR_OF = ("category", "category", "all")


def draw(canvas: Canvas, table: Table, style: Style, box: Box) -> None:
    """See `kind.py`."""
    size = style.text_size
    names = max(canvas.text_size(name, size)[0] for name in table.categories) + 6
    box = box._replace(left=box.left + names)
    ys = plot.slots(box.top, box.bottom, len(table.categories))
    half = abs(ys[1] - ys[0]) / 2
    middle = (box.left + box.right) / 2
    widths = [box.width / 2 * value / max(table.values[0]) for value in table.values[0]]
    stepped = style.fill < 0.72
    for index, (y, fill) in enumerate(zip(ys, plot.fills(table, style), strict=True)):
        upper = widths[index]
        last = index + 1 == len(widths)
        lower = upper if stepped else upper * 0.75 if last else widths[index + 1]
        top, bottom = y + half - 1, y - half + 1
        corners = [(middle - upper, top), (middle + upper, top), (middle + lower, bottom),
                   (middle - lower, bottom)]  # fmt: skip
        canvas.mark = (0, index)
        canvas.polygon(corners, fill, style.background)
        canvas.text(box.left - 6, y, table.categories[index], size, style.ink, "right")
        if not table.labelled:
            continue
        text = table.text(0, index)
        if canvas.text_size(text, size)[0] < upper + lower - 4:
            canvas.text(middle, y, text, size, ink_on(fill), mark=(0, index))
        else:
            canvas.text(middle + upper + 3, y, text, size, style.ink, "left", mark=(0, index))
