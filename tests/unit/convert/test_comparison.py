"""The comparison finds what differs, wherever it is."""

from __future__ import annotations

import math

import torch

from diptych.convert import comparison
from diptych.convert.comparison import ExportReport
from diptych.data.sample import IMAGE_TOKEN


def test_largest_difference_and_its_place_are_kept():
    report = ExportReport("x", "Y")
    own = torch.zeros(4, 3)
    for name, row, gap in (("first", 1, 0.5), ("second", 2, 0.75), ("third", 0, 0.25)):
        theirs = own.clone()
        theirs[row, 1] = gap
        comparison._note_difference(report, name, own, theirs)
    assert report.max_logit_difference == 0.75
    assert report.where == "second, token 2 of 4"


def test_not_a_number_stays():
    report = ExportReport("x", "Y", tolerance=1.0)
    comparison._note_difference(report, "bad", torch.zeros(2, 2), torch.full((2, 2), math.nan))
    comparison._note_difference(report, "good", torch.zeros(2, 2), torch.zeros(2, 2))
    assert math.isnan(report.max_logit_difference) and report.where.startswith("bad")


def test_padding_on_either_side():
    rows = [[5, IMAGE_TOKEN, 6], [7]]
    ids, mask = comparison.padded(rows, "left", image=9)
    assert ids.tolist() == [[5, 9, 6], [0, 0, 7]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    ids, mask = comparison.padded(rows, "right", image=9)
    assert ids.tolist() == [[5, 9, 6], [7, 0, 0]] and mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_tokens_are_compared_up_to_the_first_stop():
    stops = frozenset({2})
    assert comparison._until([4, 5, 2, 0], stops) == comparison._until([4, 5], stops) == [4, 5]
