"""Slices of a ring."""

from __future__ import annotations

from diptych.synthetic.charts.canvas import Box, Canvas
from diptych.synthetic.charts.kinds import pie
from diptych.synthetic.charts.style import Style
from diptych.synthetic.charts.table import Table

NAME = {"en": "donut chart", "zh": "环形图"}
ITEM = {"en": "segments", "zh": "扇区"}
MARK = {"en": "segment", "zh": "个扇区"}
ALONG = ""
CATEGORIES = (3, 6)
SERIES = (1, 1)
AXIS = False
COLOUR_OF = ("category",)


def draw(canvas: Canvas, table: Table, style: Style, box: Box) -> None:
    """See `kind.py`."""
    pie.slices(canvas, table, style, box, 0.4 + 0.15 * (style.fill < 0.7))
