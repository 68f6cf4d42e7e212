"""Bars side by side, one per series, in groups."""

from __future__ import annotations

from diptych.synthetic.charts import plot
from diptych.synthetic.charts.canvas import Box, Canvas
from diptych.synthetic.charts.style import Style, ink_on
from diptych.synthetic.charts.table import Table

NAME = {"en": "grouped bar chart", "zh": "分组柱状图"}
ITEM = {"en": "groups of bars", "zh": "组柱子"}
MARK = {"en": "group of bars", "zh": "组柱子"}
PART = {"en": "bar", "zh": "柱子"}
ALONG = "right"
CATEGORIES = (2, 4)
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
    bar = (xs[1] - xs[0]) * style.fill / len(table.series)
    size = style.text_size
    for category, middle in enumerate(xs):
        left = middle - bar * len(table.series) / 2
        for series, fill in enumerate(colours):
            x = left + bar * series
            top = place(table.values[series][category])
            canvas.mark = (series, category)
            canvas.rectangle(Box(x, area.bottom, x + bar, top), fill, style.background, 0.6)
            if not table.labelled:
                continue
            text = table.text(series, category)
            width = canvas.text_size(text, size)[0]
            if width <= bar:
                canvas.text(
                    x + bar / 2, top + 2, text, size, style.ink, "center", "bottom", 0.0,
                    canvas.mark,
                )  # fmt: skip
            elif top - area.bottom >= width + 6:
                canvas.text(
                    x + bar / 2,
                    top - 3,
                    text,
                    size,
                    ink_on(fill),
                    "right",
                    "center",
                    90.0,
                    canvas.mark,
                )
            else:
                canvas.text(
                    x + bar / 2, top + 3, text, size, style.ink, "left", "center", 90.0, canvas.mark
                )
    plot.category_labels(canvas, style, table.categories, xs, area.bottom, rotation)
