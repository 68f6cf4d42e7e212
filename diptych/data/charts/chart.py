"""Chart: one picture with its table, description and questions, made from (seed, index) alone."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from itertools import groupby

from diptych.data.charts import invent, plot, questions, style
from diptych.data.charts import kind as kinds
from diptych.data.charts.canvas import Box, Canvas
from diptych.data.charts.describe import describe
from diptych.data.charts.operations import Unanswerable, answer
from diptych.data.charts.questions import Question
from diptych.data.charts.table import Table
from diptych.data.charts.topics import Lists, lists
from diptych.data.charts.writer import Writer

Region = tuple[str, float, float, float, float]


@dataclass(frozen=True, slots=True)
class Chart:
    """Everything about one chart.

    Attributes:
        png: the encoded picture.
        regions: (text, left, top, right, bottom) of every word in the picture and of every shape
            that carries data, in fractions of width and height from the upper left corner; see
            `regions`.
        discarded: what a writer wrote and the table did not bear out, counted by reason.
    """

    table: Table
    description: str
    questions: list[Question]
    png: bytes
    regions: list[Region] = field(default_factory=list)
    discarded: Counter[str] = field(default_factory=Counter)


def make(
    seed: int,
    index: int,
    attempt: int,
    side_pixels: int,
    languages: tuple[str, ...],
    writer: Writer | None = None,
    extra: dict[str, Lists] | None = None,
) -> Chart:
    """The chart number `index` of a set; `attempt` counts redraws of tables that exist already.

    Kinds and languages take turns, so that every set is balanced. `extra` are a writer's topics
    per language; a chart takes one of them with probability 1/2.
    """
    rng = random.Random(f"{seed}/{index}/{attempt}")
    names = kinds.names()
    name = names[index % len(names)]
    language = languages[index // len(names) % len(languages)]
    kind = kinds.find(name)
    looks = style.invent(rng, language, side_pixels)
    source = lists(language)
    written = extra.get(language) if extra else None
    if written and invent.fits(name, written) and rng.random() < 0.5:
        source = written
    table, pool = invent.invent(rng, name, kind, language, source, looks.dark)
    discarded: Counter[str] = Counter()
    description = describe(rng, table)
    asked = questions.ask(rng, table, pool)
    if writer:
        description = writer.describe(table, discarded) or description
        written_questions = writer.ask(table, discarded)
        texts = {question.text for question in written_questions}
        rest = [question for question in asked if question.text not in texts]
        asked = (written_questions + rest)[: max(len(asked), len(written_questions))]
    canvas = picture(table, looks)
    return Chart(table, description, asked, canvas.png(), regions(canvas, table, looks), discarded)


def picture(table: Table, looks: style.Style) -> Canvas:
    """The chart, drawn."""
    canvas = Canvas(looks.width, looks.height, looks.background, looks.font)
    box = plot.title(canvas, table, looks)
    kinds.find(table.kind).draw(canvas, table, looks, box)
    return canvas


EXTREMES = {"en": {"max": "largest", "min": "smallest"}, "zh": {"max": "最大", "min": "最小"}}


def regions(canvas: Canvas, table: Table, looks: style.Style) -> list[Region]:
    """What stands where: every word, every name and every shape with data.

    A name or a shape is told with what it is looked up for: its colour, its place in the row
    ("2" is the second from the left or top), whether it is the largest or smallest; all in one
    place, as far as the picture shows it.
    """
    shown = style.COLOUR_NAMES[table.language]
    fills = {looks.shades[name]: shown[name] for name in table.colours}
    about = _names(table, shown)
    found: list[Region] = []
    for line, group in groupby(canvas.drawn, key=lambda drawn: drawn.line):
        parts = list(group)
        if line in about:
            box = Box(
                min(d.box.left for d in parts), min(d.box.bottom for d in parts),
                max(d.box.right for d in parts), max(d.box.top for d in parts),
            )  # fmt: skip
            told = [([line, *about[line]], box)]
        elif line:
            told = [([drawn.word], drawn.box) for drawn in parts]
        else:
            told = [
                ([fills[d.fill], *(_about(table, *d.mark) if d.mark else ())], d.box)
                for d in parts
                if d.fill in fills
            ]
        found += [_region(canvas, words, box) for words, box in told]
    # What reaches out of the picture is told up to its edge, and not at all beyond.
    return [r for r in found if r[1] < r[3] and r[2] < r[4]]


def _region(canvas: Canvas, words: list[str], box: Box) -> Region:
    left, right = (min(max(at / canvas.width, 0.0), 1.0) for at in (box.left, box.right))
    top, bottom = (min(max(1 - at / canvas.height, 0.0), 1.0) for at in (box.top, box.bottom))
    return (" ".join(words), round(left, 3), round(top, 3), round(right, 3), round(bottom, 3))


def _names(table: Table, shown: dict[str, str]) -> dict[str, list[str]]:
    """Categories and series with what is known of them."""
    about: dict[str, list[str]] = {name: [] for name in (*table.categories, *table.series)}
    if table.colour_of in ("category", "series"):
        names = table.categories if table.colour_of == "category" else table.series
        for name, colour in zip(names, table.colours, strict=True):
            about[name].append(shown[colour])
    for number, name in enumerate(table.categories):
        about[name] += _about(table, 0, number) if len(table.series) == 1 else _place(table, number)
    return about


def _place(table: Table, category: int) -> list[str]:
    """The number of a category in its row, where the kind has rows."""
    return [str(category + 1)] if kinds.find(table.kind).ALONG else []


def _about(table: Table, series: int, category: int) -> list[str]:
    """Place of a mark, and `largest` or `smallest` where it is that beyond doubt in its series."""
    words = _place(table, category)
    if table.order != "stages":
        which = {"series": table.series[series]} if len(table.series) > 1 else {}
        for op, word in EXTREMES[table.language].items():
            try:
                if answer(table, {"op": op, **which}) == table.categories[category]:
                    words.append(word)
            except Unanswerable:  # too close to call: neither word is true of it
                continue
    return words
