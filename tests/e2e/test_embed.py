"""Vectors of a whole data set: each row once, whatever happens on the way."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from diptych.embed import job as module
from diptych.embed.embedder import EmbedConfig, Embedder
from diptych.embed.job import JobConfig
from diptych.embed.vectors import Vectors
from diptych.errors import ConfigError, DataError, SinkAway
from diptych.model.architecture import config_from_dict
from diptych.model.folder import build, load_model, save_model
from diptych.progress import Progress

pq = pytest.importorskip("pyarrow.parquet")
WHEN = 1_700_000_000_123_456_789


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, tiny_dual):
    """Sixty noisy pictures with captions, and a small dual encoder."""
    folder = tmp_path_factory.mktemp("embed")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for n in range(60):
        name = f"images/{n}.png"
        Pillow.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / name)
        rows.append({"id": f"row {n}", "image": name, "caption": f"picture {n}", "group": n % 3})
    write(folder / "rows.jsonl", rows)
    save_model(build(config_from_dict(tiny_dual("clip")), seed=1), folder / "model")
    return folder


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))


def run(corpus, out, rows="rows.jsonl", settings=None, **job):
    embedder = Embedder(load_model(corpus / "model"), EmbedConfig(batch_size=4, **(settings or {})))
    config = JobConfig(
        to=(f"parquet:{out}",), state=out / "_job", shard_rows=16, event_time_ns=WHEN, **job
    )
    progress = Progress(out / "log", quiet=True)
    return module.embed(embedder, str(corpus / rows), config, progress=progress)


def parts(out):
    return sorted(out.glob("fingerprint=*/what=*/data=*/part-*.parquet"))


def contents(out):
    return {p.name: p.read_bytes() for p in parts(out)}


def keys(out):
    return [k for p in parts(out) for k in pq.read_table(p)["id"].to_pylist()]


def test_every_row_once_with_the_vector_the_model_gives(corpus, tmp_path):
    summary = run(corpus, tmp_path / "out", fields=("group",))
    assert (summary["rows"], summary["written"], summary["shards"]) == (60, 60, 4)
    assert summary["rejected"] == summary["skipped"] == 0
    found = pq.read_table(parts(tmp_path / "out")[1])
    assert found["id"].to_pylist() == [f"row {n}" for n in range(16, 32)]
    assert found["group"].to_pylist()[:2] == ["1", "2"] and found["text"][0].as_py() == "picture 16"
    model = load_model(corpus / "model")
    expected = model.encode_images([corpus / f"images/{n}.png" for n in range(16, 32)])
    torch.testing.assert_close(torch.tensor(found["vector"].to_pylist()), expected)
    assert str(found.schema.field("vector").type).startswith("fixed_size_list")
    assert found["event_time"][0].value == WHEN


def test_a_folder_of_pictures_alone(corpus, tmp_path):
    folder = shutil.copytree(corpus / "images", tmp_path / "album" / "deeper").parent
    (folder / "broken.jpg").write_bytes(b"no picture")
    summary = run(corpus, tmp_path / "out", folder)
    assert (summary["rows"], summary["written"], summary["rejected"]) == (61, 60, 1)
    assert {f"deeper/{n}.png" for n in range(60)} == set(keys(tmp_path / "out"))
    text = run(corpus, tmp_path / "text", folder, settings={"what": "text"})
    assert (text["written"], text["rejected"]) == (0, 61)  # as forgotten captions, by name
    reasons = [json.loads(t) for t in open(next((tmp_path / "text").rglob("rejects/*.jsonl")))]
    assert "no caption beside 'deeper/0.png'" in json.dumps(reasons)


def test_pictures_in_a_folder_are_told_by_their_content(corpus, tmp_path, capfd):
    """Whatever the names, every picture is a row, a fault a reject, and the rest is counted."""
    album = tmp_path / "album"
    (album / "deep").mkdir(parents=True)
    picture = Pillow.open(corpus / "images/0.png").convert("RGB")
    names = ("a.jpg", "b.JPG", "c.jfif", "d.avif", "e.jpg_large", "4f2a9c", "deep/IMG.1", "f.WEBP")
    kinds = ("JPEG", "JPEG", "JPEG", "AVIF", "JPEG", "PNG", "JPEG", "WEBP")
    for name, kind in zip(names, kinds, strict=True):
        picture.save(album / name, kind)
    rejected = {
        "broken.jpg": b"no picture", "cut": b"\x89PNG\r\n\x1a\n cut", "phone.heic": b"?",
        "phone": b"\0\0\0\x18ftypheic" + bytes(60), "drawing.svg": b"<svg/>",
    }  # fmt: skip
    over = {
        "README.md": b"# Album", "notes.txt": b"seen in May", "meta.json": b'{"camera": "x"}',
        ".hidden.jpg": b"", ".git/a.png": b"", "BMW": b"BM is no bitmap", "P1 plan": b"P1 plan",
    }  # fmt: skip
    for name, data in {**rejected, **over}.items():
        (album / name).parent.mkdir(exist_ok=True)
        (album / name).write_bytes(data)
    (album / "elsewhere").symlink_to(corpus / "images")
    summary = run(corpus, tmp_path / "out", album)
    assert sorted(keys(tmp_path / "out")) == sorted(names)
    assert (summary["rows"], summary["rejected"]) == (len(names) + len(rejected), len(rejected))
    reasons = [json.loads(t) for f in (tmp_path / "out").rglob("rejects/*.jsonl") for t in open(f)]
    assert {r["id"] for r in reasons} == set(rejected)
    assert all(r["error"] in ("NotAnImage", "TruncatedImage") for r in reasons)
    assert "HEIC" in next(r["message"] for r in reasons if r["id"] == "phone")
    assert summary["passed_over"] == {
        ".md files": 1, ".txt files": 1, ".json files": 1, "files without an ending": 2,
        "hidden files": 2, "linked folders": 1,
    }  # fmt: skip
    assert "passed over in the data: " in (tmp_path / "out/log").read_text()


def test_texts_that_are_cut_are_counted(corpus, tmp_path):
    rows = [{"id": f"t{n}", "image": "images/0.png", "caption": "picture 1"} for n in range(30)]
    for n, end in ((3, "red"), (17, "green"), (18, "blue")):
        rows[n]["caption"] = "a large blue square and " * 20 + end
    write(corpus / "long.jsonl", rows)
    out = tmp_path / "out"
    summary = run(corpus, out, "long.jsonl", settings={"what": "text"})
    assert (summary["written"], summary["truncated"]) == (30, 3)
    assert [e["id"] for e in summary["truncated_examples"]] == ["t3", "t17", "t18"]
    tokens = load_model(corpus / "model").text_tokens
    cut = [tokens.ids(rows[n]["caption"])[1] for n in (3, 17, 18)]
    assert [e["cut_tokens"] for e in summary["truncated_examples"]] == cut
    assert summary["cut_tokens"] == sum(cut) and min(cut) > 0
    lines = [json.loads(t) for t in (out / "_job/manifest.jsonl").read_text().splitlines()]
    assert [line["truncated"] for line in lines] == [1, 2]
    assert "3 texts are longer than the text encoder reads" in (out / "log").read_text()
    again = run(corpus, out, "long.jsonl", settings={"what": "text"})
    assert (again["truncated"], again["skipped"]) == (0, 30)
    pictures = run(corpus, tmp_path / "pictures", "long.jsonl")
    assert pictures["truncated"] == 0, "no text is read"


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("kind", ["parquet", "lance"])
def test_a_vector_without_a_direction_is_a_named_reject(corpus, tmp_path, monkeypatch, kind, dtype):
    if kind == "lance":
        pytest.importorskip("lancedb")
    right = module.Embedder.embed

    def spoiled(self, batch):
        states, mask = self.model.represent("image", batch, space="shared", layer=-1)
        for n, key in enumerate(batch.sample_ids):
            states[n] *= {"row 1": 0.0, "row 5": torch.nan, "row 6": torch.inf}.get(key, 1.0)
        from diptych.embed.embedder import pooled, stored

        return stored(pooled(states, mask, self.config), mask, self.config)

    monkeypatch.setattr(module.Embedder, "embed", torch.inference_mode()(spoiled))
    out = tmp_path / "out"
    embedder = Embedder(load_model(corpus / "model"), EmbedConfig(batch_size=4, dtype=dtype))
    config = JobConfig(to=(f"{kind}:{out}",), state=out / "_job", shard_rows=16)
    quiet = Progress(quiet=True)
    summary = module.embed(embedder, str(corpus / "rows.jsonl"), config, progress=quiet)
    assert (summary["written"], summary["rejected"]) == (57, 3)
    reasons = [json.loads(t) for f in out.rglob("rejects/*.jsonl") for t in open(f)]
    assert [(r["id"], r["error"]) for r in reasons] == [
        ("row 1", "ZeroVector"), ("row 5", "ZeroVector"), ("row 6", "ZeroVector"),
    ]  # fmt: skip
    from diptych.embed.vector_index import open_vectors

    index = open_vectors(f"{kind}:{out}")
    assert len(index) == 57 and "row 1" not in index.ids()
    assert np.isfinite(index.some(57)).all()
    monkeypatch.setattr(module.Embedder, "embed", right)
    assert (
        module.embed(embedder, str(corpus / "rows.jsonl"), config, progress=quiet)["written"] == 0
    )


def test_eight_bits_take_about_one_byte_a_number(tmp_path):
    from diptych.embed.sink import About, Shard
    from diptych.embed.sinks import parquet

    rng = np.random.default_rng(0)
    unit = rng.normal(size=(2000, 256))
    unit /= np.abs(unit).max(1, keepdims=True)
    vectors = Vectors(np.rint(unit * 127).astype(np.int8), np.ones(2000, np.float32))
    matrices = Vectors(
        vectors.values.reshape(500, 4, 256), np.ones(500, np.float32), np.full(500, 4)
    )
    for name, found in (("flat", vectors), ("deep", matrices)):
        sink = parquet.open(f"parquet:{tmp_path / name}", About("0123456789ab", "image", "int8"))
        rows = len(found.values)
        sink.write(Shard(0, [str(n) for n in range(rows)], found, [{}] * rows, WHEN))
        file = next((tmp_path / name).rglob("*.parquet"))
        assert file.stat().st_size < 1.1 * found.values.size
        stored = np.array(pq.read_table(file)["vector"].to_pylist(), np.int8)
        assert (stored == found.values).all()


def test_what_is_there_is_skipped_and_new_rows_are_added(corpus, tmp_path):
    out = tmp_path / "out"
    run(corpus, out)
    before = contents(out)
    again = run(corpus, out)
    assert (again["written"], again["skipped"], again["shards"]) == (0, 60, 0)
    assert contents(out) == before
    rows = [json.loads(t) for t in (corpus / "rows.jsonl").read_text().splitlines()]
    more = [{**rows[5], "id": f"new {n}"} for n in range(3)]
    write(corpus / "more.jsonl", [*rows[:30], *more, *rows[30:]])
    third = run(corpus, out, "more.jsonl")
    assert (third["written"], third["skipped"]) == (3, 60)
    assert {k: v for k, v in contents(out).items() if k in before} == before
    assert keys(out)[60:] == ["new 0", "new 1", "new 2"]


def test_only_rows_since_a_moment(corpus, tmp_path):
    rows = [json.loads(t) for t in (corpus / "rows.jsonl").read_text().splitlines()]
    for n, row in enumerate(rows):
        row["seen"] = f"2026-11-{1 + n % 20:02d}T12:00:00"
    write(corpus / "dated.jsonl", rows)
    since = datetime(2026, 11, 16, tzinfo=UTC)
    found = run(corpus, tmp_path / "a", "dated.jsonl", since=since, time_field="seen")
    assert (found["written"], found["skipped"]) == (15, 45)
    for n in range(60):
        moment = since.timestamp() + (n - 50)
        os.utime(corpus / f"images/{n}.png", (moment, moment))
    found = run(corpus, tmp_path / "b", "dated.jsonl", since=since)
    assert (found["written"], found["skipped"]) == (10, 50)
    rows[4]["seen"] = "yesterday"
    write(corpus / "dated.jsonl", rows)
    with pytest.raises(DataError, match="holds no time: 'yesterday'"):
        run(corpus, tmp_path / "c", "dated.jsonl", since=since, time_field="seen")


def test_a_bad_row_spoils_nothing_and_says_why(corpus, tmp_path):
    rows = [json.loads(t) for t in (corpus / "rows.jsonl").read_text().splitlines()]
    (corpus / "images" / "broken.png").write_bytes(b"\x89PNG no")
    rows[3] = {**rows[3], "image": "images/broken.png"}
    rows[9] = {**rows[9], "image": "images/absent.png"}
    rows[20] = {**rows[20], "id": "row 19"}
    write(corpus / "bad.jsonl", rows)
    out = tmp_path / "out"
    summary = run(corpus, out, "bad.jsonl")
    assert (summary["written"], summary["rejected"]) == (57, 3)
    whole = run(corpus, tmp_path / "whole")
    assert whole["written"] == 60
    good = {k: v for p in parts(tmp_path / "whole") for k, v in pairs(p)}
    found = {k: v for p in parts(out) for k, v in pairs(p)}
    assert set(good) - set(found) == {"row 3", "row 9", "row 20"}
    for key, vector in found.items():
        np.testing.assert_allclose(vector, good[key], atol=1e-6)
    reasons = [
        json.loads(line)
        for file in sorted((out / "_job" / "rejects").glob("*.jsonl"))
        for line in file.read_text().splitlines()
    ]
    assert {r["id"]: r["error"] for r in reasons} == {
        "row 3": reasons[0]["error"], "row 9": "MissingImage", "row 19": "DuplicateId",
    }  # fmt: skip
    assert all(r["where"] and r["message"] for r in reasons)
    # Rejected rows are not tried again.
    assert run(corpus, out, "bad.jsonl")["skipped"] == 59  # the index keeps no duplicate


def pairs(part):
    table = pq.read_table(part)
    return zip(table["id"].to_pylist(), table["vector"].to_pylist(), strict=True)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_fewer_bits_stay_close(corpus, tmp_path, dtype):
    run(corpus, tmp_path / "full")
    run(corpus, tmp_path / dtype, settings={"dtype": dtype})
    full = np.array(pq.read_table(parts(tmp_path / "full")[0])["vector"].to_pylist())
    table = pq.read_table(parts(tmp_path / dtype)[0])
    found = np.array(table["vector"].to_pylist(), np.float32)
    if dtype == "int8":
        found *= np.array(table["scale"].to_pylist())[:, None]
    np.testing.assert_allclose(found, full, atol=2e-3 if dtype == "float16" else 8e-3)


def test_other_settings_are_another_fingerprint_and_another_state(corpus, tmp_path):
    model = load_model(corpus / "model")
    base = Embedder(model, EmbedConfig()).fingerprint
    assert Embedder(model, EmbedConfig(batch_size=7)).fingerprint == base
    assert Embedder(model, EmbedConfig(pool="max")).fingerprint != base
    with torch.no_grad():
        next(model.parameters()).flatten()[0] += 1e-3
    assert Embedder(model, EmbedConfig()).fingerprint != base
    run(corpus, tmp_path / "out")
    with pytest.raises(ConfigError, match="another job"):
        run(corpus, tmp_path / "out", settings={"pool": "max"})


def test_matrices_keep_their_real_tokens_only(corpus, tmp_path):
    settings = {"what": "text", "space": "states", "pool": "none"}
    run(corpus, tmp_path / "out", settings=settings)
    table = pq.read_table(parts(tmp_path / "out")[0])
    model = load_model(corpus / "model")
    for text, matrix in zip(table["text"].to_pylist(), table["vector"].to_pylist(), strict=True):
        assert len(matrix) == len(model.text_tokens.ids(text)[0])


def test_a_damaged_shard_is_written_again_in_the_same_bytes(corpus, tmp_path):
    out = tmp_path / "out"
    run(corpus, out)
    before = contents(out)
    first, second, *_ = parts(out)
    first.write_bytes(first.read_bytes()[:100])
    second.unlink()
    summary = run(corpus, out, verify=True)
    assert (summary["written"], summary["shards"], summary["skipped"]) == (32, 2, 28)
    assert contents(out) == before


def test_a_sink_that_goes_away_is_waited_for(corpus, tmp_path, monkeypatch):
    from diptych.embed.sinks import parquet

    right, calls = parquet.Parquet.write, []

    def away(self, shard):
        calls.append(shard.number)
        if len(calls) in (2, 3):
            raise SinkAway("the server does not answer", where="there")
        return right(self, shard)

    monkeypatch.setattr(parquet.Parquet, "write", away)
    run(corpus, tmp_path / "out", patience_seconds=30)
    assert calls == [0, 1, 1, 1, 2, 3] and len(keys(tmp_path / "out")) == 60
    calls.clear()
    with pytest.raises(SinkAway, match="given up"):
        run(corpus, tmp_path / "other", patience_seconds=0)
    assert len(keys(tmp_path / "other")) == 16  # what was there before stays


def test_a_full_disk_leaves_nothing_half_written(corpus, tmp_path, monkeypatch):
    import pyarrow.parquet

    right, calls = pyarrow.parquet.write_table, []

    def full(table, where, **settings):
        calls.append(where)
        if len(calls) == 3:
            where.write_bytes(b"PAR1 half")
            raise OSError(28, "No space left on device")
        right(table, where, **settings)

    monkeypatch.setattr(pyarrow.parquet, "write_table", full)
    out = tmp_path / "out"
    with pytest.raises(Exception, match="No space left"):
        run(corpus, out)
    assert len(parts(out)) == 2 and not list(out.rglob("*.partial"))
    run(corpus, out)
    run(corpus, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


CHILD = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import tests.e2e.test_embed as tests
job = tests.module.embed
def announced(*args, **kwargs):
    print("at work", flush=True)
    return job(*args, **kwargs)
tests.module.embed = announced
tests.run(Path(sys.argv[1]), Path(sys.argv[2]), "killed.jsonl")
"""


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_in_the_same_bytes(corpus, tmp_path):
    """Five kills; DIPTYCH_KILLS says how many others, over so many more rows."""
    kills, wanted = 0, int(os.environ.get("DIPTYCH_KILLS", "5"))
    rows = [json.loads(t) for t in (corpus / "rows.jsonl").read_text().splitlines()]
    write(corpus / "killed.jsonl", [{**rows[n % 60], "id": f"row {n}"} for n in range(24 * wanted)])
    run(corpus, tmp_path / "whole", "killed.jsonl")
    out, rng = tmp_path / "out", random.Random(3)
    while kills < wanted:
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(corpus), str(out)], cwd=os.getcwd(),
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert child.stdout.readline() == b"at work\n"
        # Kills fall into the work and not into imports; the first ones into reading the rows.
        time.sleep(rng.uniform(0, 0.15))
        assert child.poll() is None, "the job was done before it could be killed"
        child.send_signal(signal.SIGKILL)
        child.wait()
        kills += 1
        if kills < 3:
            shutil.rmtree(out / "_job" / "data", ignore_errors=True)
    run(corpus, out, "killed.jsonl")
    assert contents(out) == contents(tmp_path / "whole")
    assert len(keys(out)) == len(set(keys(out))) == 24 * wanted


def test_the_log_says_how_long_it_takes_once_something_is_done(corpus, tmp_path):
    run(corpus, tmp_path / "out")
    lines = [t for t in (tmp_path / "out" / "log").read_text().splitlines() if "rows/s" in t]
    assert lines and not any(t.startswith("embed 0 of") for t in lines)
    assert lines[-1].endswith("0.0 minutes left")
