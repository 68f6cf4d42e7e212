"""The threshold of a caption filter: nothing is kept by a tie or by a score that is no number."""

from __future__ import annotations

import json

import pytest
import torch

from diptych.cli.filter_threshold import Held, calibrated, filter_scores
from diptych.data.sample import Image
from diptych.errors import ModelError


class Pictures:
    @staticmethod
    def image_bytes(image):
        return image.path.encode()


class Filter:
    """A score by whether the text begins as the picture's name does."""

    def __init__(self, true, wrong):
        self.true, self.wrong = true, wrong

    def match_scores(self, images, texts, pairs):
        fits = [texts[t].startswith(images[i].decode()) for i, t in pairs]
        return torch.tensor([self.true if fit else self.wrong for fit in fits])


HELD = Held("", "", tuple((Image(n), f"{n} text") for n in "abcd"), Pictures(), apart=True)


def test_a_filter_that_tells_them_apart_keeps_the_true_ones(tmp_path):
    found = calibrated(Filter(0.8, 0.2), HELD, "match", tmp_path, 0)
    assert found["threshold"] == pytest.approx(0.8)
    assert (found["kept_true"], found["kept_exchanged"]) == (1.0, 0.0)
    assert json.loads((tmp_path / "threshold.json").read_text()) == found


def test_of_thresholds_that_part_them_as_well_the_strictest(tmp_path):
    # A filter that is always wrong: keeping all is as good as keeping nothing that is true.
    assert calibrated(Filter(0.2, 0.8), HELD, "match", tmp_path, 0)["threshold"] == (
        pytest.approx(0.2)
    )

    class Mixed(Filter):
        def match_scores(self, images, texts, pairs):
            return torch.tensor([0.9, 0.9, 0.5, 0.5, 0.9, 0.5, 0.5, 0.1][: len(pairs)])

    # From 0.9 on: half of the true, a quarter of the others; from 0.5 on: all and three quarters.
    (tmp_path / "threshold.json").unlink()
    assert calibrated(Mixed(0, 0), HELD, "match", tmp_path, 0)["threshold"] == pytest.approx(0.9)


def test_a_filter_that_says_the_same_of_everything_has_no_threshold(tmp_path):
    with pytest.raises(ModelError, match="everything or nothing"):
        calibrated(Filter(0.5, 0.5), HELD, "match", tmp_path, 0)
    assert not (tmp_path / "threshold.json").exists()


def test_a_score_that_is_no_number_is_an_error_and_not_dropped():
    with pytest.raises(ModelError, match="no number for 1 of 2"):
        filter_scores(Filter(0.5, float("nan")), [b"a"], ["a", "b"], [(0, 0), (0, 1)], "match")
