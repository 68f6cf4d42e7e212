"""Page: a picture full of the words that charts are made of, to learn reading by.

A chart shows a dozen words, a page of the same size some fifty, in the same fonts, sizes and
colours, upright and turned as on an axis, some behind a coloured mark as in a legend. An
encoder that learns from scratch reads several times as many words in the same time.
"""

from __future__ import annotations

import random
from functools import cache

from diptych.synthetic.charts import style
from diptych.synthetic.charts.canvas import Box, Canvas
from diptych.synthetic.charts.chart import Region, lines, region
from diptych.synthetic.charts.reading.working import number
from diptych.synthetic.charts.topics import Scale, lists

EDGE = 4
"""Pixels that stay free at the edges."""


def make(
    seed: int, index: int, side_pixels: int, languages: tuple[str, ...]
) -> tuple[bytes, list[Region]]:
    """The page number `index` of a set: the encoded picture, and what stands where."""
    rng = random.Random(f"page {seed}/{index}")
    language = languages[index % len(languages)]
    looks = style.invent(rng, language, side_pixels)
    canvas = Canvas(looks.width, looks.height, looks.background, looks.font)
    rotation = rng.choice((0.0, 0.0, 0.0, 0.0, 0.0, 45.0, 90.0))
    (_turned if rotation else _level)(canvas, rng, looks, language, rotation)
    return canvas.png(), _regions(canvas, looks, language)


@cache
def _vocabulary(language: str) -> tuple[tuple[str, ...], tuple[str, ...], tuple[Scale, ...]]:
    """Names of categories and series, words of titles, number formats."""
    known = lists(language)
    names = {name for topic in known.topics for name in topic.categories}
    names |= {name for group in known.series for name in group}
    titles = {word for topic in known.topics for title in topic.titles for word in title.split()}
    scales = tuple(scale for topic in known.topics for scale in topic.scales)
    return tuple(sorted(names)), tuple(sorted(titles)), scales


def _word(rng: random.Random, language: str) -> str:
    names, titles, scales = _vocabulary(language)
    kind = rng.random()
    if kind < 0.65:
        return rng.choice(names)
    if kind < 0.75:
        return rng.choice(titles)
    scale = rng.choice(scales)
    return scale.text(rng.uniform(scale.low, scale.high))


def _level(canvas: Canvas, rng: random.Random, looks: style.Style, language: str, _: float) -> None:
    """Lines of words; three in ten stand behind a mark of some colour."""
    size, y = looks.text_size, float(canvas.height - EDGE)
    shades = [s for name, s in looks.shades.items() if not (looks.dark and name == "black")]
    while y > size + EDGE:
        x = EDGE + rng.uniform(0, 20)
        while True:
            word, marked = _word(rng, language), rng.random() < 0.3
            width = canvas.text_size(word, size)[0] + (size + 1 if marked else 0)
            if x + width > canvas.width - 2:
                break
            at, half = x, size * 0.4
            if marked:
                fill, middle = rng.choice(shades), y - size / 2
                if rng.random() < 0.5:
                    canvas.rectangle(Box(x, middle - half, x + 2 * half, middle + half), fill)
                else:
                    canvas.marker(x + half, middle, looks.marker, 2 * half, fill, looks.ink)
                at += size + 1
            canvas.text(at, y - size / 2, word, size, looks.ink, "left")
            x += width + rng.uniform(5, 18)
        y -= size + rng.uniform(2, 9)


def _turned(
    canvas: Canvas, rng: random.Random, looks: style.Style, language: str, rotation: float
) -> None:
    """Rows of turned words, as under an axis with many categories."""
    size, y = looks.text_size, float(canvas.height - EDGE)
    upright = rotation == 90.0
    gap = size * (1.5 if upright else 2.0)
    while y > 40:
        x, longest = gap + (10 if upright else 30), 0.0
        while x < canvas.width - EDGE:
            word = _word(rng, language)
            canvas.text(
                x, y, word, size, looks.ink, "right", "center" if upright else "top", rotation
            )
            longest = max(longest, canvas.text_size(word, size)[0])
            x += gap + rng.uniform(0, 8)
        y -= longest * (1.0 if upright else 0.75) + 8


def _regions(canvas: Canvas, looks: style.Style, language: str) -> list[Region]:
    shown = {looks.shades[name]: word for name, word in style.COLOUR_NAMES[language].items()}
    names = set(_vocabulary(language)[0])
    found: list[Region | None] = []
    behind: list[str] = []
    for line, parts in lines(canvas):
        if not line:
            behind = [shown[parts[-1].fill]]
            found.append(region(canvas, [*behind, "isMark"], "", [parts[-1]]))
            continue
        if line in names:
            about = ["isSeries", *behind] if behind else []
            found.append(region(canvas, [line, *about], line, parts))
        elif told := number(line):
            found.append(region(canvas, told, line, parts))
        else:
            found += [region(canvas, [part.word], part.word, [part]) for part in parts]
        behind = []
    return [r for r in found if r is not None]
