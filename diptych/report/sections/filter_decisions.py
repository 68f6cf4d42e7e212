"""What a caption filter kept and dropped, with scores (`diptych data capfilt`)."""

from __future__ import annotations

from collections import Counter
from typing import Any

from diptych.report.run_folder import RunFolder, number, text
from diptych.report.thumbnails import Thumbnail, thumbnail
from diptych.report.wording import count, percent

TITLE = "What the filter decided"
LABEL = "Filter"
ORDER = 37
NEEDS = ("decisions.jsonl",)
OPTIONAL = True

MAX_PICTURES = 40
NUM_BINS = 20


def view(run: RunFolder) -> dict[str, Any] | None:
    """Counts, how scores are spread, and pictures with their original and written captions.

    Pictures are those about whose original caption the filter was surest, half of them dropped and
    half kept.
    """
    rows = run.rows("decisions.jsonl")
    by_picture: dict[str, dict[str, dict[str, Any]]] = {}
    bins: dict[str, Counter[int]] = {"original": Counter(), "synthetic": Counter()}
    counts: Counter[tuple[str, bool]] = Counter()
    for row in rows:
        source, score = text(row.get("text_from")), number(row.get("score"))
        if source not in bins or score is None:
            continue
        kept = row.get("kept") is True
        counts[source, kept] += 1
        bins[source][min(NUM_BINS - 1, int(max(0.0, score) * NUM_BINS))] += 1
        # Several rows may show one picture; each has its own two texts.
        key = text(row.get("id")).rsplit("/", 1)[0]
        by_picture.setdefault(key, {})[source] = {
            "image": row["image"] if isinstance(row.get("image"), str) else "",
            "text": text(row.get("caption"), 200),
            "score": score,
            "kept": kept,
        }
    whole = [both for both in by_picture.values() if set(both) == set(bins)]
    if not whole:
        return None
    whole.sort(key=lambda both: both["original"]["score"])
    dropped = [both for both in whole if not both["original"]["kept"]]
    kept_ones = [both for both in reversed(whole) if both["original"]["kept"]]
    chosen = dropped[: MAX_PICTURES // 2] + kept_ones[: MAX_PICTURES // 2]
    folder = run.images
    seen: dict[str, Thumbnail] = {}
    cards = []
    for both in chosen:
        name = both["original"]["image"]
        if name not in seen:
            seen[name] = thumbnail(folder, name) if name else Thumbnail(fault="no picture")
        cards.append({"picture": seen[name], "texts": [_shown(n, both[n]) for n in bins]})
    highest = max(max(found.values(), default=1) for found in bins.values())
    return {
        "cards": cards,
        "total": count(len(whole)),
        "sources": [
            {
                "name": name,
                "kept": count(counts[name, True]),
                "dropped": count(counts[name, False]),
                "share": percent(
                    counts[name, True] / max(1, counts[name, True] + counts[name, False])
                ),
                "bars": [round(100 * bins[name][i] / highest, 1) for i in range(NUM_BINS)],
            }
            for name in bins
        ],
    }


def _shown(name: str, found: dict[str, Any]) -> dict[str, Any]:
    return {
        "from": name,
        "text": found["text"],
        "score": percent(found["score"]),
        "kept": found["kept"],
    }
