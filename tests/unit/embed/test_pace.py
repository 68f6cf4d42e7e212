"""How a job computes here is measured once, kept, and said."""

from __future__ import annotations

import json

import pytest
import torch

from diptych.data.batching.picture_loader import Item
from diptych.data.sample import Image, Sample, Text, Turn
from diptych.embed import pace
from diptych.embed.embedder import EmbedConfig, Embedder
from diptych.embed.engine import batches
from diptych.model.architecture import config_from_dict
from diptych.model.folder import build
from tests.conftest import square


@pytest.fixture
def embedder(tiny_dual):
    return Embedder(build(config_from_dict(tiny_dual("clip")), seed=0), EmbedConfig())


def rows(num, broken=()):
    return [
        Item(
            Sample(str(n), (Turn("user", (Image(f"{n}.png"),)), Turn("assistant", (Text("a"),)))),
            lambda image: b"none" if image.path in broken else square("red", seed=int(image.path[0])),
        )
        for n in range(num)
    ]  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(pace, "TRIAL_SECONDS", 0.001)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)


def rated(monkeypatch, rates, cosine=0.9999):
    asked = []

    def rate(embedder, items, lanes, threads):
        way = (lanes, threads, embedder.config.precision)
        asked.append(way)
        return rates[way]

    monkeypatch.setattr(pace, "_rate", rate)
    monkeypatch.setattr(pace, "_least_cosine", lambda *_: cosine)
    return asked


def test_the_fastest_way_is_taken_and_kept(embedder, tmp_path, monkeypatch):
    rates = {(1, 8, "float32"): 5.0, (2, 4, "float32"): 7.0, (4, 2, "float32"): 6.0}
    asked = rated(monkeypatch, rates)
    found = pace.settled(embedder, rows(6), folder=tmp_path)
    assert (found.lanes, found.threads, found.precision, found.measured) == (2, 4, "float32", True)
    assert asked == list(rates) and "2 x 4 float32: 7.0 rows/s" in str(found)
    rated(monkeypatch, {})  # the second job of this model measures nothing
    assert pace.settled(embedder, rows(6), folder=tmp_path) == found
    (file,) = tmp_path.glob("*.json")
    file.write_text("{")  # a broken note is measured again
    rated(monkeypatch, rates)
    assert pace.settled(embedder, rows(6), folder=tmp_path) == found


@pytest.mark.parametrize(
    ("faster", "cosine", "precision"),
    [(14.0, 0.99996, "bf16"), (14.0, 0.9994, "float32"), (7.5, 0.99996, "float32")],
)
def test_auto_takes_bf16_where_it_pays_and_is_near(
    faster, cosine, precision, embedder, tmp_path, monkeypatch
):
    rates = {(n, t, p): 5.0 for n, t in pace.ways(8) for p in ("float32", "bf16")}
    rates |= {(2, 4, "float32"): 7.0, (4, 2, "bf16"): faster}
    rated(monkeypatch, rates, cosine)
    found = pace.settled(embedder, rows(6), auto=True, folder=tmp_path)
    assert found.precision == precision and found.cosine == cosine
    assert (found.lanes, found.threads) == ((4, 2) if precision == "bf16" else (2, 4))
    asked = rated(monkeypatch, rates, cosine)
    own = pace.settled(embedder, rows(6), folder=tmp_path)  # a job that asks for float32
    assert own.precision == "float32" and {p for *_, p in asked} == {"float32"}


def test_how_near_bf16_comes_is_asked_of_every_model(tiny_dual, tmp_path, monkeypatch):
    """Weights decide it: another checkpoint of the same architecture is measured anew."""
    rates = {(n, t, p): 5.0 for n, t in pace.ways(8) for p in ("float32", "bf16")}
    rates[2, 4, "bf16"] = 14.0
    found = []
    for seed, cosine in ((0, 0.99996), (1, 0.9)):
        model = build(config_from_dict(tiny_dual("clip")), seed=seed)
        rated(monkeypatch, rates, cosine)
        own = Embedder(model, EmbedConfig())
        found.append(pace.settled(own, rows(6), auto=True, folder=tmp_path).precision)
    assert found == ["bf16", "float32"]


def test_really_measured(embedder, tmp_path):
    found = pace.settled(embedder, rows(8, broken=("3.png",)), auto=True, folder=tmp_path)
    assert found.measured and found.cosine > 0.99 and found.processor
    assert all(rate > 0 for rate in found.rates.values()) and len(found.rates) == 6
    vectors = [e.embed(e.prepare(rows(4)).batches[0]).values for e in
               (embedder, embedder.in_precision("bf16"))]  # fmt: skip
    least = min(float(a @ b) for a, b in zip(*vectors, strict=True))
    assert found.cosine == pytest.approx(least, abs=1e-3)


def test_few_rows_are_not_worth_it(embedder, tmp_path):
    assert not pace.settled(embedder, rows(3), folder=tmp_path).measured
    assert not pace.settled(embedder, rows(5, broken=("1.png", "2.png")), folder=tmp_path).measured
    assert not list(tmp_path.iterdir())
    assert (pace.usual().lanes, pace.usual().threads) == (4, 2)


def test_lanes_share_a_batch_in_small_parts():
    def of(lanes, rate):
        return pace.Pace(lanes, 1, rates={f"{lanes} x 1 float32": rate})

    assert of(1, 5.0).part(32) == 32 and pace.Pace(2, 1).part(32) == 8
    assert of(2, 4.0).part(32) == 8, "eight take four seconds"
    assert of(2, 120.0).part(32) == 12 and of(2, 4000.0).part(32) == 32
    assert of(2, 1.0).part(1) == 1
    samples = [item.sample for item in rows(70)]
    assert [len(b) for b in batches(samples, 32)] == [32, 32, 6]
    assert [len(b) for b in batches([], 8)] == [0]


def test_a_job_says_how_it_computed_and_goes_on_so(tiny_dual, squares, tmp_path, monkeypatch):
    from diptych.embed.job import JobConfig, embed
    from diptych.progress import Progress

    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    model = build(config_from_dict(tiny_dual("clip")), seed=0)
    embedder = Embedder(model, EmbedConfig())
    job = JobConfig(to=(f"parquet:{tmp_path / 'out'}",), state=tmp_path / "state", limit=10)
    data = {"format": None, "images": str(squares / "images")}

    def run(**changes):
        quiet = Progress(tmp_path / "log", quiet=True)
        return embed(embedder, str(squares / "captions.json"), job, progress=quiet, **data)

    done = run()
    assert done["pace"]["measured"] and done["written"] == 10
    file = tmp_path / "state" / "run.json"
    kept = json.loads(file.read_text())
    assert kept["pace"] == done["pace"]
    # A run that was stopped is finished as it began, whatever is found now.
    kept["pace"] |= {"lanes": 1, "threads": 8}
    file.write_text(json.dumps({**kept, "finished": False}))
    assert run()["pace"]["lanes"] == 1
