"""Chart: one picture with its table, description and questions, made from (seed, index) alone."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby

from diptych.synthetic.charts import invent, plot, questions, style
from diptych.synthetic.charts import kind as kinds
from diptych.synthetic.charts.canvas import Canvas, Drawn
from diptych.synthetic.charts.describe import describe
from diptych.synthetic.charts.operations import Unanswerable, answer
from diptych.synthetic.charts.questions import Question
from diptych.synthetic.charts.reading.working import (
    amount,
    cell,
    column,
    extreme,
    name_at,
    named,
    number,
    places,
    rank,
    size,
    value,
)
from diptych.synthetic.charts.table import Table
from diptych.synthetic.charts.topics import Lists, lists
from diptych.synthetic.charts.writer import Writer

Region = tuple[str, float, float, float, float, str]


@dataclass(frozen=True, slots=True)
class Chart:
    """Everything about one chart.

    Attributes:
        png: the encoded picture.
        regions: (words, left, top, right, bottom, text) of every word in the picture and of every
            shape that carries data, in fractions of width and height from the upper left corner;
            see `regions`.
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


def regions(canvas: Canvas, table: Table, looks: style.Style) -> list[Region]:
    """What stands where: every word, every name and every shape with data.

    A name or a shape is told with what it is, and with what it is looked up for as far as the
    picture shows it: its colour, its place in the row, its rank, whether it is the largest or
    smallest. `working` has the words; all of a region's words hold in all of its box.
    """
    shown = style.COLOUR_NAMES[table.language]
    fills = {looks.shades[name]: shown[name] for name in table.colours}
    about = _names(table, shown)
    found: list[Region | None] = []
    for line, parts in lines(canvas):
        if line and parts[0].mark:
            told = [value(table, *parts[0].mark), *number(line)]
            found.append(region(canvas, told, line, parts))
        elif line in about:
            found.append(region(canvas, [line, *about[line]], line, parts))
        elif told := number(line):
            found.append(region(canvas, told, line, parts))
        elif line:
            found += [region(canvas, [part.word], part.word, [part]) for part in parts]
        else:
            for part in parts:
                if part.fill in fills:
                    told = _mark(table, *part.mark) if part.mark else []
                    found.append(region(canvas, [fills[part.fill], "isMark", *told], "", [part]))
    return [r for r in found if r is not None]


def lines(canvas: Canvas) -> Iterator[tuple[str, list[Drawn]]]:
    """What was drawn one after the other: the words of a line of text, or shapes (`""`)."""
    for (line, _), parts in groupby(canvas.drawn, key=lambda d: (d.line, d.line and d.mark)):
        yield line, list(parts)


def region(canvas: Canvas, words: list[str], text: str, parts: list[Drawn]) -> Region | None:
    """Words told of a place, and the text that is written there; None outside of the picture.

    What reaches out of the picture is told up to its edge.
    """
    left, right = min(d.box.left for d in parts), max(d.box.right for d in parts)
    bottom, top = min(d.box.bottom for d in parts), max(d.box.top for d in parts)
    left, right = (round(min(max(at / canvas.width, 0.0), 1.0), 3) for at in (left, right))
    top, bottom = (round(min(max(1 - at / canvas.height, 0.0), 1.0), 3) for at in (top, bottom))
    return (
        (" ".join(words), left, top, right, bottom, text) if left < right and top < bottom else None
    )


def _names(table: Table, shown: dict[str, str]) -> dict[str, list[str]]:
    """Categories and series with what is known of them."""
    about: dict[str, list[str]] = {name: ["isSeries"] for name in table.series}
    for index, name in enumerate(table.series):
        about[name] += column(table, index)
    about |= {name: ["isName"] for name in table.categories}
    # Names in a row do not show the colours of their marks.
    if table.colour_of == "series" or (table.colour_of == "category" and not places(table, 0)):
        names = table.categories if table.colour_of == "category" else table.series
        for index, (name, colour) in enumerate(zip(names, table.colours, strict=True)):
            about[name] += [shown[colour], named(table, index)]
    for index, name in enumerate(table.categories):
        if where := places(table, index):
            about[name] += [*where, name_at(table, index)]
    return about


def _mark(table: Table, series: int, category: int) -> list[str]:
    """A shape with data: its place, which of several series it belongs to, and its standing."""
    words = list(places(table, category)) or [amount(table)]
    if len(table.series) > 1 and table.colour_of == "series":
        words.append(cell(table, series, category))
    if table.kind == "scatter":  # stands for a value on either axis
        return words
    words.append(size(table, series, category))
    words += _standing(table, series, category)
    if table.kind == "stacked_bar" and series == len(table.series) - 1:  # the top of the stack
        words += _standing(table, None, category)
    return words


def _standing(table: Table, series: int | None, category: int) -> list[str]:
    """Rank of a mark in its series (None: of its stack); `largest` or `smallest` where it is that
    beyond doubt."""
    if table.order == "stages":  # values fall from each stage to the next
        return []
    words = []
    many = series is not None and len(table.series) > 1
    which = {"series": table.series[series or 0]} if many else {}
    with suppress(Unanswerable):
        words.append(rank(table, series, category))
    for op in ("max", "min"):
        with suppress(Unanswerable):  # too close to call: neither word is true of it
            if answer(table, {"op": op, **which}) == table.categories[category]:
                words.append(extreme(table, series, op))
    return words
