"""The map of the shared space and the filter's decisions, on the page."""

from __future__ import annotations

import json

from PIL import Image

from diptych.report.page import render
from diptych.report.run_folder import RunFolder
from diptych.report.section import fill_all


def section(folder, name):
    return next((s for s in fill_all(RunFolder(folder)) if s.name == name), None)


def pair(image_at, text_at, text="a <b>cat</b>"):
    return {"image": "a.png", "text": text, "image_at": image_at, "text_at": text_at}


def test_a_map_before_and_after(tmp_path):
    for name, share in (("before", 0.1), ("after", 0.75)):
        tree = {"share_nearest": share, "pairs": [pair([0, 0], [1, 1]), pair([0.5, 0.25], [2, -1])]}
        (tmp_path / f"map_{name}.json").write_text(json.dumps(tree))
    before, after = section(tmp_path, "embedding_map").view["maps"]
    assert (before["title"], after["title"]) == ("Before training", "After training")
    assert after["pairs"][0]["picture"] == (20, 20) and after["pairs"][0]["words"] == (980, 980)
    assert after["pairs"][1]["words"] == (980, 20)  # kept in the box
    page = render(tmp_path)
    assert "a &lt;b&gt;cat&lt;/b&gt;" in page and "75" in after["share"]


def test_damaged_maps_are_left_out(tmp_path):
    tree = {"pairs": [pair([0], [1, 1]), pair(None, 3), 5, pair(["x", 0], [0, 0])]}
    (tmp_path / "map_after.json").write_text(json.dumps(tree))
    assert section(tmp_path, "embedding_map").view is None
    (tmp_path / "map_after.json").unlink()
    assert section(tmp_path, "embedding_map") is None


def decision(row, source, text, score, kept):
    return {
        "id": f"{row}/{source}", "image": "a.png", "caption": text, "text_from": source,
        "score": score, "kept": kept,
    }  # fmt: skip


def test_decisions_with_both_texts_of_a_picture(tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (20, 10), "red").save(tmp_path / "pictures" / "a.png")
    (tmp_path / "evaluation.json").write_text(json.dumps({"images": "pictures"}))
    rows = [
        decision("one", "original", "a <i>dog</i>", 0.02, False),
        decision("one", "synthetic", "a red box", 0.97, True),
        decision("two", "original", "something red", 0.9, True),
        decision("two", "synthetic", "blue", 0.4, False),
        decision("three", "original", "alone", 0.5, True),
        {"id": 5},
    ]
    (tmp_path / "decisions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    view = section(tmp_path, "filter_decisions").view
    assert view["total"] == "2"
    original, synthetic = view["sources"]
    assert (original["kept"], original["dropped"]) == ("2", "1")
    assert (synthetic["kept"], synthetic["dropped"]) == ("1", "1")
    first, second = view["cards"]
    assert [t["kept"] for t in first["texts"]] == [False, True]
    assert [t["kept"] for t in second["texts"]] == [True, False]
    assert first["picture"].uri.startswith("data:image/")
    assert "a &lt;i&gt;dog&lt;/i&gt;" in render(tmp_path)


def test_nothing_but_damage_is_left_out(tmp_path):
    (tmp_path / "decisions.jsonl").write_text('{"id": 1}\nnot json\n')
    assert section(tmp_path, "filter_decisions").view is None
