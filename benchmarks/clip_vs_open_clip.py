"""CLIP trained by Diptych and by open_clip: the same pairs, sizes, batch, steps, precision.

Both train a small CLIP (vision transformer, causal text transformer) from scratch on the picture
corpus, in turns on the same machine:

- `open_clip`: its own program (`open_clip_train.main`) on a CSV file, in an environment of its own;
- `diptych`: `diptych.train.trainer.Trainer` with the `contrastive` objective.

Same number of layers, widths, patches, pixels, tokens of the vocabulary (open_clip's own, handed
to transformers as files; that both read the same ids is checked), optimizer, rates, warm-up,
clipping, random crops (90 to 100 % of the area), number of loader processes and threads. Both
start from the weights that open_clip draws for the seed (Diptych reads them by the layout hf-clip;
texts must have the same vectors); the order of the data is drawn by each in its own way. What each
may do as it likes is how it computes: open_clip pads texts to 77 tokens, Diptych to the longest
of the batch, which for a causal encoder that is read at its end token is exact.

Counted: samples per second over all epochs but the first (loading, warming up), and recall@1 on the
held-out pairs, both ways, over seeds. `ratio.samples_per_second` is Diptych over open_clip.

    diptych data pictures pictures
    python benchmarks/clip_vs_open_clip.py --data pictures --prepare peer     # once
    python benchmarks/clip_vs_open_clip.py --data pictures --peer peer --json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TARGET = 1.2
SIZES = {"width": 256, "vision_layers": 6, "text_layers": 4, "heads": 4, "dim": 256,
         "patch": 8, "context": 77}  # fmt: skip
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SHIM = """import torch as _torch
_library = _torch.library.Library("torchvision", "DEF")
_library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
"""The only torchvision wheel for this torch wants CUDA libraries; what open_clip needs of it works
without its compiled part once these two names exist."""


def prepare(folder: Path) -> None:
    """An environment for open_clip: CPU torch, torchvision without its compiled part."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin/python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    needs = "numpy pillow ftfy regex tqdm huggingface_hub safetensors pyyaml"
    needs += " braceexpand webdataset pandas fsspec"
    subprocess.run([*pip, "install", "torch==2.13.0", *needs.split()], check=True)
    peers = ["open_clip_torch==3.3.0", "timm==1.0.31", "torchvision==0.28.0"]
    subprocess.run([*pip, "install", "--no-deps", *peers], check=True)
    found = next(folder.glob("lib/python*/site-packages/torchvision"))
    shimmed = folder / "shim" / "torchvision"
    shutil.copytree(found, shimmed, ignore=shutil.ignore_patterns("*.so", "*.so.*"))
    start = shimmed / "__init__.py"
    start.write_text(SHIM + start.read_text(encoding="utf-8"), encoding="utf-8")
    subprocess.run([*pip, "uninstall", "--yes", "torchvision"], check=True)


def peer_run(peer: Path, arguments: list[str], log: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(peer / "shim"),
        "TOKENIZERS_PARALLELISM": "false",
    }
    with log.open("ab") as out:
        command = [str(peer / "bin/python"), str(HERE / "open_clip_run.py"), *arguments]
        done = subprocess.run(command, env=environment, stdout=out, stderr=subprocess.STDOUT)
    if done.returncode:
        tail = log.read_text(errors="replace").splitlines()[-15:]
        sys.exit("open_clip failed:\n" + "\n".join(tail))


def peer_settings(s: argparse.Namespace, rows: dict, seed: int, out: Path) -> Path:
    """The file that a run of open_clip reads."""
    size = SIZES
    settings = {
        "model": {
            "embed_dim": size["dim"],
            "vision_cfg": {
                "image_size": s.pixels, "layers": size["vision_layers"], "width": size["width"],
                "patch_size": size["patch"], "head_width": size["width"] // size["heads"],
            },
            "text_cfg": {
                "context_length": size["context"], "vocab_size": 49408, "width": size["width"],
                "heads": size["heads"], "layers": size["text_layers"],
            },
        },
        "train": rows["train"], "test": rows["test"], "out": str(out), "seed": seed,
        "batch_size": s.batch_size, "num_epochs": s.epochs, "learning_rate": s.learning_rate,
        "weight_decay": 0.2, "warmup_steps": s.warmup_steps, "num_workers": 1,
        "num_threads": s.threads, "precision": {"bf16": "amp_bf16", "float32": "fp32"}[s.precision],
        "weights": str(out.parent / f"initial-{seed}.pt"),
    }  # fmt: skip
    out.mkdir(parents=True)
    file = out / "settings.json"
    file.write_text(json.dumps(settings), encoding="utf-8")
    return file


def initial_weights(
    peer: Path, s: argparse.Namespace, rows: dict, seed: int, out: Path, tokens: Path
) -> Path:
    """open_clip's weights before training, as a folder of the layout hf-clip."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    from diptych.data.pixels.preprocessing import Preprocessing

    file = peer_settings(s, rows, seed, out)
    peer_run(peer, ["initial", str(file)], out / "log.txt")
    shared = {
        "hidden_size": SIZES["width"], "intermediate_size": 4 * SIZES["width"],
        "num_attention_heads": SIZES["heads"], "hidden_act": "gelu",
    }  # fmt: skip
    vision = {**shared, "image_size": s.pixels, "patch_size": SIZES["patch"],
              "num_hidden_layers": SIZES["vision_layers"]}  # fmt: skip
    text = {**shared, "num_hidden_layers": SIZES["text_layers"], "vocab_size": 49408,
            "max_position_embeddings": SIZES["context"], "bos_token_id": 49406,
            "eos_token_id": 49407}  # fmt: skip
    model = CLIPModel(
        CLIPConfig(vision_config=vision, text_config=text, projection_dim=SIZES["dim"])
    )
    theirs = json.loads(file.read_text())["weights"]
    weights = torch.load(theirs, map_location="cpu", weights_only=True)
    found = model.load_state_dict(hf_names(weights), strict=False)
    missing = [name for name in found.missing_keys if not name.endswith("position_ids")]
    if missing or found.unexpected_keys:
        sys.exit(f"weights do not fit: {missing}, {found.unexpected_keys}")
    model.save_pretrained(out)
    shutil.copytree(tokens, out, dirs_exist_ok=True)
    pixels = Preprocessing(resize="exact", size=(s.pixels, s.pixels), mean=MEAN, std=STD)
    (out / "preprocessor_config.json").write_text(json.dumps(pixels.to_hf("clip")))
    return out


def hf_names(weights: dict[str, Any]) -> dict[str, Any]:
    """A state dict of open_clip's CLIP under the names of transformers' CLIPModel."""
    plain = {
        "logit_scale": "logit_scale",
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
    }
    parts = {
        "visual.ln_pre.": "vision_model.pre_layrnorm.",
        "visual.ln_post.": "vision_model.post_layernorm.",
        "ln_final.": "text_model.final_layer_norm.",
        "visual.transformer.resblocks.": "vision_model.encoder.layers.",
        "transformer.resblocks.": "text_model.encoder.layers.",
        ".ln_1.": ".layer_norm1.", ".ln_2.": ".layer_norm2.", ".attn.": ".self_attn.",
        ".c_fc.": ".fc1.", ".c_proj.": ".fc2.",
    }  # fmt: skip
    found = {}
    for name, value in weights.items():
        if name in ("visual.proj", "text_projection"):  # x @ W in open_clip
            kind = "visual" if name == "visual.proj" else "text"
            found[f"{kind}_projection.weight"] = value.T.contiguous()
            continue
        if name == "attn_mask":
            continue
        new = plain.get(name, name)
        for old, its in parts.items() if name not in plain else ():
            new = new.replace(old, its, 1)
        if ".in_proj_" in new:
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                found[new.replace("in_proj_", f"{part}_proj.")] = rows.contiguous()
        else:
            found[new] = value
    return found


def run_open_clip(peer: Path, s: argparse.Namespace, rows: dict, seed: int, out: Path) -> dict:
    peer_run(peer, ["train", str(peer_settings(s, rows, seed, out))], out / "log.txt")
    found = json.loads((out / "figures.json").read_text())
    # Its loader drops the last, short batch of an epoch.
    samples = len(rows["train"]) // s.batch_size * s.batch_size
    seconds = statistics.median(found["epoch_seconds"][1:])
    return {
        "samples_per_second": samples / seconds,
        "num_parameters": found["num_parameters"],
        "versions": found["versions"],
        **_recall(found["text_rank"], found["image_rank"]),
    }


def run_diptych(s: argparse.Namespace, rows: dict, seed: int, out: Path, initial: Path) -> dict:
    """In a process of its own, so that nothing of another run is left in memory."""
    settings = {**vars(s), "seed": seed, "out": str(out), "initial": str(initial), "rows": rows}
    out.mkdir(parents=True)
    file = out / "settings.json"
    file.write_text(json.dumps(settings, default=str), encoding="utf-8")
    with (out / "log.txt").open("wb") as log:
        command = [sys.executable, str(Path(__file__).resolve()), "--child", str(file)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(s.threads)}
        done = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit("diptych failed:\n" + "\n".join((out / "log.txt").read_text().splitlines()[-15:]))
    return json.loads((out / "figures.json").read_text())


def child(settings: dict[str, Any]) -> dict[str, Any]:
    import torch

    from diptych.convert import layout
    from diptych.data.pixels.augment import Augment
    from diptych.eval.retrieval import ranks
    from diptych.model.trainable import Learn
    from diptych.progress import Progress
    from diptych.train.stage import DataConfig, Schedule, Stage
    from diptych.train.trainer import Trainer

    torch.set_num_threads(settings["threads"])
    out, rows, batch = Path(settings["out"]), settings["rows"], settings["batch_size"]
    data = out / "train.jsonl"
    data.write_text(
        "".join(
            json.dumps({"image": image.lstrip("/"), "caption": text, "image_id": str(n)}) + "\n"
            for n, (image, text) in enumerate(rows["train"])
        )
    )
    model, _ = layout.load(settings["initial"], "hf-clip")
    probe = torch.load(Path(settings["initial"]) / "probe.pt", weights_only=True)
    apart = (model.encode_texts(probe["texts"]) - probe["vectors"]).abs().max()
    if apart > 1e-4:
        sys.exit(f"the initial weights give other vectors (by {apart:.1e})")
    per_epoch = len(rows["train"]) // batch
    steps = per_epoch * settings["epochs"]
    stage = Stage(
        name="pretrain",
        objective="contrastive",
        data=(DataConfig(path=str(data), images="/"),),
        learn={part: Learn() for part in ("vision_encoder", "text_encoder", "space")},
        num_steps=steps,
        global_batch_size=batch,
        learning_rate=settings["learning_rate"],
        betas=(0.9, 0.98),
        epsilon=1e-6,
        weight_decay=0.2,
        schedule=Schedule(warmup_share=settings["warmup_steps"] / steps),
        augment=Augment(min_area=0.9),
        precision=settings["precision"],
        long_samples="truncate",
        num_workers=1,
        verify_images="none",
    )
    Trainer(
        model, [stage], out / "run", seed=settings["seed"], trackers=(),
        progress=Progress(out / "train.log", quiet=True),
    ).train()  # fmt: skip
    lines = [json.loads(t) for t in (out / "run" / "metrics.jsonl").read_text().splitlines()]
    seconds = [line["seconds"] for line in lines]
    epochs = [sum(seconds[i : i + per_epoch]) for i in range(0, steps, per_epoch)]
    model.eval()
    images, texts = zip(*rows["test"], strict=True)
    similarity = model.encode_images(images) @ model.encode_texts(texts).T
    found = ranks(similarity, range(len(texts)))
    return {
        "samples_per_second": per_epoch * batch / statistics.median(epochs[1:]),
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "first_loss": lines[0]["loss"],
        "last_loss": lines[-1]["loss"],
        **_recall(found.text_of_image.tolist(), found.image_of_text.tolist()),
    }


def _recall(text_rank: list[int], image_rank: list[int]) -> dict[str, float]:
    return {
        "text_retrieval_recall@1": sum(r < 1 for r in text_rank) / len(text_rank),
        "image_retrieval_recall@1": sum(r < 1 for r in image_rank) / len(image_rank),
        "text_retrieval_recall@10": sum(r < 10 for r in text_rank) / len(text_rank),
        "recall_at_1": (sum(r < 1 for r in text_rank) + sum(r < 1 for r in image_rank))
        / (len(text_rank) + len(image_rank)),
    }


def tokenizer(peer: Path, out: Path, texts: list[str]) -> Path:
    """open_clip's vocabulary for transformers; both must read the texts alike."""
    from transformers import CLIPTokenizer

    peer_run(peer, ["tokenizer", str(out)], out.with_suffix(".log"))
    vocabulary = json.loads((out / "vocab.json").read_text())
    made = CLIPTokenizer(
        vocab=vocabulary,
        merges=[tuple(m.split()) for m in (out / "merges.txt").read_text().splitlines()[1:]],
        bos_token="<start_of_text>", eos_token="<end_of_text>", unk_token="<end_of_text>",
        pad_token="<end_of_text>",
    )  # fmt: skip
    made.save_pretrained(out)
    ids = [made(t)["input_ids"] for t in texts]
    (out / "texts.json").write_text(json.dumps({"texts": texts, "ids": ids}), encoding="utf-8")
    peer_run(peer, ["compare", str(out / "texts.json")], out.with_suffix(".log"))
    return out


def read_rows(data: Path) -> dict[str, list[tuple[str, str]]]:
    rows = {}
    for split in ("train", "test"):
        lines = [json.loads(t) for t in (data / f"{split}.jsonl").read_text("utf-8").splitlines()]
        rows[split] = [(str((data / r["image"]).resolve()), r["caption"]) for r in lines]
    return rows


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of `diptych data pictures`")
    parser.add_argument(
        "--prepare", type=Path, metavar="FOLDER", help="make open_clip's environment"
    )
    parser.add_argument("--peer", type=Path, metavar="FOLDER", help="the peer made so")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--pixels", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--warmup-steps", type=int, default=40)
    parser.add_argument("--precision", choices=("bf16", "float32"), default="bf16")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="training pairs, for a quick look")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    s = parser.parse_args()
    if s.child:
        settings = json.loads(Path(s.child).read_text(encoding="utf-8"))
        (Path(settings["out"]) / "figures.json").write_text(json.dumps(child(settings)))
        return
    if s.prepare:
        prepare(s.prepare)
        print(f"ready: --peer {s.prepare}", file=sys.stderr)
        return
    if not s.data or not s.peer:
        parser.error("--data and --peer are needed (make the second with --prepare)")
    rows = read_rows(s.data)
    rows["train"] = rows["train"][: s.limit]
    found: dict[str, list[dict[str, Any]]] = {"diptych": [], "open_clip": []}
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        tokens = tokenizer(s.peer.resolve(), work / "tokens", [t for _, t in rows["train"]])
        for seed in range(s.first_seed, s.first_seed + s.seeds):
            # In turns, and each first half of the time: a machine's speed drifts.
            turn = ("diptych", "open_clip") if seed % 2 == 0 else ("open_clip", "diptych")
            peer = s.peer.resolve()
            initial = initial_weights(peer, s, rows, seed, work / f"initial-of-{seed}", tokens)
            for name in turn:
                out = work / f"{name}-{seed}"
                if name == "diptych":
                    figures = run_diptych(s, rows, seed, out, initial)
                else:
                    figures = run_open_clip(peer, s, rows, seed, out)
                found[name].append(figures)
                print(f"{name} seed {seed}: {figures}", file=sys.stderr)
    summary = summarize(s, rows, found, time.monotonic() - start)
    text = json.dumps(summary, indent=2)
    if s.out:
        s.out.write_text(text + "\n")
    print(text if s.json else table(summary))


def summarize(s: argparse.Namespace, rows: dict, found: dict, seconds: float) -> dict[str, Any]:
    """What `--json` prints."""
    import torch

    contenders = {}
    for name, runs in found.items():
        recalls = [r["recall_at_1"] for r in runs]
        contenders[name] = {
            "samples_per_second": statistics.median(r["samples_per_second"] for r in runs),
            "recall_at_1": {
                "mean": statistics.mean(recalls),
                "spread": statistics.stdev(recalls) if len(recalls) > 1 else 0.0,
                "by_seed": recalls,
            },
            "runs": runs,
        }
    pairs = zip(found["diptych"], found["open_clip"], strict=True)
    ratios = [a["samples_per_second"] / b["samples_per_second"] for a, b in pairs]
    return {
        "benchmark": "clip_vs_open_clip",
        "environment": {
            "python": platform.python_version(), "torch": torch.__version__,
            "cpu": _cpu(), "num_cores": os.cpu_count(), "peer": found["open_clip"][0]["versions"],
        },
        "settings": {
            **{k: getattr(s, k) for k in (
                "epochs", "batch_size", "pixels", "learning_rate", "warmup_steps", "precision",
                "threads", "seeds",
            )},
            **SIZES, "train_pairs": len(rows["train"]), "test_pairs": len(rows["test"]),
        },
        "contenders": contenders,
        "ratio": {"samples_per_second": statistics.median(ratios)},
        "ratio_range": [min(ratios), max(ratios)],
        "recall_at_1": {n: c["recall_at_1"] for n, c in contenders.items()},
        "target": TARGET,
        "seconds": seconds,
    }  # fmt: skip


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def table(summary: dict[str, Any]) -> str:
    """The figures for a person."""
    lines = [f"{'':12}{'samples/s':>11}{'recall@1':>11}{'spread':>9}"]
    for name, c in summary["contenders"].items():
        recall = c["recall_at_1"]
        lines.append(
            f"{name:12}{c['samples_per_second']:11.1f}{recall['mean']:11.1%}{recall['spread']:9.1%}"
        )
    low, high = summary["ratio_range"]
    ratio = summary["ratio"]["samples_per_second"]
    lines.append(
        f"ratio {ratio:.2f} (single pairs of runs {low:.2f} to {high:.2f}), target {TARGET}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
