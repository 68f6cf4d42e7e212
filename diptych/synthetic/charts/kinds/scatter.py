"""Named points over two value axes."""

from __future__ import annotations

from diptych.synthetic.charts import plot
from diptych.synthetic.charts.canvas import Box, Canvas
from diptych.synthetic.charts.style import Style
from diptych.synthetic.charts.table import Table

NAME = {"en": "scatter plot", "zh": "散点图"}
ITEM = {"en": "points", "zh": "个点"}
MARK = {"en": "point", "zh": "个点"}
ALONG = ""
CATEGORIES = (4, 6)
SERIES = (2, 2)
AXIS = True
COLOUR_OF = ("category",)


def draw(canvas: Canvas, table: Table, style: Style, box: Box) -> None:
    """See `kind.py`."""
    colours = plot.fills(table, style)
    entries = list(zip(table.categories, colours, strict=True))
    box = plot.legend(canvas, style, box, entries, style.marker)
    size = style.text_size
    canvas.text(box.left, box.top, table.series[1], size, style.ink, "left", "top")
    canvas.text((box.left + box.right) / 2, box.bottom, table.series[0], size, style.ink,
                "center", "bottom")  # fmt: skip
    box = box._replace(top=box.top - size - 4, bottom=box.bottom + size + 4)
    texts = [table.scales[1].text(tick) for tick in table.ticks[1]]
    left = max(canvas.text_size(text, size)[0] for text in texts)
    across, place_x = plot.value_axis(
        canvas, table, style, box._replace(left=box.left + left + 3), upright=False
    )
    upright = across._replace(left=box.left, top=across.top + 2)
    _, place_y = plot.value_axis(canvas, table, style, upright, index=1)
    edge = "#e8e8e8" if style.dark else "#333333"
    for index, (x, y, fill) in enumerate(zip(*table.values, colours, strict=True)):
        canvas.mark = (0, index)
        canvas.marker(place_x(x), place_y(y), style.marker, 8.0, fill, edge)
