"""Style: everything about a picture that is not data; drawn at random for every chart."""

from __future__ import annotations

import random
from dataclasses import dataclass

from diptych.synthetic.charts.canvas import FONTS, Align, Dash

# Shades that anyone would call by the name; several per name, so that palettes differ.
SHADES = {
    "red": ("#d62728", "#e6261f", "#c8102e"),
    "orange": ("#ff7f0e", "#f58518", "#ff8c1a"),
    "yellow": ("#f5d000", "#ffdd33", "#f2c900"),
    "green": ("#2ca02c", "#1a8f3c", "#3cab3c"),
    "blue": ("#1f5fd0", "#2b6cd4", "#1f77d4"),
    "purple": ("#7b2fbe", "#8338b0", "#6a2ca0"),
    "pink": ("#ff7eb9", "#ff8fc4", "#f77fbe"),
    "brown": ("#7b4a21", "#8b5a2b", "#6f4018"),
    "grey": ("#8c8c8c", "#999999", "#808080"),
    "black": ("#111111", "#1c1c1c", "#000000"),
}
COLOUR_NAMES = {
    "en": {name: name for name in SHADES},
    "zh": {
        "red": "红色", "orange": "橙色", "yellow": "黄色", "green": "绿色", "blue": "蓝色",
        "purple": "紫色", "pink": "粉色", "brown": "棕色", "grey": "灰色", "black": "黑色",
    },
}  # fmt: skip
# Not told apart at a glance on thin lines or small dots.
CONFUSABLE = (frozenset({"red", "orange"}), frozenset({"orange", "yellow"}),
              frozenset({"brown", "red"}), frozenset({"grey", "black"}),
              frozenset({"blue", "purple"}), frozenset({"brown", "black"}))  # fmt: skip
LIGHT = {"background": "#ffffff", "ink": "#222222", "grid": "#d0d0d0"}
THEMES = (
    (5, LIGHT),
    (2, {"background": "#f7f5f0", "ink": "#222222", "grid": "#d2cfc6"}),
    (2, {"background": "#eef3f8", "ink": "#1a2a3a", "grid": "#c6d2de"}),
    (1.5, {"background": "#20242c", "ink": "#f0f0f0", "grid": "#4a505c"}),
)


@dataclass(frozen=True, slots=True)
class Style:
    """How one chart looks. Sizes in pixels; colours as `#rrggbb`."""

    width: int
    height: int
    font: str
    text_size: float
    title_size: float
    title_align: Align
    background: str
    ink: str
    grid_colour: str
    grid: Dash
    frame: str
    legend: str
    fill: float
    marker: str
    line_width: float
    start_angle: float
    label_inside: bool
    show_axis: bool
    show_measure: bool
    shades: dict[str, str]

    @property
    def dark(self) -> bool:
        """Whether light text stands on a dark ground."""
        return self.background == THEMES[-1][1]["background"]


def invent(rng: random.Random, language: str, side_pixels: int) -> Style:
    """A random style; `side_pixels` is the nominal side, varied by a quarter either way."""
    theme = rng.choices([t for _, t in THEMES], [w for w, _ in THEMES])[0]
    scale = max(1.0, side_pixels / 224) if side_pixels > 224 else 1.0
    text = rng.uniform(10.0, 11.5) if language == "zh" else rng.uniform(9.0, 10.5)
    text = round(text * scale * 2) / 2
    return Style(
        width=round(side_pixels * rng.uniform(0.95, 1.25)),
        height=round(side_pixels * rng.uniform(0.85, 1.1)),
        font=rng.choice(FONTS[language]),
        text_size=text,
        title_size=text + round(rng.uniform(1.0, 2.5) * 2) / 2,
        title_align=rng.choice(("left", "center", "center")),
        background=theme["background"],
        ink=theme["ink"],
        grid_colour=theme["grid"],
        grid=rng.choice(("-", "-", "--", ":", "")),
        frame=rng.choice(("full", "corner", "corner", "base")),
        legend=rng.choice(("top", "bottom", "right")),
        fill=rng.uniform(0.55, 0.88),
        marker=rng.choice(("o", "s", "^", "D")),
        line_width=rng.uniform(1.5, 2.6),
        start_angle=rng.choice((90.0, 0.0, rng.uniform(0, 360))),
        label_inside=rng.random() < 0.35,
        show_axis=rng.random() < 0.6,
        show_measure=rng.random() < 0.45,
        shades={name: rng.choice(shades) for name, shades in SHADES.items()},
    )


def ink_on(fill: str) -> str:
    """Black or white, whichever reads better on the fill."""
    red, green, blue = (int(fill[i : i + 2], 16) for i in (1, 3, 5))
    return "#ffffff" if 0.299 * red + 0.587 * green + 0.114 * blue < 150 else "#000000"
