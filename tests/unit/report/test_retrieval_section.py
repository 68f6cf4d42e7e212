"""Queries and what they found, on the page."""

from __future__ import annotations

import json

from PIL import Image

from diptych.report.page import render
from diptych.report.run_folder import RunFolder
from diptych.report.section import fill_all


def example(kind: str, query: str, found: list, rank: int = 1) -> dict:
    return {"kind": kind, "query": query, "found": found, "rank": rank}


def run_with(folder, examples, before=()):
    images = folder / "pictures"
    images.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (20, 10), "red" if name == "a.png" else "blue").save(images / name)
    (folder / "evaluation.json").write_text(json.dumps({"images": "pictures"}))
    (folder / "retrieval_after.json").write_text(json.dumps({"examples": examples}))
    if before:
        (folder / "retrieval_before.json").write_text(json.dumps({"examples": before}))
    return RunFolder(folder)


def section(run):
    return next(s for s in fill_all(run) if s.name == "retrieval")


def test_both_ways_with_the_right_one_marked(tmp_path):
    run = run_with(
        tmp_path,
        [
            example("image to text", "a.png", [["a <b>red</b> box", True], ["blue", False]]),
            example("text to image", "blue", [["a.png", False], ["b.png", True]], 2),
        ],
        before=[example("text to image", "blue", [], 7)],
    )
    ways = section(run).view["ways"]
    first, second = ways["image to text"][0], ways["text to image"][0]
    assert first["picture"].uri.startswith("data:image/") and first["found"][0]["right"]
    assert (second["rank"], second["before"]) == ("2", "7")
    assert [f["right"] for f in second["found"]] == [False, True]
    page = render(tmp_path)
    assert "a &lt;b&gt;red&lt;/b&gt; box" in page and "before training 7" in page


def test_pictures_stay_in_their_folder(tmp_path):
    (tmp_path / "secret.png").write_bytes(b"x")
    run = run_with(tmp_path, [example("image to text", "../secret.png", [["x", True]])])
    assert section(run).view["ways"]["image to text"][0]["picture"].fault


def test_damage_is_survived_and_absence_is_silent(tmp_path):
    run = run_with(tmp_path, [example("image to text", "a.png", [["x"], 3, None]), 5, None])
    assert section(run).view is None
    (tmp_path / "retrieval_after.json").unlink()
    assert "retrieval" not in [s.name for s in fill_all(RunFolder(tmp_path))]
