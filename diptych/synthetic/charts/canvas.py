"""Canvas: shapes and text at pixel positions, drawn by matplotlib's Agg renderer.

Charts are laid out in pixels and drawn with figure-level artists only. That keeps a chart
near 10 ms (matplotlib's own axes and layout engines take several times that) and lets every
kind know where its texts stand, so that nothing overlaps or is cut off.
"""

from __future__ import annotations

import io
import math
import re
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Polygon, Rectangle, Wedge
from matplotlib.text import Text
from matplotlib.transforms import IdentityTransform
from PIL import Image

Align = Literal["left", "center", "right"]
Vertical = Literal["bottom", "center", "top"]
Dash = Literal["-", "--", ":", ""]
DPI = 72  # one point is one pixel: font sizes are pixel sizes
CHINESE_FONT = Path(__file__).parents[2] / "fonts" / "NotoSansSC-subset.otf"
_WORDS = re.compile(r"[\u2e80-\uffff]|[^\s\u2e80-\uffff]+")
_BUNDLED = {
    "sans": "DejaVuSans.ttf",
    "bold": "DejaVuSans-Bold.ttf",
    "serif": "DejaVuSerif.ttf",
    "mono": "DejaVuSansMono.ttf",
    "stix": "STIXGeneral.ttf",
}
FONTS = {"en": ("sans", "sans", "bold", "serif", "mono", "stix"), "zh": ("chinese",)}


class Box(NamedTuple):
    """A rectangle in pixels, y upwards."""

    left: float
    bottom: float
    right: float
    top: float

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def height(self) -> float:
        return self.top - self.bottom


def font_path(name: str) -> Path:
    """File of a font of `FONTS`."""
    if name == "chinese":
        return CHINESE_FONT
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / _BUNDLED[name]


@cache
def glyphs(name: str) -> frozenset[int]:
    """Code points that a font can draw."""
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(font_path(name))).get_charmap())


def drawable(text: str, language: str) -> bool:
    """Whether every font of the language has every character of the text."""
    codes = {ord(character) for character in text}
    return all(codes <= glyphs(name) for name in set(FONTS[language]))


@cache
def _properties(font: str, size: float) -> FontProperties:
    return FontProperties(fname=str(font_path(font)), size=size)


@cache
def _renderer():
    return FigureCanvasAgg(Figure(dpi=DPI)).get_renderer()


@lru_cache(4096)
def _text_size(text: str, font: str, size: float) -> tuple[float, float]:
    width, height, _ = _renderer().get_text_width_height_descent(
        text, _properties(font, size), False
    )
    return width, height


class Drawn(NamedTuple):
    """A word or a filled shape that stands in the picture, with the box around it.

    Attributes:
        line: the whole line of text that the word belongs to.
        mark: (series, category) of the table whose value the shape stands for or the text writes.
    """

    word: str
    fill: str
    box: Box
    line: str = ""
    mark: tuple[int, int] | None = None


class Canvas:
    """A picture under construction; the origin is the lower left corner.

    Attributes:
        drawn: every word and every filled shape so far.
        mark: (series, category) that the next shapes stand for; set by the kinds.
    """

    def __init__(self, width_pixels: int, height_pixels: int, background: str, font: str):
        self.width, self.height, self.font = width_pixels, height_pixels, font
        self._figure = Figure(
            figsize=(width_pixels / DPI, height_pixels / DPI),
            dpi=DPI,
            facecolor=background,
        )
        self._agg = FigureCanvasAgg(self._figure)
        self._order = 0.0
        self.drawn: list[Drawn] = []
        self.mark: tuple[int, int] | None = None

    def _add(self, artist) -> None:
        # Later calls cover earlier ones, whatever matplotlib's own order of artist types.
        self._order += 1
        artist.set_zorder(self._order)
        artist.set_transform(IdentityTransform())
        self._figure.add_artist(artist)

    def text_size(self, text: str, size: float) -> tuple[float, float]:
        """Width and height of a line of text in pixels."""
        return _text_size(text, self.font, size)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float,
        colour: str,
        align: Align = "center",
        vertical: Vertical = "center",
        rotation: float = 0.0,
        mark: tuple[int, int] | None = None,
    ) -> None:
        """One line of text; `$` and `\\` stand for themselves.

        Args:
            mark: (series, category) whose value the text writes.
        """
        self._add(
            Text(
                round(x),
                round(y),
                text,
                fontproperties=_properties(self.font, size),
                color=colour,
                horizontalalignment=align,
                verticalalignment="center_baseline" if vertical == "center" else vertical,
                rotation=rotation,
                rotation_mode="anchor",
                parse_math=False,
            )
        )
        self._note_words(x, y, text, size, align, vertical, rotation, mark)

    def _note_words(
        self, x: float, y: float, text: str, size: float, align: Align, vertical: Vertical,
        rotation: float, mark: tuple[int, int] | None,
    ) -> None:  # fmt: skip
        """Boxes of the words (in Chinese: characters) of a line, also of a turned one."""
        width, height = self.text_size(text, size)
        start = {"left": 0.0, "center": -width / 2, "right": -width}[align]
        middle = {"top": -height / 2, "bottom": height / 2, "center": 0.0}[vertical]
        # Advances are taken as equal but for wide characters: good to a fraction of a letter.
        widths = [2.0 if ord(character) > 0x2E7F else 1.0 for character in text]
        scale = width / sum(widths) if widths else 0.0
        along = math.radians(rotation)
        cos, sin = math.cos(along), math.sin(along)
        for match in _WORDS.finditer(text):
            left = start + scale * sum(widths[: match.start()])
            right = left + scale * sum(widths[match.start() : match.end()])
            at = (left + right) / 2
            across, up = x + at * cos - middle * sin, y + at * sin + middle * cos
            half_x = ((right - left) * abs(cos) + height * abs(sin)) / 2
            half_y = ((right - left) * abs(sin) + height * abs(cos)) / 2
            box = Box(across - half_x, up - half_y, across + half_x, up + half_y)
            self.drawn.append(Drawn(match.group(), "", box, line=text, mark=mark))

    def _note(self, fill: str | None, box: Box) -> None:
        if fill:
            self.drawn.append(Drawn("", fill, box, mark=self.mark))

    def rectangle(self, box: Box, fill: str | None, edge: str | None = None, line: float = 1.0):
        """A filled or outlined rectangle."""
        self._note(fill, box)
        self._add(
            Rectangle(
                (box.left, box.bottom),
                box.width,
                box.height,
                facecolor=fill or "none",
                edgecolor=edge or "none",
                linewidth=line,
            )
        )

    def polygon(self, points: list[tuple[float, float]], fill: str, edge: str) -> None:
        """A closed, filled shape."""
        xs, ys = zip(*points, strict=True)
        self._note(fill, Box(min(xs), min(ys), max(xs), max(ys)))
        self._add(Polygon(points, closed=True, facecolor=fill, edgecolor=edge, linewidth=1))

    def wedge(
        self, x: float, y: float, radius: float, hole: float, start: float, end: float,
        fill: str, edge: str,
    ) -> None:  # fmt: skip
        """A slice between two angles in degrees, counter-clockwise from three o'clock."""
        width = radius - hole if hole else None
        # Boxes along the middle of the slice: one around all of it would hold its neighbours.
        middle, half = (radius + hole) / 2, 0.2 * radius
        steps = max(1, round((end - start) / 30))
        for step in range(steps):
            angle = math.radians(start + (end - start) * (step + 0.5) / steps)
            at_x, at_y = x + middle * math.cos(angle), y + middle * math.sin(angle)
            self._note(fill, Box(at_x - half, at_y - half, at_x + half, at_y + half))
        self._add(
            Wedge(
                (x, y),
                radius,
                start,
                end,
                width=width,
                facecolor=fill,
                edgecolor=edge,
                linewidth=1,
            )
        )

    def line(
        self,
        points: list[tuple[float, float]],
        colour: str,
        width: float = 1.0,
        dash: Dash = "-",
    ) -> None:
        """A polyline; `dash` as matplotlib's line styles."""
        xs, ys = zip(*points, strict=True)
        self._add(Line2D(xs, ys, color=colour, linewidth=width, linestyle=dash))

    def marker(self, x: float, y: float, shape: str, size: float, fill: str, edge: str) -> None:
        """A dot (`o`), square (`s`), triangle (`^`) or diamond (`D`)."""
        self._note(fill, Box(x - size / 2, y - size / 2, x + size / 2, y + size / 2))
        if shape == "o":
            self._add(Circle((x, y), size / 2, facecolor=fill, edgecolor=edge, linewidth=0.8))
            return
        self._add(
            Line2D(
                [x], [y], marker=shape, markersize=size, color=fill, markeredgecolor=edge,
                markeredgewidth=0.8, linestyle="none",
            )
        )  # fmt: skip

    def png(self) -> bytes:
        """The finished picture, RGB."""
        self._agg.draw()
        picture = Image.frombuffer(
            "RGBA",
            (self.width, self.height),
            self._agg.buffer_rgba(),
            "raw",
            "RGBA",
            0,
            1,
        ).convert("RGB")
        out = io.BytesIO()
        picture.save(out, "png", compress_level=6)
        return out.getvalue()
