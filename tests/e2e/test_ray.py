"""The same job on a real Ray cluster of several nodes, one of which dies on the way."""

from __future__ import annotations

import json
import threading
import time

import numpy as np
import pytest
from PIL import Image as Pillow

from diptych.embed.embedder import EmbedConfig, Embedder
from diptych.embed.job import JobConfig, embed
from diptych.errors import ConfigError
from diptych.model.architecture import config_from_dict
from diptych.model.folder import build, load_model, save_model
from diptych.progress import Progress

pytestmark = pytest.mark.slow

pytest.importorskip("pyarrow")
ray = pytest.importorskip("ray")
WHEN = 1_700_000_000_123_456_789


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, tiny_dual):
    """Some two hundred rows over a dozen pictures, three of them bad."""
    folder = tmp_path_factory.mktemp("ray")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for n in range(12):
        pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Pillow.fromarray(pixels).save(folder / f"images/{n}.png")
    (folder / "images" / "broken.png").write_bytes(b"\x89PNG no")
    rows = [
        {"id": f"row {n}", "image": f"images/{n % 12}.png", "caption": f"picture {n}"}
        for n in range(200)
    ]
    for n in (7, 90, 199):
        rows[n]["image"] = "images/broken.png"
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    for name, seed in (("model", 1), ("other", 2)):
        save_model(build(config_from_dict(tiny_dual("clip")), seed=seed), folder / name)
    return folder


def run(corpus, out, source="model", **job):
    embedder = Embedder(
        load_model(corpus / "model"),
        EmbedConfig(batch_size=4),
        str(corpus / source) if source else "",
    )
    config = JobConfig(
        to=(f"parquet:{out}",), state=out / "_job", shard_rows=8, event_time_ns=WHEN, **job
    )
    progress = Progress(out / "log", quiet=True)
    return embed(embedder, str(corpus / "rows.jsonl"), config, progress=progress)


def contents(out):
    return {p.name: p.read_bytes() for p in sorted(out.rglob("part-*.parquet"))}


@pytest.fixture
def cluster(monkeypatch):
    from ray.cluster_utils import Cluster

    # Workers get their share of a busy machine.
    monkeypatch.setenv("RAY_worker_niceness", "0")
    running = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    nodes = [running.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=running.address, log_to_driver=False)
    yield running, nodes
    ray.shutdown()
    running.shutdown()


def test_a_cluster_that_loses_a_node_ends_in_the_same_files(corpus, tmp_path, cluster):
    whole = run(corpus, tmp_path / "local")
    running, nodes = cluster
    out = tmp_path / "out"
    killed = []

    def kill():
        # As soon as the first shard is there, while the others are being computed.
        deadline = time.monotonic() + 120
        while not list(out.rglob("part-*.parquet")) and time.monotonic() < deadline:
            time.sleep(0.01)
        killed.append(len(list(out.rglob("part-*.parquet"))))
        running.remove_node(nodes[0], allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    summary = run(corpus, out, engine="ray", workers=3)
    killer.join()
    assert killed and 0 < killed[0] < 25, "the node died during the run"
    deadline = time.monotonic() + 60  # the cluster notices by missed heartbeats
    while len(alive := [n for n in ray.nodes() if n["Alive"]]) > 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(alive) == 2
    for key in ("rows", "written", "rejected", "shards", "skipped"):
        assert summary[key] == whole[key], key
    assert summary["written"] == 197 and summary["shards"] == 25
    assert contents(out) == contents(tmp_path / "local")
    again = run(corpus, out, engine="ray", workers=3)
    assert again["skipped"] == 200 and again["shards"] == 0
    # A node that has another model there is named.
    with pytest.raises(ConfigError, match="another model lies there"):
        run(corpus, tmp_path / "other", source="other", engine="ray", workers=1)


def test_a_model_without_a_folder_is_named(corpus, tmp_path):
    with pytest.raises(ConfigError, match="folder that every node"):
        run(corpus, tmp_path / "out", source="", engine="ray")
