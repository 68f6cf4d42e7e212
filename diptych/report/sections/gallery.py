"""Held-out pictures with question, truth and the answers before and after; wrong ones first."""

from __future__ import annotations

from collections import defaultdict
from itertools import zip_longest
from typing import Any

from diptych.report.run_folder import RunFolder, number, text
from diptych.report.thumbnails import Thumbnail, thumbnail
from diptych.report.wording import count

TITLE = "Held-out questions"
LABEL = "Questions"
ORDER = 40
NEEDS = ("records_after.jsonl",)

FILES = ("records_after.jsonl", "records_before.jsonl", "records_blind.jsonl")
MAX_ITEMS = 120
# Wrong answers teach most, but a gallery of nothing else would mislead.
MAX_WRONG = 80
MAX_ANSWER = 160
"""Characters of an answer that are shown: an untrained model repeats itself for lines."""
RIGHT_FROM = 0.5
CHANGES = {
    "lost": "right before, wrong now",
    "wrong": "wrong before and now",
    "gained": "wrong before, right now",
    "right": "right before and now",
    "": "",
}


def view(run: RunFolder) -> dict[str, Any] | None:
    """Up to MAX_ITEMS cards, drawn evenly from the question kinds in the order of the records."""
    after = run.rows("records_after.jsonl")
    earlier = {
        name: {text(row.get("id")): row for row in run.rows(f"records_{name}.jsonl")}
        for name in ("before", "blind")
    }
    cards = [_card(row, earlier["before"], earlier["blind"]) for row in after]
    wrong = _spread([card for card in cards if not card["is_right"]])
    right = _spread([card for card in cards if card["is_right"]])
    num_wrong = min(len(wrong), max(MAX_WRONG, MAX_ITEMS - len(right)))
    chosen = wrong[:num_wrong]
    chosen += right[: MAX_ITEMS - len(chosen)]
    if not chosen:
        return None
    order = list(CHANGES)
    chosen.sort(key=lambda card: (card["is_right"], order.index(card["change"])))
    folder = run.images
    seen: dict[str, Thumbnail] = {}
    for card in chosen:
        name = card["image"]
        if name not in seen:
            seen[name] = thumbnail(folder, name) if name else Thumbnail(fault="no picture")
        card["picture"] = seen[name]
    return {
        "cards": chosen,
        "kinds": sorted({card["kind"] for card in chosen if card["kind"]}),
        "has_before": bool(earlier["before"]),
        "shown": count(len(chosen)),
        "total": count(len(cards)),
        "wrong": count(len(wrong)),
        "missing": [run.notes[file] for file in FILES if file in run.notes],
    }


def _card(
    row: dict[str, Any], before: dict[str, dict[str, Any]], blind: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    key = text(row.get("id"))
    first, unseen = before.get(key), blind.get(key)
    is_right, was_right = _is_right(row), _is_right(first) if first else None
    change = ""
    if was_right is not None:
        change = (
            ("right" if was_right else "gained") if is_right else ("lost" if was_right else "wrong")
        )
    return {
        "id": key,
        "kind": text(row.get("kind"), 80),
        "question": text(row.get("question")),
        "truth": text(row.get("truth")),
        "after": text(row.get("output"), MAX_ANSWER),
        "working": text(row.get("working")),
        "score": number(row.get("score")),
        "before": text(first.get("output"), MAX_ANSWER) if first else None,
        "blind": text(unseen.get("output"), MAX_ANSWER) if unseen else None,
        "is_right": is_right,
        "was_right": was_right,
        "blind_right": _is_right(unseen) if unseen else None,
        "change": change,
        "change_label": CHANGES[change],
        "image": row["image"] if isinstance(row.get("image"), str) else "",
    }


def _is_right(row: dict[str, Any]) -> bool:
    """Partial credit counts from a half on."""
    return (number(row.get("score")) or 0.0) >= RIGHT_FROM


def _spread(cards: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One card of each kind in turn, so that a cut at any length keeps every kind."""
    by_kind: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for card in cards:
        by_kind[card["kind"]].append(card)
    rounds = zip_longest(*(by_kind[kind] for kind in sorted(by_kind)))
    return [card for one_each in rounds for card in one_each if card is not None]
