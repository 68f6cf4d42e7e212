"""The bare table, in rows and columns."""

from __future__ import annotations

from diptych.synthetic.charts.canvas import Box, Canvas
from diptych.synthetic.charts.style import Style
from diptych.synthetic.charts.table import Table

NAME = {"en": "table", "zh": "表格"}
ITEM = {"en": "rows below the header", "zh": "行数据"}
MARK = {"en": "row", "zh": "行"}
ALONG = "down"
CATEGORIES = (3, 7)
SERIES = (1, 3)
AXIS = False
COLOUR_OF = ("none",)


def draw(canvas: Canvas, table: Table, style: Style, box: Box) -> None:
    """See `kind.py`."""
    size = style.text_size
    columns = [(table.axis, *table.categories)]
    for series, name in enumerate(table.series):
        texts = [table.text(series, c) for c in range(len(table.categories))]
        columns.append((name, *texts))
    needs = [max(canvas.text_size(text, size)[0] for text in column) + 8 for column in columns]
    spare = max(0.0, box.width - sum(needs)) / len(needs)
    height = min(box.height / len(columns[0]), size * 2.2)
    rows = len(columns[0])
    bottom = box.top - height * rows
    if style.fill > 0.7:
        canvas.rectangle(box._replace(bottom=box.top - height), style.grid_colour)
    left = box.left
    for number, (column, need) in enumerate(zip(columns, needs, strict=True)):
        width = need + spare
        for row, text in enumerate(column):
            y = box.top - height * (row + 0.5)
            mark = (number - 1, row - 1) if number and row else None
            if number == 0:
                canvas.text(left + 4, y, text, size, style.ink, "left")
            elif style.label_inside:
                canvas.text(left + width - 4, y, text, size, style.ink, "right", mark=mark)
            else:
                canvas.text(left + width / 2, y, text, size, style.ink, mark=mark)
        if style.frame == "full" and number:
            canvas.line([(left, bottom), (left, box.top)], style.grid_colour)
        left += width
    for row in range(rows + 1):
        if style.grid or row in (0, 1, rows):
            y = box.top - height * row
            colour = style.ink if row in (0, 1, rows) else style.grid_colour
            canvas.line([(box.left, y), (box.right, y)], colour, 0.8)
