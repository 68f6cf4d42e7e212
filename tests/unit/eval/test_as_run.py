"""`diptych eval RUN` measures as the run did, where nothing else is said."""

from __future__ import annotations

import json

import pytest

from diptych.cli.measure import as_run

RELAXED = {"metric": "relaxed", "max_new_tokens": 56}
CHOICES = {"benchmark": "choices", "metric": "exact", "max_new_tokens": 1}
DEFAULTS = {"metric": "exact", "max_new_tokens": 32}


@pytest.mark.parametrize(
    ("recipe", "benchmark", "expected"),
    [
        ({"evaluation": RELAXED, "evaluations": []}, "questions", RELAXED),
        ({"evaluation": None, "evaluations": [CHOICES, RELAXED]}, "questions", RELAXED),
        ({"evaluation": RELAXED, "evaluations": []}, "choices", DEFAULTS),
        ({"evaluation": {"metric": "relaxed"}}, "questions", {**DEFAULTS, "metric": "relaxed"}),
        ({"evaluation": None}, "questions", DEFAULTS),
    ],
)
def test_metric_and_longest_answer_are_those_of_the_run(recipe, benchmark, expected, tmp_path):
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    assert as_run(str(tmp_path), benchmark) == expected


def test_what_is_no_run_is_measured_by_the_defaults(tmp_path):
    assert as_run(str(tmp_path), "questions") == DEFAULTS
    assert as_run("llava-hf/llava-1.5-7b-hf", "questions") == DEFAULTS
