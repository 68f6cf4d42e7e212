"""Lines with markers over an ordered axis."""

from __future__ import annotations

from diptych.synthetic.charts import plot
from diptych.synthetic.charts.canvas import Box, Canvas
from diptych.synthetic.charts.style import Style
from diptych.synthetic.charts.table import Table

NAME = {"en": "line chart", "zh": "折线图"}
ITEM = {"en": "points on the axis", "zh": "个横轴刻度"}
MARK = {"en": "point", "zh": "个点"}
PART = {"en": "line", "zh": "折线"}
ALONG = "right"
CATEGORIES = (4, 7)
SERIES = (1, 3)
AXIS = True
COLOUR_OF = ("series",)


def draw(canvas: Canvas, table: Table, style: Style, box: Box) -> None:
    """See `kind.py`."""
    colours = plot.fills(table, style)
    if len(table.series) > 1:
        entries = list(zip(table.series, colours, strict=True))
        box = plot.legend(canvas, style, box, entries, style.marker)
    box = plot.measure(canvas, table, style, box)
    number = len(table.categories)
    room, rotation = plot.category_room(canvas, style, table.categories, (box.width - 30) / number)
    area, place = plot.value_axis(canvas, table, style, box._replace(bottom=box.bottom + room))
    xs = plot.slots(area.left, area.right, number)
    edge = "#e8e8e8" if style.dark else "#333333"
    for series, fill in enumerate(colours):
        ys = [place(value) for value in table.values[series]]
        canvas.line(list(zip(xs, ys, strict=True)), fill, style.line_width)
        for category, (x, y) in enumerate(zip(xs, ys, strict=True)):
            canvas.mark = (series, category)
            canvas.marker(x, y, style.marker, 5.5, fill, edge)
    if table.labelled:
        for index, x in enumerate(xs):
            y = place(table.values[0][index])
            canvas.text(
                x,
                y + 5,
                table.text(0, index),
                style.text_size,
                style.ink,
                "center",
                "bottom",
                mark=(0, index),
            )
    plot.category_labels(canvas, style, table.categories, xs, area.bottom, rotation)
