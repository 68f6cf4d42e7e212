"""What a run's state belongs to: contents of data, tokenizer, weights; never where they lie."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from transformers import AutoTokenizer

from diptych.data.checking.index import Index
from diptych.errors import DataChanged, StartChanged
from diptych.model.trainable import digests
from diptych.train import identity
from diptych.train.feed import Withheld
from diptych.train.stage import DataConfig


@pytest.fixture
def folder(squares, tmp_path):
    """A copy of the squares that a test may change."""
    shutil.copytree(squares / "images", tmp_path / "data" / "images")
    shutil.copy(squares / "train.json", tmp_path / "data" / "train.json")
    return tmp_path / "data"


def of(folder, cache="cache", **settings):
    path = str(folder / "train.json")
    index = Index.build(path, folder.parent / cache, images=str(folder / "images"), **settings)
    return identity.of_data(DataConfig(path=path), index)


def rewrite(folder, change):
    rows = json.loads((folder / "train.json").read_text())
    (folder / "train.json").write_text(json.dumps(change(rows) or rows))


def test_a_folder_that_was_moved_or_touched_holds_what_it_held(folder):
    before = of(folder)
    os.utime(folder / "train.json", (1, 1))
    for picture in (folder / "images").iterdir():
        os.utime(picture)
    assert of(folder)["sha256"] == before["sha256"]
    moved = folder.parent / "elsewhere" / "deep"
    moved.parent.mkdir()
    folder.rename(moved)
    again = of(moved)
    assert again["sha256"] == before["sha256"] and again["rows"] == before["rows"] == 48


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[:-1],
        lambda rows: rows[1:] + rows[:1],
        lambda rows: rows[3].update(id="another"),
        lambda rows: rows[3]["conversations"][1].update(value="yes"),
        lambda rows: rows[3].update(note="a field that an objective may read"),
        lambda rows: rows[3].update(image=next(r["image"] for r in rows if r["image"] != rows[3]["image"])),
    ],
    ids=["fewer", "order", "id", "text", "field", "picture"],
)  # fmt: skip
def test_what_a_row_says_and_shows_is_part_of_it(folder, change):
    before = of(folder)
    rewrite(folder, change)
    assert of(folder)["sha256"] != before["sha256"]


@pytest.mark.parametrize("verify", ["full", "header"])
def test_a_picture_replaced_in_its_place_is_seen_though_the_index_is_used_again(folder, verify):
    before = of(folder, verify=verify)
    index = next(folder.parent.glob("cache/*/index.json"))
    written = index.stat().st_mtime_ns
    first, second, *_ = sorted((folder / "images").iterdir())
    kept = first.read_bytes()
    shutil.copy2(second, first)
    os.utime(first, (1, 1))  # as `rsync -t` would leave it
    assert of(folder, verify=verify)["sha256"] != before["sha256"]
    first.write_bytes(kept)
    assert of(folder, verify=verify)["sha256"] == before["sha256"]
    assert index.stat().st_mtime_ns == written, "the index was not built anew"
    first.unlink()
    assert of(folder, verify=verify)["sha256"] != before["sha256"]


def test_pictures_that_nobody_looks_at_are_known_by_name_and_size(folder):
    before = of(folder, verify="none")
    assert of(folder, verify="none") == before
    first = sorted((folder / "images").iterdir())[0]
    first.write_bytes(first.read_bytes() + b" ")
    assert of(folder, verify="none")["sha256"] != before["sha256"]


def test_rows_without_their_pictures_change_with_their_words_alone(folder):
    path = str(folder / "train.json")

    def withheld():
        index = Index.build(path, folder.parent / "cache", images=str(folder / "images"))
        return identity.of_data(DataConfig(path=path), Withheld(index))["sha256"]

    before = withheld()
    first, second, *_ = sorted((folder / "images").iterdir())
    shutil.copy(second, first)
    assert withheld() == before
    rewrite(folder, lambda rows: rows[0]["conversations"][1].update(value="changed"))
    assert withheld() != before


def test_which_rows_share_a_picture_is_part_of_it(folder):
    """Samples about one picture stay side by side, so a copy under another name is another order."""
    rows = json.loads((folder / "train.json").read_text())
    before = of(folder)
    name = rows[-1]["image"]
    shutil.copy(folder / "images" / name, folder / "images" / "copy.png")
    assert sum(r["image"] == name for r in rows) > 1
    rewrite(folder, lambda rows: rows[-1].update(image="copy.png"))
    assert of(folder)["sha256"] != before["sha256"]


def test_every_changed_set_is_named_with_its_rows_then_and_now():
    then = {"data": [{"path": "a.json", "rows": 1200, "sha256": "1"},
                     {"path": "b.json", "rows": 5, "sha256": "2"}], "validation": []}  # fmt: skip
    now = {"data": [{"path": "a.json", "rows": 1300, "sha256": "3"},
                    {"path": "b.json", "rows": 5, "sha256": "4"}], "validation": []}  # fmt: skip
    identity.check_data("s", then, then)
    with pytest.raises(DataChanged) as caught:
        identity.check_data("s", then, now)
    said = str(caught.value)
    assert "a.json: 1,200 rows then, 1,300 now" in said
    assert "b.json: 5 rows then and now, with other contents" in said
    assert "--accept-changed-data" in said
    with pytest.raises(DataChanged, match="2 data sets then, 1 now"):
        identity.check_data("s", then, {**now, "data": now["data"][:1]})
    with pytest.raises(DataChanged, match="earlier version"):
        identity.check_data("s", None, now)


def test_a_tokenizer_is_known_by_its_rules_and_template(tiny_model, tokenizer_folder):
    model = tiny_model()
    before = identity.of_text(model)
    model.tokenizer(["a", "a small square"], padding=True, truncation=True, max_length=8)
    assert identity.of_text(model) == before, "what a call leaves behind is no change"
    assert identity.of_text(tiny_model(template="vicuna")) != before
    other = tiny_model()
    other.language_model.tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    assert identity.of_text(other) == before
    other.tokenizer.add_tokens(["<one more>"])
    assert identity.of_text(other) != before


def test_changed_weights_are_named_by_their_part(tiny_model):
    one, two = tiny_model(), tiny_model()
    known = {"text": "t", "origins": {"model.connector.weights": "1"},
             "weights": identity.of_weights(digests(one.state_dict()))}  # fmt: skip
    assert identity.of_weights(digests(two.state_dict())) == known["weights"]
    two.connector.linear_1.bias.data[0] += 1e-3
    now = {**known, "weights": identity.of_weights(digests(two.state_dict()))}
    with pytest.raises(StartChanged, match="the weights of connector\n") as caught:
        identity.check_start("s", known, now)
    assert "--accept-changed-data" in str(caught.value)
    now = {"text": "u", "weights": known["weights"], "origins": {"model.connector.weights": "2"}}
    with pytest.raises(StartChanged, match="tokenizer.*what model.connector.weights names"):
        identity.check_start("s", known, now)
