"""Charts: a synthetic chart-and-question set, drawn on the spot.

`draw(out)` writes pictures of charts with their tables, descriptions and question-answer pairs.
Ten kinds of charts, in English and Chinese, with varied palettes, fonts, sizes, legends, grids
and number formats. Every answer is computed from the table as displayed, and is asked only
where a person could read it off the picture. Train, validation and test share no table.

`Writer` lets a language model write topics, descriptions and questions; see `writer.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diptych.synthetic.charts.dataset import draw
    from diptych.synthetic.charts.writer import Writer

__all__ = ["Writer", "draw"]


def __getattr__(name: str) -> Any:
    # matplotlib takes a second to import; only those who draw should wait for it.
    if name == "draw":
        from diptych.synthetic.charts.dataset import draw

        return draw
    if name == "Writer":
        from diptych.synthetic.charts.writer import Writer

        return Writer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
