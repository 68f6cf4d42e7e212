"""Queries with the first five that were found, the right one marked."""

from __future__ import annotations

from typing import Any

from diptych.report.run_folder import RunFolder, dicts, number, text
from diptych.report.thumbnails import Thumbnail, thumbnail
from diptych.report.wording import count

TITLE = "What was found"
LABEL = "Found"
ORDER = 35
NEEDS = ("retrieval_after.json",)
OPTIONAL = True

IMAGE_TO_TEXT = "image to text"
MAX_EACH = 12
NUM_FOUND = 5


def view(run: RunFolder) -> dict[str, Any] | None:
    """Up to MAX_EACH queries of each way, in the order of the file."""
    ways: dict[str, list[dict[str, Any]]] = {}
    seen: dict[str, Thumbnail] = {}

    def picture(name: str) -> Thumbnail:
        if name not in seen:
            seen[name] = thumbnail(run.images, name)
        return seen[name]

    before = {_key(e): e for e in dicts(run.tree("retrieval_before.json").get("examples"))}
    for example in dicts(run.tree("retrieval_after.json").get("examples")):
        way, query = _key(example)
        found = [f for f in example.get("found") or [] if isinstance(f, list) and len(f) == 2]
        queries = ways.setdefault(way, [])
        if len(queries) == MAX_EACH or not found:
            continue
        shows = way == IMAGE_TO_TEXT
        old = number(before.get((way, query), {}).get("rank"))
        queries.append(
            {
                "text": "" if shows else query,
                "picture": picture(query) if shows else None,
                "found": [
                    {
                        "text": text(what) if shows else "",
                        "picture": None if shows else picture(str(what)),
                        "right": right is True,
                    }
                    for what, right in found[:NUM_FOUND]
                ],
                "rank": count(number(example.get("rank"))),
                "before": count(old) if old is not None else "",
            }
        )
    filled = {way: queries for way, queries in ways.items() if queries}
    return {"ways": filled} if filled else None


def _key(example: dict[str, Any]) -> tuple[str, str]:
    return text(example.get("kind"), 40), text(example.get("query"))
