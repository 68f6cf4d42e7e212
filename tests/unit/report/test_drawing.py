"""Numbers in words, and the geometry of charts."""

from __future__ import annotations

import itertools
import re

import pytest

from diptych.report import wording
from diptych.report.plot import Boundary, Line, line_chart, ticks


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (wording.percent(0.784), "78 %"),
        (wording.percent(0.784, 1), "78.4 %"),
        (wording.percent(0.0002), "0.02 %"),
        (wording.percent(-0.0), "0 %"),
        (wording.percent(None), "\u2013"),
        (wording.points(0.494), "+49"),
        (wording.points(-0.02), "\u22122"),
        (wording.points(0.001), "0"),
        (wording.short_count(134_515_008), "135 M"),
        (wording.short_count(999_600), "1 M"),
        (wording.short_count(627_840), "628 k"),
        (wording.short_count(49), "49"),
        (wording.count(1234567), "1\u202f234\u202f567"),
        (wording.duration(5.04), "5.0 s"),
        (wording.duration(59.6), "1 min 00 s"),
        (wording.duration(3725), "1 h 02 min"),
        (wording.rough_duration(368), "6 minutes"),
        (wording.rough_duration(60), "60 seconds"),
        (wording.size(3.42e9), "3.42 GB"),
        (wording.plain(0.00016), "1.6e\u22124"),
        (wording.plain(0.4213), "0.421"),
        (wording.scientific(0.001), "1e\u22123"),
        (wording.probability(1e-9), "p < 0.001"),
    ],
)
def test_numbers_read_well(written, text):
    assert written.replace("\u00a0", " ") == text


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.13, 0.98), (-3, 8), (5, 5), (0, 0), (1e-9, 3e-8), (0, 7e12)]
)
def test_ticks_are_round_and_enclose_the_range(low, high):
    found = ticks(low, high)
    steps = {round((b - a) / (found[1] - found[0]), 6) for a, b in itertools.pairwise(found)}
    assert found[0] <= low + 1e-12 and found[-1] >= high - 1e-12 and steps == {1.0}
    assert 2 <= len(found) <= 8


def test_paths_stay_in_the_box_and_are_thinned():
    chart = line_chart(
        "Loss", [Line("loss", range(1, 5001), [1 / k for k in range(1, 5001)])], label=str
    )
    coordinates = [float(number) for number in re.findall(r"-?[\d.]+", chart.curves[0][1])]
    assert min(coordinates) >= 0 and max(coordinates) <= 1000
    assert len(chart.hover["x"]) == 240 == len(chart.hover["lines"][0]["y"])
    assert chart.hover["step"][0] == "1" and chart.hover["step"][-1] == "5000"


def test_the_running_mean_does_not_mix_stages():
    line = Line("speed", range(1, 201), [9.0] * 100 + [5.0] * 100)
    chart = line_chart(
        "Speed", [line], label=str, smooth=True, boundaries=[Boundary(1, "a"), Boundary(101, "b")]
    )
    assert set(chart.hover["lines"][0]["label"]) == {"9.0", "5.0"}


@pytest.mark.parametrize(
    "line", [Line("a", [], []), Line("a", [1], [2]), Line("a", [3, 3], [1, 2])]
)
def test_too_few_points_draw_nothing(line):
    assert line_chart("x", [line], label=str) is None


def test_names_of_short_stages_stand_in_rows_above_each_other():
    line = Line("loss", range(101), range(101))
    stages = [Boundary(0, "read"), Boundary(5, "practise"), Boundary(8, "align"), Boundary(60, "b")]
    chart = line_chart("Loss", [line], label=str, boundaries=stages)
    assert chart.boundaries == [(0, "read", 0), (5, "practise", 1), (8, "align", 2), (60, "b", 0)]
