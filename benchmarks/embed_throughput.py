"""Vectors of pictures on disk: `diptych embed` against the loops that people write.

Three models with random weights, the same in every contender, float32:

- `clip`: a CLIP with ViT-B/16;
- `small`: a CLIP with ViT-Ti/32, where reading a picture costs more than the model;
- `blip2`: ViT-g's width and pixels (1408, 364) with few layers, and a Q-Former of BERT-base's size;
  vectors of picture and caption together, [32, 768] averaged.

Contenders:

- `diptych`: the whole job, JPEG on disk to Parquet on disk;
- `diptych_auto`: the same with `--precision auto`;
- `notebook`: one picture at a time through the processor and transformers' class;
- `dataloader`: transformers' class behind a DataLoader with worker processes, batches of 32;
- `sentence_transformers`: its CLIP module (in an environment of its own, --peer);
- `bound`: Diptych's model alone on tensors that are in memory.

All vectors must agree with Diptych's before a ratio is printed (cosine above 0.999: the processors
resize with 8-bit rounding of their own). Runs take turns; figures are medians.

    python benchmarks/embed_throughput.py --prepare peer          # once
    python benchmarks/embed_throughput.py --peer peer --json

`ratio`: `of_bound` (bound / diptych), `best_peer` (best of dataloader and sentence_transformers /
diptych), `notebook_loop` (notebook / diptych), `auto` (best peer, or the notebook where there is no
other, / diptych_auto) of each model. `pace` says what was chosen, and on which processor. With
`--plot FILE` also the time of a picture over batch sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from diptych.cli.run import environment
from diptych.convert import layout
from diptych.model.architecture import config_from_dict
from diptych.model.folder import build, save_model

sys.path.insert(0, str(Path(__file__).resolve().parent))
from embed_contenders import PERSON

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
CLIP_PIXELS = {"mean": [0.48145466, 0.4578275, 0.40821073],
               "std": [0.26862954, 0.26130258, 0.27577711]}  # fmt: skip
MODELS = ("clip", "small", "blip2")
PEERS = {
    "clip": ("notebook", "dataloader", "sentence_transformers"),
    "small": ("notebook", "dataloader", "sentence_transformers"),
    "blip2": ("notebook",),
}


def clip(width: int, layers: int, heads: int, patch: int, tokenizer: str) -> dict[str, Any]:
    """A CLIP with a vision transformer of this size at 224 pixels."""
    size = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
            "num_attention_heads": heads}  # fmt: skip
    return {
        "name": "dual_encoder",
        "vision_encoder": {
            "config": {"model_type": "clip_vision_model", **size, "image_size": 224,
                       "patch_size": patch},
            "features": "full",
            "image": {"resize": "shortest_edge", "size": [224, 224], "crop": [224, 224],
                      **CLIP_PIXELS},
        },
        "text_encoder": {
            "config": {"model_type": "clip_text_model", "hidden_size": 64, "intermediate_size": 128,
                       "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 30522,
                       "eos_token_id": 102},
            "tokenizer": tokenizer,
        },
        "dim": 512,
    }  # fmt: skip


def blip2(layers: int, tokenizer: str) -> dict[str, Any]:
    """BLIP-2's first stage with the paper's widths and few layers of the encoder."""
    return {
        "name": "query_transformer",
        "vision_encoder": {
            "config": {"model_type": "blip_2_vision_model", "hidden_size": 1408,
                       "intermediate_size": 6144, "num_hidden_layers": layers,
                       "num_attention_heads": 16, "image_size": 364, "patch_size": 14},
            "features": "full", "layer": -1,
            "image": {"resize": "exact", "size": [364, 364], **CLIP_PIXELS},
        },
        "query_former": {
            "config": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
                       "num_attention_heads": 12},
            "tokenizer": tokenizer, "num_queries": 32, "norm_eps": 1e-6,
        },
        "dim": 256,
    }  # fmt: skip


def draw(folder: Path, num: int, seed: int = 0) -> list[str]:
    """JPEGs of 640 x 480: gradients, shapes and grain, so that decoding costs what photos cost."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for n in range(num):
        coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)
        pen = ImageDraw.Draw(picture)
        for _ in range(12):
            x, y = rng.integers(0, 600), rng.integers(0, 440)
            pen.ellipse((x, y, x + 80, y + 60), fill=tuple(map(int, rng.integers(0, 256, 3))))
        grain = np.asarray(picture, np.int16) + rng.normal(0, 8, (480, 640, 3)).astype(np.int16)
        file = folder / f"{n:05d}.jpg"
        Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(file, quality=90)
        files.append(str(file))
    return files


def prepare(folder: Path) -> None:
    """An environment with sentence-transformers, versions of this project where they overlap."""
    venv.create(folder, with_pip=True)
    pip = [str(folder / "bin" / "pip"), "install", "--quiet", "-c",
           str(Path(__file__).resolve().parents[1] / "constraints.txt")]  # fmt: skip
    subprocess.run([*pip, "torch"], check=True)
    subprocess.run([*pip, "sentence-transformers", "pillow"], check=True)


def run(name: str, settings: dict[str, Any], work: Path, python: str) -> dict[str, Any]:
    """One contender once."""
    stamp = f"{settings['kind_name']}-{name}-{time.monotonic_ns()}"
    file, out = work / f"{stamp}.json", work / f"{stamp}.out.json"
    given = {**settings, "out": str(work / stamp)}
    file.write_text(json.dumps(given))
    script = Path(__file__).resolve().with_name("embed_contenders.py")
    # The threads of the caller's environment would overrule those of the settings.
    variables = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    subprocess.run(
        [python, str(script), name, str(file), str(out)],
        check=True, stdout=sys.stderr,
        env={**variables, "TOKENIZERS_PARALLELISM": "false", "DIPTYCH_CACHE": str(work / "cache")},
    )  # fmt: skip
    found = json.loads(out.read_text())
    vectors = work / f"{stamp}.npy"
    if vectors.is_file():
        found["vectors"] = np.load(vectors)
    return found


def compare(s: argparse.Namespace, work: Path, name: str) -> dict[str, Any]:
    """All contenders of one model."""
    config = {
        "clip": clip(768, 12, 12, 16, s.tokenizer),
        "small": clip(192, 12, 3, 32, s.tokenizer),
        "blip2": blip2(s.layers, s.tokenizer),
    }[name]
    model = build(config_from_dict(config), seed=0)
    save_model(model, work / name / "model")
    public = "hf-blip2-retrieval" if name == "blip2" else "hf-clip"
    layout.export(model, public, work / name / "hf")
    del model
    num = {"clip": s.num, "small": s.num * 4, "blip2": max(8, s.num // 4)}[name]
    files = draw(work / name / "pictures", num)
    rows = work / name / "pictures" / "rows.jsonl"
    lines = ({"id": Path(f).stem, "image": Path(f).name, "caption": PERSON} for f in files)
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    what = {"what": "multimodal", "space": "states"} if name == "blip2" else {"what": "image"}
    settings = {
        "kind": "blip2" if name == "blip2" else "clip", "kind_name": name, "settings": what,
        "model": str(work / name / "model"), "hf": str(work / name / "hf"), "files": files,
        "rows": str(rows), "batch_size": 8 if name == "blip2" else 32, "threads": s.threads,
        "workers": s.threads, "device": s.device,
    }  # fmt: skip
    pythons = {"sentence_transformers": str(s.peer / "bin" / "python") if s.peer else ""}
    names = [n for n in ("diptych", "diptych_auto", *PEERS[name]) if pythons.get(n, "here")]
    found: dict[str, list[dict[str, Any]]] = {n: [] for n in names}
    for turn in range(s.repeats):
        for contender in names if turn % 2 == 0 else names[::-1]:
            once = run(contender, settings, work, pythons.get(contender, sys.executable))
            found[contender].append(once)
            print(f"{name} {contender}: {num / once['seconds']:.2f}/s", file=sys.stderr, flush=True)
    own = found["diptych"][0]["vectors"]
    agreement = {}
    for contender, runs in found.items():
        cosines = (own * runs[0]["vectors"]).sum(1) / np.linalg.norm(runs[0]["vectors"], axis=1)
        agreement[contender] = float(cosines.min())
        if agreement[contender] < 0.999:
            sys.exit(f"{contender} computes other vectors (cosine {agreement[contender]:.5f})")
    seconds = {n: statistics.median(r["seconds"] for r in runs) for n, runs in found.items()}
    bound = statistics.median(r["bound_seconds"] for r in found["diptych"])
    peers = [seconds[n] for n in ("dataloader", "sentence_transformers") if n in seconds]
    return {
        "num": num,
        "contenders": {
            n: {"seconds": [r["seconds"] for r in runs], "per_second": num / seconds[n],
                "least_cosine": agreement[n]}
            for n, runs in found.items()
        } | {"bound": {"seconds": [r["bound_seconds"] for r in found["diptych"]],
                       "per_second": num / bound}},
        "ratio": {
            "of_bound": bound / seconds["diptych"],
            "best_peer": min(peers) / seconds["diptych"] if peers else None,
            "notebook_loop": seconds["notebook"] / seconds["diptych"],
            "auto": min(peers or [seconds["notebook"]]) / seconds["diptych_auto"],
        },
        "pace": {n: found[n][0]["pace"] for n in ("diptych", "diptych_auto")},
        "warm_up_seconds": {n: found[n][0]["warm_up_seconds"] for n in ("diptych", "diptych_auto")},
        "batch_sizes": run("batch_sizes", settings, work, sys.executable)["milliseconds"],
    }  # fmt: skip


def plot(summary: dict[str, Any], file: Path) -> None:
    """Milliseconds a picture over batch sizes, one line a model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    ticks: set[int] = set()
    for name, found in summary["models"].items():
        sizes = [int(size) for size in found["batch_sizes"]]
        ticks |= set(sizes)
        axes.plot(sizes, list(found["batch_sizes"].values()), marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="batch size", ylabel="forward ms a picture")
    axes.set_xticks(sorted(ticks), [str(size) for size in sorted(ticks)])
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=130)


def table(summary: dict[str, Any]) -> str:
    """The figures for a person."""
    lines = []
    for name, found in summary["models"].items():
        rates = ", ".join(f"{n} {c['per_second']:.1f}/s" for n, c in found["contenders"].items())
        ratios = ", ".join(f"{n} {v:.2f}" for n, v in found["ratio"].items() if v is not None)
        lines += [f"{name}: {rates}", f"  {ratios}"]
    return "\n".join(lines)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prepare", type=Path, help="make sentence-transformers' environment")
    parser.add_argument("--peer", type=Path, help="the environment made so")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--num", type=int, default=256, help="pictures (small: 4x, blip2: 1/4)")
    parser.add_argument("--layers", type=int, default=3, help="encoder layers of blip2")
    parser.add_argument("--tokenizer", default=MINILM, help="name or folder")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    s = parser.parse_args()
    if s.prepare:
        prepare(s.prepare)
        return
    with tempfile.TemporaryDirectory() as scratch:
        models = {name: compare(s, Path(scratch), name) for name in s.models.split(",")}
    ratios = {name: found["ratio"] for name, found in models.items()}
    summary = {
        "benchmark": "embed_throughput",
        "environment": {k: v for k, v in environment().items() if k != "command"},
        "settings": {"num": s.num, "layers": s.layers, "repeats": s.repeats, "threads": s.threads,
                     "device": s.device, "precision": "float32", "pixels_on_disk": [640, 480]},
        "models": models,
        "ratio": {**ratios.get("clip", {}), "by_model": ratios},
    }  # fmt: skip
    if s.plot:
        plot(summary, s.plot)
    text = json.dumps(summary, indent=2)
    if s.out:
        s.out.write_text(text + "\n")
    print(text if s.json else table(summary))


if __name__ == "__main__":
    main()
