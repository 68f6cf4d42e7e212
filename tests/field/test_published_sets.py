"""The shapes of published sets: read whole, every odd thing named, the same tokens for ever, trained.

`snapshots.json` holds the ids and the supervised places of every sample, by the 32,000 pieces of a
real SentencePiece model and LLaVA-1.5's template. To write it anew after a change that is meant:
`DIPTYCH_WRITE_SNAPSHOTS=1 pytest tests/field/test_published_sets.py`, and say why in the changelog.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from diptych.data import format as formats
from diptych.data.checking.check import check
from diptych.data.checking.index import Index
from diptych.data.reading.rows import Reject
from diptych.data.source import read_bytes, rows
from diptych.data.text.chat import ChatEncoder, Fate
from diptych.model.arrangement import Arrangement
from diptych.progress import Progress
from diptych.train.stage import Stage
from diptych.train.trainer import Trainer
from tests.field.sets import SETS, Set

SNAPSHOTS = Path(__file__).with_name("snapshots.json")


@pytest.fixture(params=SETS, ids=lambda s: s.name.replace(" ", "-"))
def made(request, tmp_path) -> tuple[Set, Path]:
    return request.param, request.param.write(tmp_path)


def test_read_whole_and_every_odd_thing_named(made):
    about, path = made
    report = check(str(path), progress=False)
    assert report.ledger.num_read == about.rows
    assert report.num_samples == about.good
    assert report.num_images == about.images
    assert Counter(r.error for r in report.rejects) == Counter(about.rejects)
    for reject in report.rejects:
        assert reject.where and reject.message
    for wanted in about.notes:
        assert any(wanted in note for note in report.ledger.notes), report.ledger.notes
    if not about.notes:
        unexpected = [n for n in report.ledger.notes if "is not followed" not in n]
        assert not unexpected
    json.dumps(report.to_dict(), allow_nan=False)


def test_written_and_read_again_it_is_the_same(made, tmp_path):
    about, path = made
    samples = [item for item in rows(str(path)) if not isinstance(item, Reject)]
    if about.to in ("parquet", "tar"):
        # Rows with their pictures inside are copied whole; no format of text can hold them.
        back = tmp_path / f"back.{about.to}"
        report = check(str(path), progress=False)
        assert report.fix(str(back)).num_used == about.good
        again = [item for item in rows(str(back)) if not isinstance(item, Reject)]
        assert [(s.turns[1:], s.meta) for s in again] == [(s.turns[1:], s.meta) for s in samples]
        assert [_bytes(s) for s in again] == [_bytes(s) for s in samples]
        refused: list[Reject] = []
        formats.write(samples, str(tmp_path / "x.jsonl"), "messages", refuse=refused.append)
        assert len(refused) == sum(any(i.span for i in s.images()) for s in samples)
        return
    back = tmp_path / (about.to if "." in about.to else f"back.{about.to}")
    formats.write(samples, str(back), formats.detect(str(path)))
    again = [item for item in rows(str(back)) if not isinstance(item, Reject)]
    assert [_whole(s) for s in again] == [_whole(s) for s in samples]
    if formats.detect(str(path)) in ("llava", "messages"):
        source = [json.loads(t) for t in _texts(path)]
        written = [json.loads(t) for t in _texts(back)]
        assert written == [row for row in source if row in written] and len(written) == about.good


def _bytes(sample):
    return [read_bytes(image, None) for image in sample.images()]


def _whole(sample):
    # A row without an id is called by its number, which rejects before it change.
    return ("" if sample.id.startswith("row-") else sample.id, sample.turns, sample.meta)


def _texts(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return text.splitlines()
    whole = json.loads(text)
    return [json.dumps(row) for row in whole] if isinstance(whole, list) else []


def test_tokens_and_labels_are_what_they_were(made, sentencepiece_folder, tmp_path):
    about, path = made
    encoder = ChatEncoder(
        AutoTokenizer.from_pretrained(sentencepiece_folder), "vicuna", Arrangement(2)
    )
    index = Index.build(str(path), tmp_path / "index", progress=False)
    found = {}
    for sample in index:
        encoded = encoder.encode(sample)
        learned = [n for n, fate in enumerate(encoded.fates) if fate is Fate.TARGET]
        found[sample.id] = [" ".join(map(str, encoded.ids)), _spans(learned)]
    known = json.loads(SNAPSHOTS.read_text(encoding="utf-8")) if SNAPSHOTS.is_file() else {}
    if os.environ.get("DIPTYCH_WRITE_SNAPSHOTS"):
        known[about.name] = found
        SNAPSHOTS.write_text(
            json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    assert known[about.name] == found


def _spans(places: list[int]) -> list[list[int]]:
    spans: list[list[int]] = []
    for place in places:
        if spans and spans[-1][1] == place:
            spans[-1][1] = place + 1
        else:
            spans.append([place, place + 1])
    return spans


def test_two_training_steps(made, tiny_model, tmp_path):
    about, path = made
    model = tiny_model("mlp")
    stage = Stage.from_dict(
        {
            "name": "instruct", "data": [{"path": str(path)}], "learn": {"connector": {}, "language_model": {}},
            "num_steps": 2, "global_batch_size": 2, "num_workers": 0, "max_reject_share": 0.5,
        }
    )  # fmt: skip
    run = tmp_path / "run"
    Trainer(
        model, [stage], run, trackers=(), progress=Progress(tmp_path / "log", quiet=True)
    ).train()
    ledger = json.loads((run / "ledger.json").read_text())["stages"]["instruct"]
    assert ledger["data"]["used"] == about.good
    assert ledger["data"]["rejected"] == about.rejects
    assert ledger["used"] == 4 and ledger["supervised_tokens"] > 0
