"""Horizontal bars."""

from __future__ import annotations

from diptych.synthetic.charts import plot
from diptych.synthetic.charts.canvas import Box, Canvas
from diptych.synthetic.charts.style import Style, ink_on
from diptych.synthetic.charts.table import Table

NAME = {"en": "horizontal bar chart", "zh": "条形图"}
ITEM = {"en": "bars", "zh": "条形"}
MARK = {"en": "bar", "zh": "根条形"}
ALONG = "down"
CATEGORIES = (3, 8)
SERIES = (1, 1)
AXIS = True
COLOUR_OF = ("all", "category")


def draw(canvas: Canvas, table: Table, style: Style, box: Box) -> None:
    """See `kind.py`."""
    box = plot.measure(canvas, table, style, box)
    size = style.text_size
    names = max(canvas.text_size(name, size)[0] for name in table.categories)
    # Room on the right for a number beyond the longest bar.
    widest = max(canvas.text_size(table.text(0, i), size)[0] for i in range(len(table.categories)))
    right = box.right - (max(0.0, widest - 0.1 * box.width) if table.labelled else 0)
    area, place = plot.value_axis(
        canvas,
        table,
        style,
        box._replace(left=box.left + names + 4, right=right),
        upright=False,
    )
    ys = plot.slots(area.top, area.bottom, len(table.categories))
    half = abs(ys[1] - ys[0]) * style.fill / 2
    for index, (y, fill) in enumerate(zip(ys, plot.fills(table, style), strict=True)):
        end = place(table.values[0][index])
        canvas.mark = (0, index)
        canvas.rectangle(Box(area.left, y - half, end, y + half), fill)
        canvas.text(area.left - 4, y, table.categories[index], size, style.ink, "right")
        if not table.labelled:
            continue
        text = table.text(0, index)
        inside = end - area.left > canvas.text_size(text, size)[0] + 6 and 2 * half > size
        if style.label_inside and inside:
            canvas.text(end - 3, y, text, size, ink_on(fill), "right", mark=(0, index))
        else:
            canvas.text(end + 3, y, text, size, style.ink, "left", mark=(0, index))
