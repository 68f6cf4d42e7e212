"""Draw a whole set of charts: pictures, LLaVA rows, captions, tables, and the account of it all."""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from diptych.errors import ConfigError, DataError
from diptych.synthetic.charts import kind as kinds
from diptych.synthetic.charts.chart import Chart, make
from diptych.synthetic.charts.reading import word_page
from diptych.synthetic.charts.reading.drill import drills
from diptych.synthetic.charts.reading.working import shown
from diptych.synthetic.charts.reading.working import working as lookups
from diptych.synthetic.charts.topics import Lists
from diptych.synthetic.charts.writer import Writer

SPLITS = ("train", "validation", "test")
LANGUAGES = ("en", "zh")


def draw(
    out: Path,
    *,
    num: int = 2000,
    seed: int = 0,
    workers: int | None = None,
    test_fraction: float = 0.15,
    validation_fraction: float = 0.05,
    languages: Sequence[str] = LANGUAGES,
    side_pixels: int = 224,
    working: bool = False,
    pages: int = 0,
    practice: bool = False,
    writer: Writer | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Draw `num` charts into the folder `out`.

    Writes `images/`, `tables/`, `train.json`, `validation.json`, `test.json` (LLaVA rows, one
    per question), `captions_<split>.json` and `charts.json` (what is returned); with pages also
    `pages.json` (caption rows), with practice `drills.json` (LLaVA rows). Without a writer the
    same arguments give the same bytes, with any number of workers.

    Args:
        num: charts, not questions; every chart has about seven to ten.
        workers: processes; all cores by default, 1 stays in this process.
        test_fraction, validation_fraction: shares of the charts.
        languages: of `en` and `zh`, taken in turns.
        side_pixels: nominal side of a picture; each varies by about a quarter.
        working: training answers begin with what is looked up for them (see working.py); the
            answers to be tested on stay short.
        pages: pictures full of words to draw besides, to learn reading by (see word_page.py).
        practice: training charts get drills besides (see drill.py): three rows of four among the
            questions, and every fourth chart five rows in `drills.json`, to begin with.
        writer: a language model that writes topics, descriptions and questions instead.
        progress: called with (charts done, charts wanted).

    Raises:
        ConfigError: an argument out of range.
        DataError: `out` holds something already.
        WriterError: the writer could not be reached or answered nonsense.
    """
    _check(num, test_fraction, validation_fraction, languages, side_pixels)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError("the folder is not empty", where=str(out), fix="name a new folder")
    (out / "images").mkdir(parents=True)
    (out / "tables").mkdir()

    discarded: Counter[str] = Counter()
    extra: dict[str, Lists] = {}
    if writer:
        for language in languages:
            extra[language] = writer.topics(language, max(4, min(30, num // 20)), discarded)
    one = partial(
        make, side_pixels=side_pixels, languages=tuple(languages), writer=writer, extra=extra
    )
    digests: dict[str, int] = {}
    pictures: dict[str, int] = {}
    rows: list[dict[str, Any]] = []
    for index, chart in enumerate(_drawn(partial(_first, one), seed, num, workers)):
        attempt = 0
        while chart.table.digest() in digests or hashlib.sha256(chart.png).hexdigest() in pictures:
            attempt += 1
            if attempt > 50:
                raise DataError(f"no new table was found for chart {index} in {attempt} tries")
            discarded.update(chart.discarded)
            chart = one(seed, index, attempt)
        digests[chart.table.digest()] = index
        pictures[hashlib.sha256(chart.png).hexdigest()] = index
        discarded.update(chart.discarded)
        rows.append(_store(out, index, chart))
        if progress:
            progress(index + 1, num + pages)
    page_rows = []
    draw_page = partial(word_page.make, side_pixels=side_pixels, languages=tuple(languages))
    for index, (png, regions) in enumerate(_drawn(draw_page, seed, pages, workers)):
        page_rows.append(_store_page(out, index, png, regions))
        if progress:
            progress(num + index + 1, num + pages)
    if pages:
        _write(out / "pages.json", page_rows)

    splits = _split(list(digests), test_fraction, validation_fraction)
    for split in SPLITS:
        members = [row for row, name in zip(rows, splits, strict=True) if name == split]
        train = split == "train"
        questions = [
            _row(question, working and train) for row in members for question in row["rows"]
        ]
        if train and practice:
            questions = _practised(out, members, questions, seed)
        _write(out / f"{split}.json", questions)
        _write(out / f"captions_{split}.json", [row["caption"] for row in members])
    summary = {
        "settings": {
            "num": num,
            "seed": seed,
            "test_fraction": test_fraction,
            "validation_fraction": validation_fraction,
            "languages": list(languages),
            "side_pixels": side_pixels,
            "working": working,
            "pages": pages,
            "practice": practice,
            "writer": {"url": writer.url, "model": writer.model} if writer else None,
        },
        "charts": {split: splits.count(split) for split in SPLITS},
        "questions": {
            split: sum(
                len(r["rows"]) for r, name in zip(rows, splits, strict=True) if name == split
            )
            for split in SPLITS
        },
        "chart_kinds": dict(sorted(Counter(row["kind"] for row in rows).items())),
        "question_kinds": dict(
            sorted(Counter(question["kind"] for row in rows for question in row["rows"]).items())
        ),
        "language_counts": dict(sorted(Counter(row["language"] for row in rows).items())),
        "topics_written": {language: len(found.topics) for language, found in extra.items()},
        "discarded": dict(sorted((k, n) for k, n in discarded.items() if n)),
        "versions": _versions(),
    }
    _write(out / "charts.json", summary)
    return summary


def _check(num: int, test: float, validation: float, languages: Sequence[str], side: int) -> None:
    if num < 1:
        raise ConfigError(f"{num} charts cannot be drawn", where="num", fix="ask for 1 or more")
    if min(test, validation) < 0 or test + validation >= 1:
        raise ConfigError(
            f"test {test} and validation {validation} leave nothing to train on",
            where="test_fraction, validation_fraction",
            fix="choose shares of at least 0 that add up to less than 1",
        )
    unknown = [language for language in languages if language not in LANGUAGES]
    if unknown or not languages:
        raise ConfigError(
            f"no charts in {', '.join(unknown) or 'no language'}",
            where="languages",
            fix=f"choose from {', '.join(LANGUAGES)}",
        )
    if not 160 <= side <= 2048:
        raise ConfigError(f"{side} pixels", where="side_pixels", fix="choose 160 to 2048")


def _first(one: partial[Chart], seed: int, index: int) -> Chart:
    return one(seed, index, 0)


def _drawn(
    one: Callable[[int, int], Any], seed: int, num: int, workers: int | None
) -> Iterator[Any]:
    """one(seed, 0), one(seed, 1), ... in this order, by all workers."""
    workers = workers or os.cpu_count() or 1
    task = partial(one, seed)
    if workers == 1 or num < 8:
        yield from map(task, range(num))
        return
    # Forked workers start at once and need no importable main module; elsewhere that is unsafe.
    context = get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(task, range(num), chunksize=max(1, min(16, num // (workers * 4))))


def _store(out: Path, index: int, chart: Chart) -> dict[str, Any]:
    """Write picture and table; the rows that the split files need."""
    table = chart.table
    name = f"chart-{index:06d}"
    (out / "images" / f"{name}.png").write_bytes(chart.png)
    _write(out / "tables" / f"{name}.json", table.to_dict())
    rows = [
        {
            "id": f"{name}-q{number}",
            "image": f"{name}.png",
            "conversations": [
                {"from": "human", "value": f"<image>\n{question.text}"},
                {"from": "gpt", "value": question.answer},
            ],
            "kind": question.kind,
            "working": lookups(table, question.text, question.operation, question.answer),
            "chart": table.kind,
            "language": table.language,
        }
        for number, question in enumerate(chart.questions)
    ]
    caption = {
        "caption": chart.description,
        "image": f"{name}.png",
        "image_id": index,
        "regions": chart.regions,
    }
    return {"rows": rows, "caption": caption, "kind": table.kind, "language": table.language,
            "table": table}  # fmt: skip


def _row(question: dict[str, Any], with_steps: bool) -> dict[str, Any]:
    """A question's row, its answer with the working where that is to be shown."""
    row = dict(question)
    steps = row.pop("working")
    if not (with_steps and steps):
        return row
    asked, answered = row["conversations"]
    value = shown(steps, answered["value"])
    return {**row, "conversations": [asked, {**answered, "value": value}]}


DRILLS_PER_ROW, ROWS_AMONG_QUESTIONS, ROWS_FIRST = 4, 3, 5
EVERY = 4
"""Of so many charts one has drills to begin with."""


def _practised(
    out: Path, members: Sequence[dict[str, Any]], questions: list[dict[str, Any]], seed: int
) -> list[dict[str, Any]]:
    """The questions with drills among them, chart by chart; writes `drills.json`."""
    others: dict[str, set[str]] = {}
    for row in members:
        others.setdefault(row["language"], set()).update(row["table"].categories)
    names = {language: tuple(sorted(found)) for language, found in others.items()}
    asked: dict[str, list[dict[str, Any]]] = {}
    for question in questions:
        asked.setdefault(question["image"], []).append(question)
    together, first = [], []
    for number, row in enumerate(members):
        image = row["caption"]["image"]
        rng = random.Random(f"drills/{seed}/{image}")
        rows = _drill_rows(row, drills(row["table"], rng, names[row["language"]]))
        together += asked.get(image, []) + rows[:ROWS_AMONG_QUESTIONS]
        if number % EVERY == 0:
            first += rows[:ROWS_FIRST]
    _write(out / "drills.json", first)
    return together


def _drill_rows(row: dict[str, Any], found: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Rows of several drills each, one turn after the other."""
    image = row["caption"]["image"]
    rows = []
    for start in range(0, len(found), DRILLS_PER_ROW):
        turns = [
            {"from": role, "value": text}
            for asked, said in found[start : start + DRILLS_PER_ROW]
            for role, text in (("human", asked), ("gpt", said))
        ]
        turns[0]["value"] = f"<image>\n{turns[0]['value']}"
        name = f"{image.removesuffix('.png')}-d{start // DRILLS_PER_ROW}"
        rows.append({"id": name, "image": image, "conversations": turns, "kind": "drill",
                     "chart": row["kind"], "language": row["language"]})  # fmt: skip
    return rows


def _store_page(out: Path, index: int, png: bytes, regions: Sequence[Any]) -> dict[str, Any]:
    name = f"page-{index:06d}.png"
    (out / "images" / name).write_bytes(png)
    return {"caption": "A page of words.", "image": name, "image_id": index, "regions": regions}


def _split(digests: list[str], test: float, validation: float) -> list[str]:
    """Split per chart, by rank of the table's hash: tables differ, so splits share none."""
    ranked = sorted(range(len(digests)), key=digests.__getitem__)
    num_test = round(len(ranked) * test)
    num_validation = round(len(ranked) * validation)
    splits = ["train"] * len(ranked)
    for rank, index in enumerate(ranked[: num_test + num_validation]):
        splits[index] = "test" if rank < num_test else "validation"
    return splits


def _write(path: Path, content: Any) -> None:
    if isinstance(content, list):  # rows: one a line
        rows = (json.dumps(row, ensure_ascii=False) for row in content)
        text = "[\n" + ",\n".join(rows) + "\n]"
    else:
        text = json.dumps(content, ensure_ascii=False, indent=1)
    path.write_text(text + "\n", encoding="utf-8")


def _versions() -> dict[str, str]:
    import matplotlib
    import PIL

    return {
        "matplotlib": matplotlib.__version__,
        "pillow": PIL.__version__,
        "kinds": ", ".join(kinds.names()),
    }
