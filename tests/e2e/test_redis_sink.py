"""Vectors in a real Redis server: newest wins, nothing is lost when it goes away."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest

from diptych.embed.sink import About, Shard, open_sink, without_secrets
from diptych.embed.sinks import redis as module
from diptych.embed.store import FeatureStore
from diptych.embed.vectors import Vectors
from diptych.errors import ConfigError, DataError, SinkAway

redis = pytest.importorskip("redis")
from tests.e2e.redis_server import SERVER, Server  # noqa: E402

pytestmark = pytest.mark.skipif(SERVER is None, reason="redis-server is not installed")
ABOUT = About("0123456789ab", "image", "float32", ("group",))


@pytest.fixture
def server(tmp_path):
    running = Server(tmp_path)
    yield running
    running.kill()


def shard(values, when, keys=None, number=0):
    keys = keys or [f"item {n}" for n in range(len(values))]
    rows = [{"image": f"{k}.png", "text": None, "group": 3} for k in keys]
    return Shard(number, keys, Vectors(np.asarray(values, np.float32)), rows, when)


def stored(server, key):
    client = redis.Redis(port=server.port)
    return client.hgetall(f"diptych:things:image-{ABOUT.fingerprint}:{key}")


def test_one_hash_an_entity_with_raw_float32(server):
    values = np.random.default_rng(0).normal(size=(600, 7)).astype(np.float32)
    sink = open_sink(server.url, ABOUT)
    sink.write(shard(values, 1_700_000_000_123_456_789))
    found = stored(server, "item 599")
    assert np.array_equal(np.frombuffer(found[b"vector"], "<f4"), values[599])
    assert found[b"event_time"] == b"1700000000123456789" and found[b"group"] == b"3"
    assert found[b"image"] == b"item 599.png" and b"text" not in found
    client = redis.Redis(port=server.port)
    assert client.get("diptych:things:live") == f"image-{ABOUT.fingerprint}".encode()
    assert client.hget(f"diptych:things:about:image-{ABOUT.fingerprint}", "dim") == b"7"


def test_an_older_write_never_beats_a_newer_one(server):
    sink = open_sink(server.url, ABOUT)
    # Nanoseconds apart, and of different lengths in digits.
    for when in (10, 9, 1_700_000_000_000_000_002, 1_700_000_000_000_000_001, 99):
        sink.write(shard([[float(when % 1000)]], when))
    assert stored(server, "item 0")[b"event_time"] == b"1700000000000000002"
    assert np.frombuffer(stored(server, "item 0")[b"vector"], "<f4")[0] == 2.0


def test_many_writers_with_times_in_any_order(server):
    """Whatever the threads interleave, the newest of each entity is what stays."""
    rng = random.Random(5)
    keys = [f"k{n}" for n in range(20)]
    base = 1_700_000_000_000_000_000
    writes = [(base + n, rng.sample(keys, 7)) for n in range(160)]
    newest = {k: max(t for t, own in writes if k in own) for k in keys}
    rng.shuffle(writes)

    def work(own):
        sink = open_sink(server.url, ABOUT)
        for when, chosen in own:
            sink.write(shard([[float(when - base)]] * len(chosen), when, chosen))

    threads = [threading.Thread(target=work, args=(writes[n::8],)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for key, when in newest.items():
        found = stored(server, key)
        assert int(found[b"event_time"]) == when
        assert np.frombuffer(found[b"vector"], "<f4")[0] == when - base


def test_a_server_that_is_killed_is_named_and_loses_nothing(server):
    sink = open_sink(server.url, ABOUT)
    sink.write(shard([[1.0], [2.0]], 5))
    server.kill()
    with pytest.raises(SinkAway, match="does not answer"):
        sink.write(shard([[3.0], [4.0]], 6))
    server.start()
    sink.write(shard([[3.0], [4.0]], 6))
    assert np.frombuffer(stored(server, "item 1")[b"vector"], "<f4")[0] == 4.0


def test_a_store_reads_the_live_version_and_switches_in_one_step(server):
    open_sink(server.url, ABOUT).write(shard([[1.0, 2.0], [3.0, 4.0]], 5))
    newer = About("fedcba987654", "image", "float32")
    open_sink(server.url, newer).write(shard([[7.0, 8.0]], 6))
    store = FeatureStore(server.url)
    assert store.version == "image-0123456789ab" and len(store.versions()) == 2
    vectors, missing = store.get(["item 1", "nobody", "item 0"])
    assert missing == ["nobody"] and np.isnan(vectors[1]).all()
    assert vectors[0].tolist() == [3.0, 4.0] and vectors[2].tolist() == [1.0, 2.0]
    assert store.switch("image-fedcba987654") == "image-0123456789ab"
    assert store.get(["item 0"])[0].tolist() == [[7.0, 8.0]]
    old = FeatureStore(server.url, "image-0123456789ab")
    assert old.get(["item 0"])[0].tolist() == [[1.0, 2.0]]
    assert store.fields("item 0")["event_time"] == 6 and store.fields("nobody") is None
    with pytest.raises(DataError, match="no version"):
        store.switch("image-none")


def test_another_process_s_switch_is_seen_in_time(server, monkeypatch):
    from diptych.embed import store as module

    open_sink(server.url, ABOUT).write(shard([[1.0, 2.0]], 5))
    newer = About("fedcba987654", "image", "float32")
    open_sink(server.url, newer).write(shard([[7.0, 8.0], [9.0, 9.0]], 6))
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    reader, eager = FeatureStore(server.url), FeatureStore(server.url, fresh_seconds=0)
    assert reader.get(["item 0"])[0].tolist() == [[1.0, 2.0]]
    FeatureStore(server.url).switch(newer.version)
    assert eager.get(["item 0"])[0].tolist() == [[7.0, 8.0]]
    assert reader.get(["item 0"])[0].tolist() == [[1.0, 2.0]]
    # What the old version lacks is asked of the live one.
    assert reader.get(["item 1"])[0].tolist() == [[9.0, 9.0]]
    assert reader.get(["item 0"])[0].tolist() == [[7.0, 8.0]]
    FeatureStore(server.url).switch(f"image-{ABOUT.fingerprint}")
    assert reader.get(["item 0"])[0].tolist() == [[7.0, 8.0]]
    now[0] += 1.5
    assert reader.get(["item 0"])[0].tolist() == [[1.0, 2.0]]


def test_an_empty_group_says_so(server):
    with pytest.raises(DataError, match="empty"):
        FeatureStore(server.url).get(["a"])


def test_entities_may_expire(server):
    open_sink(f"{server.url}?ttl_seconds=100", ABOUT).write(shard([[1.0]], 5))
    client = redis.Redis(port=server.port)
    assert 90_000 < client.pttl(f"diptych:things:image-{ABOUT.fingerprint}:item 0") <= 100_000


@pytest.mark.parametrize("url", ["redis://localhost", "redis://localhost/a/b", "redis://h/a:b"])
def test_a_url_without_a_group_is_refused(url):
    with pytest.raises(ConfigError, match="group"):
        open_sink(url, ABOUT)


def test_what_a_connection_needs_may_stand_in_the_url(server, tmp_path):
    client, group = module.connect(f"{server.url}?ttl_seconds=9&search=yes")
    assert group == "things" and client.ping()
    FeatureStore(f"{server.url}?ttl_seconds=9").client.close()
    with pytest.raises(ConfigError) as caught:
        open_sink("redis://host/group?password=secret", ABOUT)
    assert "password" in str(caught.value) and "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="group"):
        open_sink("redis:items", ABOUT)
    given = "rediss://localhost:1/group?ssl_ca_certs=ca.pem&ssl_cert_reqs=required"
    settings = module.connect(given)[0].connection_pool.connection_kwargs
    assert settings["ssl_ca_certs"] == "ca.pem"


def test_a_wrong_password_is_not_waited_for_and_a_full_server_is(server):
    sink = open_sink(server.url, ABOUT)
    client = redis.Redis(port=server.port)
    client.config_set("maxmemory", 1)
    with pytest.raises(SinkAway, match="no room"):
        sink.write(shard(np.zeros((2, 4)), 5))
    client.config_set("maxmemory", 0)
    sink.write(shard(np.zeros((2, 4)), 5))
    client.config_set("requirepass", "secret")
    with pytest.raises(ConfigError, match="user or password"):
        open_sink(server.url, ABOUT).write(shard(np.zeros((2, 4)), 5))


def test_ids_that_are_not_there_are_rows_of_nan(server):
    open_sink(server.url, ABOUT).write(shard(np.zeros((2, 4)), 5))
    for store in (FeatureStore(server.url), FeatureStore(server.url, fresh_seconds=0)):
        for ids in (["a"], ["a", "b"]):
            vectors, missing = store.get(ids)
            assert vectors.shape == (len(ids), 4) and np.isnan(vectors).all() and missing == ids


def test_one_answer_is_of_one_version_whatever_happens_between_its_pieces(server, monkeypatch):
    other = About("ba9876543210", "image", "float32")
    keys = [f"item {n}" for n in range(600)]
    for about, value in ((ABOUT, 1.0), (other, 2.0)):
        open_sink(server.url, about).write(shard(np.full((600, 4), value), 5, keys))
    store, switching = FeatureStore(server.url, fresh_seconds=0), FeatureStore(server.url)
    read, calls = store._read, []

    def between(**given):
        calls.append(given)
        if len(calls) == 2:
            switching.switch(other.version)
        return read(**given)

    monkeypatch.setattr(store, "_read", between)
    vectors, missing = store.get(keys)
    assert len(calls) == 3 and not missing and (vectors == 1.0).all()
    assert (store.get(keys)[0] == 2.0).all()


def test_a_password_is_written_nowhere():
    assert without_secrets("redis://me:p@ss/word@host/group") == "redis://host/group"
    assert without_secrets("redis://me:secret@host:1/0/group?x=1") == "redis://host:1/0/group?x=1"
    assert without_secrets("parquet:a@b/c") == "parquet:a@b/c"
    with pytest.raises(ConfigError) as caught:
        open_sink("nowhere://me:secret@host/group", ABOUT)
    assert "secret" not in str(caught.value)


def test_matrices_and_unknown_settings_are_refused(server):
    with pytest.raises(ConfigError, match="matrix"):
        open_sink(server.url, ABOUT).write(shard([[[1.0], [2.0]]], 5))
    with pytest.raises(ConfigError, match="ttl"):
        open_sink(f"{server.url}?ttl=5", ABOUT)
    with pytest.raises(ConfigError, match="names no place"):
        open_sink("ftp://somewhere/group", ABOUT)
    assert module.PREFIX == "diptych"
