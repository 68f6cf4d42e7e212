"""Regions: the boxes of a row, the grid positions they cover, and what is wrong with them."""

from __future__ import annotations

import pytest

from diptych.data.batching.picture_loader import Item, PictureLoader
from diptych.data.batching.regions import Region, RegionCollator, cells, centre, letters, regions_of
from diptych.data.pixels.preprocessing import Preprocessing
from diptych.data.sample import Image, Sample, Text, Turn
from diptych.errors import FormatError
from tests.conftest import square


def sample(regions, id="a"):
    turns = (Turn("user", (Image("x.png"),)), Turn("assistant", (Text("a square"),)))
    return Sample(id, turns, "f.json:3", {} if regions is None else {"regions": regions})


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0.0, 0.0, 0.5, 0.5), [0]),
        ((0.0, 0.0, 1.0, 1.0), [0, 1, 2, 3]),
        ((0.5, 0.0, 1.0, 1.0), [1, 3]),
        ((0.30, 0.1, 0.70, 0.2), [0, 1]),  # across two cells, half in each
        ((0.40, 0.1, 0.52, 0.2), [0]),  # hardly in the second
        ((0.99, 0.99, 1.0, 1.0), [3]),
    ],
)
def test_the_positions_that_show_a_region(box, expected):
    assert cells(Region("x", *box), (2, 2)) == expected


def test_positions_count_row_by_row():
    assert cells(Region("x", 0.8, 0.0, 0.9, 0.3), (3, 4)) == [3]
    assert cells(Region("x", 0.1, 0.7, 0.2, 1.0), (3, 4)) == [8]


@pytest.mark.parametrize(
    ("regions", "says"),
    [
        (None, "no 'regions'"),
        ([], "no 'regions'"),
        ("red", "no 'regions'"),
        ([["red", 0, 0, 1]], "[text, left, top, right, bottom]"),
        ([[7, 0, 0, 1, 1]], "[text, left, top, right, bottom]"),
        ([["red", 0, 0, 1, 1], ["blue", 0, 0, 224, 224]], "not within 0..1"),
        ([["red", 0, 0, "1", 1]], "not within 0..1"),
        ([["red", float("nan"), 0, 1, 1]], "not within 0..1"),
        ([["red", 0, 0, True, 1]], "not within 0..1"),
        ([["red", 0.5, 0, 0.5, 1]], "is empty"),
        ([["red", 0.5, 0.9, 0.6, 0.1]], "is empty"),
        ([[" ", 0, 0, 1, 1]], "text is empty"),
        ([["red", 0, 0, 1, 1, 5]], "sixth entry"),
        ([["red", 0, 0, 1, 1, "red", 1]], "[text, left, top, right, bottom]"),
    ],
)
def test_faulty_regions_are_named_with_their_place(regions, says):
    with pytest.raises(FormatError) as caught:
        regions_of(sample(regions))
    assert says in str(caught.value) and "f.json:3" in caught.value.where


class Words:
    """A tokenizer of letters; a blank before a wide character is a token of its own."""

    def encode(self, text, add_special_tokens=False):
        return [ord(c) for c in (text if text == " " or ord(text[-1]) > 0x2E7F else text.strip())]


def collator(**more):
    pictures = PictureLoader(Preprocessing(resize="exact", size=(28, 28)))
    return RegionCollator(Words(), (2, 2), 1, pictures, **more)


def items(*regions):
    data = square("red")
    return [Item(sample(r, str(i)), lambda image: data) for i, r in enumerate(regions)]


def test_targets_name_position_and_token_once():
    top_left, right = ["ab", 0.0, 0.0, 0.5, 0.5], ["红", 0.5, 0.0, 1.0, 1.0]
    [batch] = collator()(items([top_left, top_left], [right])).batches
    found = list(zip(batch.target_positions.tolist(), batch.target_ids.tolist(), strict=True))
    # One class token before each picture's four positions: the second picture begins at 5.
    assert found == [(1, ord("a")), (1, ord("b")), (7, ord("红")), (9, ord("红"))]
    assert batch.target_samples.tolist() == [0, 0, 1, 1]
    assert len(batch.image_keys) == 2 and batch.pixel_values.shape[1:] == (3, 28, 28)


class Blanks(Words):
    """Every word is one token, its first letter."""

    def encode(self, text, add_special_tokens=False):
        return [ord(word[0]) for word in text.split()] or [32]


def test_what_is_written_and_what_is_told_share_a_position_evenly():
    reader = collator()
    reader.tokenizer = Blanks()
    name = ["Wed third red", 0.0, 0.0, 0.5, 0.5, "Wed"]
    shape = ["red third", 0.5, 0.0, 1.0, 0.5, ""]
    scanned = ["ab cd", 0.0, 0.5, 0.5, 1.0]
    [batch] = reader(items([name, shape, scanned])).batches
    columns = (batch.target_positions, batch.target_ids, batch.extra["target_shares"])
    found = {(p, chr(t)): s for p, t, s in zip(*(c.tolist() for c in columns), strict=True)}
    assert found == {
        (1, "W"): 0.5, (1, "t"): 0.25, (1, "r"): 0.25, (2, "r"): 0.5, (2, "t"): 0.5,
        (3, "a"): 0.5, (3, "c"): 0.5,
    }  # fmt: skip
    # A place under the centre of a region counts once.
    assert batch.extra["centres"].tolist() == [1, 2, 3]
    # Only what is written has letters.
    assert "".join(chr(int(code)) for code in batch.extra["letters"][:, 3]) == "Wedabcd"


def test_the_place_under_a_centre():
    assert centre(Region("a", 0.0, 0.0, 1.0, 1.0), (2, 3)) == 4
    assert centre(Region("a", 0.9, 0.9, 1.0, 1.0), (2, 3)) == 5
    assert centre(Region("a", 1 - 1e-9, 1 - 1e-9, 1.0, 1.0), (2, 3)) == 5
    assert centre(Region("a", 0.0, 0.0, 0.3, 0.3), (2, 3)) == 0


@pytest.mark.parametrize(
    ("box", "text", "expected"),
    [
        ((0.2, 0.1, 0.6, 0.2), "ab", [("a", 0.3, 0.15), ("b", 0.5, 0.15)]),
        ((0.0, 0.0, 0.8, 0.1), "a 红b", [("a", 0.1, 0.05), ("红", 0.4, 0.05), ("b", 0.7, 0.05)]),
        ((0.1, 0.2, 0.2, 0.6), "ab", [("a", 0.15, 0.5), ("b", 0.15, 0.3)]),  # upwards
        ((0.0, 0.0, 0.6, 0.6), "abc", [("a", 0.1, 0.5), ("b", 0.3, 0.3), ("c", 0.5, 0.1)]),
        ((0.0, 0.0, 0.1, 0.1), "a", [("a", 0.05, 0.05)]),
        ((0.0, 0.0, 0.1, 0.1), "", []),
    ],
)
def test_where_the_letters_stand(box, text, expected):
    found = letters(Region("told", *box, written=text))
    assert [letter for letter, *_ in found] == [letter for letter, *_ in expected]
    for (_, *at), (_, *wanted) in zip(found, expected, strict=True):
        assert at == pytest.approx(wanted)


def test_a_faulty_sample_is_rejected_and_spoils_no_other():
    good = [["a", 0.0, 0.0, 0.5, 0.5]]
    prepared = collator(pictures_per_batch=1)(items(good, None, good))
    assert prepared.used == ["0", "2"] and len(prepared.batches) == 2
    [(rejected, error)] = prepared.rejected
    assert rejected == "1" and error["error"] == "FormatError"
