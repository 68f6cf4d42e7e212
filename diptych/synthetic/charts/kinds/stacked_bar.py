"""Bars on top of each other, one segment per series."""

from __future__ import annotations

from diptych.synthetic.charts import plot
from diptych.synthetic.charts.canvas import Box, Canvas
from diptych.synthetic.charts.style import Style, ink_on
from diptych.synthetic.charts.table import Table

NAME = {"en": "stacked bar chart", "zh": "堆叠柱状图"}
ITEM = {"en": "stacked bars", "zh": "根堆叠柱"}
MARK = {"en": "stacked bar", "zh": "根堆叠柱"}
PART = {"en": "segment", "zh": "部分"}
ALONG = "right"
CATEGORIES = (3, 5)
SERIES = (2, 3)
AXIS = True
COLOUR_OF = ("series",)


def draw(canvas: Canvas, table: Table, style: Style, box: Box) -> None:
    """See `kind.py`."""
    colours = plot.fills(table, style)
    box = plot.legend(canvas, style, box, list(zip(table.series, colours, strict=True)))
    box = plot.measure(canvas, table, style, box)
    number = len(table.categories)
    room, rotation = plot.category_room(canvas, style, table.categories, (box.width - 30) / number)
    area, place = plot.value_axis(canvas, table, style, box._replace(bottom=box.bottom + room))
    xs = plot.slots(area.left, area.right, number)
    half = (xs[1] - xs[0]) * max(style.fill, 0.75) / 2
    for category, x in enumerate(xs):
        base = 0.0
        for series, fill in enumerate(colours):
            value = table.values[series][category]
            segment = Box(x - half, place(base), x + half, place(base + value))
            canvas.mark = (series, category)
            canvas.rectangle(segment, fill, style.background, 0.6)
            if table.labelled:
                middle = (segment.bottom + segment.top) / 2
                text = table.text(series, category)
                canvas.text(x, middle, text, style.text_size, ink_on(fill), mark=(series, category))
            base += value
    plot.category_labels(canvas, style, table.categories, xs, area.bottom, rotation)
