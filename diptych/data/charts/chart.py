"""Chart: one picture with its table, description and questions, made from (seed, index) alone."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from diptych.data.charts import invent, plot, questions, style
from diptych.data.charts import kind as kinds
from diptych.data.charts.canvas import Canvas
from diptych.data.charts.describe import describe
from diptych.data.charts.questions import Question
from diptych.data.charts.table import Table
from diptych.data.charts.topics import Lists, lists
from diptych.data.charts.writer import Writer


@dataclass(frozen=True, slots=True)
class Chart:
    """Everything about one chart.

    Attributes:
        png: the encoded picture.
        discarded: what a writer wrote and the table did not bear out, counted by reason.
    """

    table: Table
    description: str
    questions: list[Question]
    png: bytes
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
    return Chart(table, description, asked, picture(table, looks), discarded)


def picture(table: Table, looks: style.Style) -> bytes:
    """The chart as PNG."""
    canvas = Canvas(looks.width, looks.height, looks.background, looks.font)
    box = plot.title(canvas, table, looks)
    kinds.find(table.kind).draw(canvas, table, looks, box)
    return canvas.png()
