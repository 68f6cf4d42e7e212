"""Vertical bars."""

from __future__ import annotations

from diptych.synthetic.charts import plot
from diptych.synthetic.charts.canvas import Box, Canvas
from diptych.synthetic.charts.style import Style, ink_on
from diptych.synthetic.charts.table import Table

NAME = {"en": "vertical bar chart", "zh": "柱状图"}
ITEM = {"en": "bars", "zh": "柱子"}
MARK = {"en": "bar", "zh": "根柱子"}
ALONG = "right"
CATEGORIES = (3, 7)
SERIES = (1, 1)
AXIS = True
COLOUR_OF = ("all", "category")


def draw(canvas: Canvas, table: Table, style: Style, box: Box) -> None:
    """See `kind.py`."""
    box = plot.measure(canvas, table, style, box)
    number = len(table.categories)
    room, rotation = plot.category_room(canvas, style, table.categories, (box.width - 30) / number)
    area, place = plot.value_axis(canvas, table, style, box._replace(bottom=box.bottom + room))
    xs = plot.slots(area.left, area.right, number)
    half = (xs[1] - xs[0]) * style.fill / 2
    for index, (x, fill) in enumerate(zip(xs, plot.fills(table, style), strict=True)):
        top = place(table.values[0][index])
        canvas.mark = (0, index)
        canvas.rectangle(Box(x - half, area.bottom, x + half, top), fill)
        if not table.labelled:
            continue
        text = table.text(0, index)
        size = style.text_size
        width = canvas.text_size(text, size)[0]
        if width <= 2 * half - 1 and style.label_inside and top - area.bottom > size + 6:
            canvas.text(x, top - 3, text, size, ink_on(fill), "center", "top", mark=(0, index))
        elif width <= 2 * half / style.fill - 1:
            canvas.text(x, top + 2, text, size, style.ink, "center", "bottom", mark=(0, index))
        else:
            _upright(canvas, style, x, top, area, text, fill, (0, index))
    plot.category_labels(canvas, style, table.categories, xs, area.bottom, rotation)


def _upright(
    canvas: Canvas, style: Style, x: float, top: float, area: Box, text: str, fill: str,
    mark: tuple[int, int],
) -> None:  # fmt: skip
    # A number wider than its bar stands upright, in the bar where there is room.
    width = canvas.text_size(text, style.text_size)[0]
    if top - area.bottom >= width + 6:
        canvas.text(x, top - 3, text, style.text_size, ink_on(fill), "right", "center", 90.0, mark)
    else:
        canvas.text(x, top + 3, text, style.text_size, style.ink, "left", "center", 90.0, mark)
