"""Chart: one picture with its table, description and questions, made from (seed, index) alone."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from diptych.data.charts import invent, plot, questions, style
from diptych.data.charts import kind as kinds
from diptych.data.charts.canvas import Canvas
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
            that carries data (its text is the colour, the name and what else is to be seen of
            it), in fractions of width and height from the upper left corner.
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
    """What stands where: every word, and what is known of every shape that carries data."""
    names = {looks.shades[name]: style.COLOUR_NAMES[table.language][name] for name in table.colours}
    about = {mark: _about(table, *mark) for mark in {drawn.mark for drawn in canvas.drawn} if mark}
    found = []
    for word, fill, box, mark in canvas.drawn:
        text = word
        if fill in names:
            text = " ".join((names[fill], *(about[mark] if mark else ())))
        if text:
            left, right = (min(max(at / canvas.width, 0.0), 1.0) for at in (box.left, box.right))
            top, bottom = (
                min(max(1 - at / canvas.height, 0.0), 1.0) for at in (box.top, box.bottom)
            )
            found.append((text, round(left, 3), round(top, 3), round(right, 3), round(bottom, 3)))
    return found


def _about(table: Table, series: int, category: int) -> list[str]:
    """A mark's category, series and number, as far as they are shown, and if it is extreme."""
    words = [table.categories[category]]
    if len(table.series) > 1 and table.kind != "scatter":
        words.append(table.series[series])
    if table.labelled:
        words.append(table.text(series, category))
    if len(table.series) == 1 and table.order != "stages":
        for op, word in EXTREMES[table.language].items():
            try:
                if answer(table, {"op": op}) == table.categories[category]:
                    words.append(word)
            except Unanswerable:  # too close to call: neither word is true of it
                continue
    return words
