"""The batch job's memory over the number of rows, and the feature store's reads.

- `memory`: peak resident memory of `diptych embed` (its job, a tiny model) over many rows against
  a tenth of them, each in a process of its own;
- `redis`: a real server on this machine with 768-wide vectors; 8 clients read one vector at a time
  with `FeatureStore.get`, each in a process of its own, first as fast as they can, then a hundred
  times a second each, at random moments; beside it `redis-benchmark`'s own GET of the same 3,072
  bytes by 8 clients.

    python benchmarks/embed_store.py --json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diptych.cli.run import environment

WIDTH = 768
MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def tiny(tokenizer: str) -> dict[str, Any]:
    """A dual encoder of a few thousand weights."""
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2}  # fmt: skip
    return {
        "name": "dual_encoder", "dim": 64,
        "vision_encoder": {
            "config": {"model_type": "clip_vision_model", **size, "image_size": 16,
                       "patch_size": 8},
            "features": "full", "image": {"resize": "exact", "size": [16, 16]},
        },
        "text_encoder": {
            "config": {"model_type": "clip_text_model", **size, "vocab_size": 30522},
            "tokenizer": tokenizer, "pool": "last",
        },
    }  # fmt: skip


def one_job(folder: str, rows: int) -> None:
    """Embed so many rows in this process and print its peak memory."""
    from diptych.embed.embedder import EmbedConfig, Embedder
    from diptych.embed.job import JobConfig, embed
    from diptych.model.folder import load_model
    from diptych.progress import Progress

    root = Path(folder)
    file, out = root / f"rows-{rows}.jsonl", root / f"out-{rows}"
    with file.open("w") as lines:
        for n in range(rows):
            row = {"id": f"row {n}", "image": f"images/{n % 500}.png", "caption": f"row {n}"}
            lines.write(json.dumps(row) + "\n")
    embedder = Embedder(load_model(root / "model"), EmbedConfig(batch_size=64))
    job = JobConfig(to=(f"parquet:{out}",), state=out / "_job")
    summary = embed(embedder, str(file), job, progress=Progress(out / "log", quiet=True))
    peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) * 1024
    print(json.dumps({"peak_memory_bytes": peak, "written": summary["written"],
                      "seconds": summary["seconds"]}))  # fmt: skip


def memory(rows: int, folder: Path, tokenizer: str) -> dict[str, Any]:
    """Peaks of a tenth of the rows and of all."""
    from diptych.model.architecture import config_from_dict
    from diptych.model.folder import build, save_model

    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for n in range(500):
        pixels = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"images/{n}.png")
    save_model(build(config_from_dict(tiny(tokenizer)), seed=0), folder / "model")
    found = {}
    for count in (rows // 10, rows):
        done = subprocess.run(
            [sys.executable, __file__, "--job", str(folder), str(count)],
            check=True, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        found[str(count)] = json.loads(done.stdout.splitlines()[-1])
        assert found[str(count)]["written"] == count
        print(f"memory {count}: {found[str(count)]}", file=sys.stderr, flush=True)
    few, many = found.values()
    return {**found, "ratio": many["peak_memory_bytes"] / few["peak_memory_bytes"]}


def reader(
    url: str, ids: int, seconds: float, pause: float, seed: int, together: Any, out: Any
) -> None:
    """One client: milliseconds of every read, with pauses of random length (mean `pause`)."""
    from diptych.embed.store import FeatureStore

    store = FeatureStore(url)
    rng = np.random.default_rng(seed)
    picks, pauses = rng.integers(0, ids, 200_000), rng.exponential(pause, 200_000)
    store.get(["row 0"])
    together.wait()  # nobody measures while another still imports
    times, end = [], time.perf_counter() + seconds
    for n, idle in zip(picks, pauses, strict=True):
        start = time.perf_counter()
        if start > end:
            break
        vectors, missing = store.get([f"row {n}"])
        times.append(1000 * (time.perf_counter() - start))
        assert vectors.shape == (1, WIDTH) and not missing
        if pause:
            time.sleep(idle)
    out.put(times)


def reads(url: str, ids: int, clients: int, seconds: float, pause: float) -> dict[str, float]:
    """All clients at once."""
    context = multiprocessing.get_context("spawn")
    out, together = context.Queue(), context.Barrier(clients)
    started = [
        context.Process(target=reader, args=(url, ids, seconds, pause, n, together, out))
        for n in range(clients)
    ]
    for process in started:
        process.start()
    times = np.sort(np.concatenate([out.get() for _ in started]))
    for process in started:
        process.join()
    return {
        "reads": len(times),
        "per_second": len(times) / seconds,
        "median_ms": float(np.median(times)),
        "p99_ms": float(np.quantile(times, 0.99)),
    }


def online(folder: Path, ids: int, clients: int, seconds: float) -> dict[str, Any]:
    """Reads of a real server."""
    from diptych.embed.sink import About, Shard, open_sink
    from diptych.embed.vectors import Vectors

    server, bench = shutil.which("redis-server"), shutil.which("redis-benchmark")
    if server is None or bench is None:
        return {"skipped": "redis-server and redis-benchmark are not installed"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [server, "--port", str(port), "--dir", str(folder), "--save", "", "--appendonly", "no"],
        stdout=subprocess.DEVNULL,
    )
    try:
        time.sleep(1)
        url = f"redis://127.0.0.1:{port}/items"
        sink = open_sink(url, About("0123456789ab", "image", "float32"))
        rng = np.random.default_rng(0)
        start = time.perf_counter()
        for first in range(0, ids, 5000):
            count = min(5000, ids - first)
            keys = [f"row {n}" for n in range(first, first + count)]
            values = rng.normal(size=(count, WIDTH)).astype(np.float32)
            sink.write(Shard(0, keys, Vectors(values), [{}] * count, 1))
        written = ids / (time.perf_counter() - start)
        done = subprocess.run(
            [bench, "-p", str(port), "-t", "set,get", "-d", str(4 * WIDTH), "-c", str(clients),
             "-n", "100000", "-q"],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        lines = done.stdout.replace("\r", "\n").splitlines()
        own = [float(m.group(1)) for x in lines if (m := re.match(r"GET: ([\d.]+) requests", x))]
        fast = reads(url, ids, clients, seconds, 0)
        calm = reads(url, ids, clients, seconds, 0.01)
    finally:
        process.kill()
        process.wait()
    return {
        "ids": ids, "clients": clients, "width": WIDTH, "writes_per_second": written,
        "as_fast_as_they_can": fast, "a_hundred_a_second_each": calm,
        "redis_benchmark_get_per_second": own[-1], "ratio": fast["per_second"] / own[-1],
    }  # fmt: skip


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--tokenizer", default=MINILM, help="name or folder")
    parser.add_argument("--ids", type=int, default=20_000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--only", choices=("memory", "redis"))
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    s = parser.parse_args()
    if s.job:
        one_job(s.job[0], int(s.job[1]))
        return
    summary: dict[str, Any] = {
        "benchmark": "embed_store",
        "environment": {k: v for k, v in environment().items() if k != "command"},
        "settings": {"rows": s.rows, "ids": s.ids, "clients": s.clients, "seconds": s.seconds},
    }
    with tempfile.TemporaryDirectory() as scratch:
        if s.only != "redis":
            summary["memory"] = memory(s.rows, Path(scratch), s.tokenizer)
        if s.only != "memory":
            summary["redis"] = online(Path(scratch), s.ids, s.clients, s.seconds)
    text = json.dumps(summary, indent=2)
    if s.out:
        s.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
