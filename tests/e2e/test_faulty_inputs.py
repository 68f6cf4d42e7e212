"""At least sixty faulty or odd inputs: each gets its named reason or loads right, none is lost.

A case writes its files and says how many rows are good and which rejects there are; or which
error the data set as a whole raises. Every case also runs the promises that hold for all: no
other exception, rows in = rows used + rows rejected, every reject has a place and a message.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from diptych import errors
from diptych.data.checking.check import check
from diptych.data.checking.index import Index
from tests.e2e.faults import (  # noqa: F401
    captions,
    json_files,
    messages,
    pictures,
    rows,
    shards,
    vqa,
)
from tests.e2e.faults.case import CASES, Case
from tests.e2e.faulty_inputs import folder_with_picture


def test_the_corpus_is_large_and_its_names_differ():
    assert len(CASES) >= 60
    assert max(Counter(c.name for c in CASES).values()) == 1


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name.replace(" ", "-"))
def test_each_fault_has_its_name_and_nothing_is_lost(case: Case, tmp_path: Path):
    folder = tmp_path / "data"
    folder.mkdir()
    path = case.build(folder_with_picture(folder))
    path = path if isinstance(path, list) else str(path)
    if case.raises is not None:
        with pytest.raises(case.raises) as caught:
            check(path, workers=2, **case.options)
        assert case.says in str(caught.value)
        assert caught.value.exit_code == 2
        return
    report = check(path, workers=2, **case.options)
    found = Counter(reject.error for reject in report.rejects)
    assert found == Counter(case.rejects), [r.message for r in report.rejects]
    assert report.num_samples == case.good
    assert report.ledger.num_read == case.good + sum(case.rejects.values())
    for reject in report.rejects:
        assert reject.where and reject.message and hasattr(errors, reject.error)
    assert case.says in " ".join(f"{r.where} {r.message}" for r in report.rejects)
    json.dumps(report.to_dict())
    # The index makes the same pass: its ledger is the report's, and good samples load.
    index = Index.build(path, tmp_path / "cache", workers=2, progress=False, **case.options)
    assert index.ledger.num_rejected == sum(case.rejects.values())
    assert len(index) == case.good
    for sample in index:
        for image in sample.images():
            assert index.image_bytes(image)
