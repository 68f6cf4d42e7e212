"""How often a quickstart sees its data: as often as the minutes allow on this machine."""

from __future__ import annotations

import json

import pytest

from diptych.cli import pace
from diptych.families import quickstart as family
from diptych.train.stage import DataConfig


@pytest.fixture
def runs(tmp_path):
    def at(times_the_reference: float):
        seconds = pace.REFERENCE_SECONDS * times_the_reference
        (tmp_path / "pace.json").write_text(json.dumps({"step_seconds": seconds}))
        return tmp_path

    return at


def test_slow_machines_do_less_and_more_minutes_do_more(runs):
    assert pace.effort(runs(1.0), 12) == 1.0
    assert pace.effort(runs(1.0), 22) == 2.0
    # Drawing and measuring take four minutes there, and the eight that are left are worth four.
    assert pace.effort(runs(2.0), 12) == 0.4
    assert pace.effort(runs(20.0), 12) == 0.1, "a little is learned even there"


def test_moods_of_a_machine_make_no_other_recipe(runs):
    assert {pace.effort(runs(times), 12) for times in (0.94, 0.97, 1.0, 1.03, 1.05)} == {1.0}
    assert pace.effort(runs(0.8), 12) > 1.0 > pace.effort(runs(1.2), 12)


def test_the_machine_is_measured_once(tmp_path, monkeypatch):
    times = iter([0.1, 0.3])
    monkeypatch.setattr(pace, "step_seconds", lambda: next(times))
    first = pace.effort(tmp_path, 12)
    assert pace.effort(tmp_path, 12) == first, "the same command makes the same recipe again"


@pytest.mark.slow
def test_a_step_takes_time():
    assert 0 < pace.step_seconds() < 60


def test_effort_is_passes_over_charts_and_questions():
    data = DataConfig(path="a.json")
    usual, half = (
        family.on_data(
            "q", train=data, captions=data, pages=data, drills=data, test=None, effort=effort
        )
        for effort in (1.0, 0.5)
    )
    passes = {
        one.name: other.num_epochs / one.num_epochs
        for one, other in zip(usual.stages, half.stages, strict=True)
    }
    assert passes == {"read": 1.0, "align": 0.5, "practise": 1.0, "instruct": 0.5}
