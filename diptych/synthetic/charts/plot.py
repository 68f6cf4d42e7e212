"""What several kinds share: the title, legends, value axes and category labels."""

from __future__ import annotations

from collections.abc import Callable

from diptych.synthetic.charts.canvas import Box, Canvas
from diptych.synthetic.charts.style import Style
from diptych.synthetic.charts.table import Table

PAD = 4.0


def title(canvas: Canvas, table: Table, style: Style) -> Box:
    """Draw the title (two lines where one is too long); the box that is left for the chart."""
    text = table.title
    if table.unit and not style.show_measure:
        text += f" ({table.unit})" if table.language == "en" else f"（{table.unit}）"
    room = canvas.width - 2 * PAD
    size = style.title_size
    while size > style.text_size and canvas.text_size(text, size)[0] > room:
        size -= 0.5
    lines = [text]
    if canvas.text_size(text, size)[0] > room:
        lines = _two_lines(text)
    top = canvas.height - PAD
    for line in lines:
        x = PAD if style.title_align == "left" else canvas.width / 2
        canvas.text(x, top, line, size, style.ink, style.title_align, "top")
        top -= size + 3
    return Box(PAD, PAD, canvas.width - PAD, top - 2)


def _two_lines(text: str) -> list[str]:
    spaces = [i for i, character in enumerate(text) if character == " "]
    middle = min(spaces, key=lambda i: abs(i - len(text) / 2)) if spaces else len(text) // 2
    return [text[:middle], text[middle:].strip()]


def legend(
    canvas: Canvas,
    style: Style,
    box: Box,
    entries: list[tuple[str, str]],
    mark: str = "s",
) -> Box:
    """Draw (name, fill) entries where the style wants them; the box that is left."""
    size = style.text_size
    widths = [canvas.text_size(name, size)[0] + size + 5 for name, _ in entries]
    height = size + 4
    where = style.legend
    if where == "right" and max(widths) > 0.4 * box.width:
        where = "bottom"
    if where == "right":
        left = box.right - max(widths)
        y = box.top - (box.height - height * len(entries)) / 2
        for name, fill in entries:
            _entry(canvas, style, left, y - height / 2, name, fill, mark)
            y -= height
        return box._replace(right=left - 6)
    rows: list[list[int]] = [[]]
    for index, width in enumerate(widths):
        if rows[-1] and sum(widths[i] + 8 for i in rows[-1]) + width > box.width:
            rows.append([])
        rows[-1].append(index)
    top = box.top if where == "top" else box.bottom + height * len(rows)
    y = top
    for row in rows:
        x = box.left + max(0.0, (box.width - sum(widths[i] + 8 for i in row) + 8) / 2)
        for index in row:
            _entry(canvas, style, x, y - height / 2, *entries[index], mark)
            x += widths[index] + 8
        y -= height
    if where == "top":
        return box._replace(top=box.top - height * len(rows) - 3)
    return box._replace(bottom=top + 3)


def _entry(canvas: Canvas, style: Style, x: float, y: float, name: str, fill: str, mark: str):
    size = style.text_size
    half = size * 0.4
    if mark == "s":
        canvas.rectangle(Box(x, y - half, x + 2 * half, y + half), fill, _edge(style))
    else:
        canvas.marker(x + half, y, mark, 2 * half, fill, _edge(style))
    canvas.text(x + size + 1, y, name, size, style.ink, "left")


def _edge(style: Style) -> str:
    return "#e8e8e8" if style.dark else "#444444"


def measure(canvas: Canvas, table: Table, style: Style, box: Box) -> Box:
    """Say above the value axis what it measures, where the style wants it."""
    if not style.show_measure or len(table.series) > 1:
        if not (style.show_measure and table.unit):
            return box
        text = table.unit
    else:
        text = table.series[0]
        if table.unit:
            text += f" ({table.unit})" if table.language == "en" else f"（{table.unit}）"
    canvas.text(box.left, box.top, text, style.text_size - 0.5, style.ink, "left", "top")
    return box._replace(top=box.top - style.text_size - 5)


def value_axis(
    canvas: Canvas,
    table: Table,
    style: Style,
    box: Box,
    upright: bool = True,
    index: int = 0,
) -> tuple[Box, Callable[[float], float]]:
    """Draw ticks, grid and frame; the plot area and the map from value to pixel.

    Args:
        upright: values grow upwards; otherwise to the right.
        index: which of the table's tick rows and scales.
    """
    ticks, scale = table.ticks[index], table.scales[index]
    shown = style.show_axis or not table.labelled
    texts = [scale.text(tick) for tick in ticks] if shown else []
    size = style.text_size
    # Room beyond the last tick for labels that stand on the longest bar.
    beyond = ticks[-1] * (0.12 if table.labelled else 0.03)
    if upright:
        left = box.left + max((canvas.text_size(t, size)[0] for t in texts), default=0) + 3
        plot = box._replace(left=left, top=box.top - 2)
        start, end = plot.bottom, plot.top
    else:
        plot = box._replace(bottom=box.bottom + (size + 4 if shown else 2))
        if texts:  # the last tick's text is centred under it
            plot = plot._replace(right=plot.right - canvas.text_size(texts[-1], size)[0] / 2)
        start, end = plot.left, plot.right

    def place(value: float) -> float:
        return start + (end - start) * value / (ticks[-1] + beyond)

    room = place(ticks[1]) - place(ticks[0])
    need = size + 2 if upright else max((canvas.text_size(t, size)[0] for t in texts), default=0)
    every = 1 if room > need + 3 else 2
    for number, tick in enumerate(ticks):
        at = place(tick)
        if style.grid and shown:
            ends = (
                [(plot.left, at), (plot.right, at)]
                if upright
                else [(at, plot.bottom), (at, plot.top)]
            )
            canvas.line(ends, style.grid_colour, 0.8, style.grid)
        if shown and number % every == 0:
            mark = [(plot.left - 2, at), (plot.left, at)] if upright else [
                (at, plot.bottom - 2), (at, plot.bottom)]  # fmt: skip
            canvas.line(mark, style.ink, 0.8)
            if upright:
                canvas.text(plot.left - 3, at, texts[number], size, style.ink, "right")
            else:
                canvas.text(at, plot.bottom - 3, texts[number], size, style.ink, "center", "top")
    frame(canvas, style, plot, upright)
    return plot, place


def frame(canvas: Canvas, style: Style, plot: Box, upright: bool = True) -> None:
    """The lines around the plot area."""
    base = [(plot.left, plot.bottom), (plot.right, plot.bottom)]
    side = [(plot.left, plot.bottom), (plot.left, plot.top)]
    if style.frame == "full":
        canvas.rectangle(plot, None, style.ink, 0.8)
        return
    canvas.line(base if upright else side, style.ink, 0.9)
    if style.frame == "corner":
        canvas.line(side if upright else base, style.ink, 0.9)


def slots(start: float, end: float, number: int) -> list[float]:
    """Centres of `number` equal slots."""
    step = (end - start) / number
    return [start + step * (i + 0.5) for i in range(number)]


def category_room(canvas: Canvas, style: Style, names: tuple[str, ...], slot: float):
    """Height that category labels need under a slot of that width, and their rotation."""
    widest = max(canvas.text_size(name, style.text_size)[0] for name in names)
    if widest <= slot - 2:
        return style.text_size + 5, 0.0
    rotation = 45.0 if slot >= style.text_size * 1.5 else 90.0
    return widest * (0.71 if rotation == 45.0 else 1.0) + style.text_size * 0.8 + 3, rotation


def category_labels(
    canvas: Canvas,
    style: Style,
    names: tuple[str, ...],
    xs: list[float],
    y: float,
    rotation: float,
) -> None:
    """Names under the axis."""
    for name, x in zip(names, xs, strict=True):
        if rotation == 0.0:
            canvas.text(x, y - 3, name, style.text_size, style.ink, "center", "top")
        elif rotation == 90.0:
            canvas.text(x, y - 3, name, style.text_size, style.ink, "right", "center", 90.0)
        else:
            canvas.text(x + 3, y - 4, name, style.text_size, style.ink, "right", "top", 45.0)


def fills(table: Table, style: Style) -> list[str]:
    """Fill colour per category, or per series where the series carry the colours."""
    shades = [style.shades[name] for name in table.colours]
    if table.colour_of == "all":
        return shades * len(table.categories)
    return shades
