"""What CapFilt is worth on the picture corpus with 30 % of the captions at the wrong picture.

For every seed: a fifth of the training pictures (whole groups of one concept) stay clean; of the
captions of the others a share is dealt anew among pictures of other concepts. Then

1. `noisy`: a small CLIP (recipe clip-small) learns from the noisy and the clean pairs;
2. its encoder starts a captioner (recipe blip-small) on the same pairs, so nothing here has seen
   a true caption of a dealt picture;
3. `diptych data capfilt` tunes captioner and filter on the clean pairs and decides on every text;
4. `filtered` and `bootstrapped` (with the synthetic captions that were kept) are the small CLIP
   again on what was kept and the clean pairs, from the same initial weights, for as many steps.

Beside them `dealt_out`: without the dealt captions, as a perfect filter would leave it. Counted:
precision and recall of the filter over the original captions (positive: the caption is the
picture's own), and recall at 1, 5 and 10 on the held-out pairs with 95 % intervals over pictures
and seeds drawn anew together.

    diptych data pictures pictures
    python benchmarks/capfilt_pictures.py --data pictures --work runs-capfilt --json

A stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from blip2_stages import train

from diptych.cli.capfilt import ORIGINAL, SYNTHETIC, capfilt
from diptych.cli.run import environment
from diptych.eval.interval import interval_over_seeds
from diptych.eval.retrieval import ranks
from diptych.model.folder import load_model
from diptych.progress import Progress
from diptych.recipe import load

ARMS = ("noisy", "filtered", "bootstrapped", "dealt_out")
DEPTHS = (1, 5, 10)

Row = dict[str, Any]


def deal(rows: list[Row], clean_share: float, noise: float, seed: int) -> tuple[list[Row], ...]:
    """Clean rows, and noisy ones of which a share has the caption of another concept."""
    rng = random.Random(seed)
    concepts = sorted({r["concept"] for r in rows})
    rng.shuffle(concepts)
    chosen = set(concepts[: round(clean_share * len(concepts))])
    clean = [r for r in rows if r["concept"] in chosen]
    noisy = [dict(r, dealt=False) for r in rows if r["concept"] not in chosen]
    picked = rng.sample(range(len(noisy)), round(noise * len(noisy)))
    captions = [(noisy[i]["concept"], noisy[i]["caption"]) for i in picked]
    # Exchanged until nobody holds a caption of its own concept, or the very same words.
    places = list(range(len(picked)))
    rng.shuffle(places)

    def own(i: int, place: int) -> bool:
        row = noisy[picked[i]]
        return row["concept"] == captions[place][0] or row["caption"] == captions[place][1]

    for i in range(len(places)):
        while own(i, places[i]):
            other = rng.randrange(len(places))
            if not own(i, places[other]) and not own(other, places[i]):
                places[i], places[other] = places[other], places[i]
    for i, place in zip(picked, places, strict=True):
        noisy[i] = dict(noisy[i], caption=captions[place][1], dealt=True)
    return clean, noisy


def write(path: Path, rows: list[Row]) -> Path:
    """Rows as JSON lines; their pictures stay where they are.

    A file that has them is left alone: written anew it would count as changed, and a stopped run
    on it could not go on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(r) + "\n" for r in rows)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
    return path


def one_seed(s: argparse.Namespace, seed: int, rows: list[Row]) -> dict[str, Any]:
    """All runs of one seed: the filter's figures and each arm's result."""
    folder = s.work / f"seed-{seed}"
    clean, noisy = deal(rows, s.clean_share, s.noise, seed)
    clean_file = write(folder / "clean.jsonl", clean)
    noisy_file = write(folder / "noisy.jsonl", noisy)
    kept = [r for r in noisy if not r["dealt"]]
    files = {"noisy": noisy_file, "dealt_out": write(folder / "dealt_out.jsonl", kept)}
    steps = round(s.clip_epochs * (len(clean) + len(noisy)) / 256)
    results = {"noisy": clip(s, folder, "noisy", [noisy_file, clean_file], steps, seed)}
    encoder = folder / "clip-noisy" / "model"
    base = train(
        load("blip-small"), folder / "blip",
        [
            f"seed={seed}", f"model.vision_encoder.weights={encoder}",
            f"stages.pretrain.data={_paths(s, [noisy_file, clean_file])}",
            f"stages.pretrain.num_epochs={s.blip_epochs}",
            f"evaluation.data.path={s.data / 'test.jsonl'}", "evaluation.before=false",
            "evaluation.rerank=null",
        ],
    )  # fmt: skip
    out = folder / "capfilt"
    capfilt(
        str(noisy_file), str(clean_file), str(base / "model"), out, epochs=s.tune_epochs, seed=seed,
        progress=Progress(folder / "capfilt.log", quiet=True), images=str(s.data),
        clean_images=str(s.data),
    )  # fmt: skip
    decisions = [json.loads(t) for t in (out / "decisions.jsonl").read_text("utf-8").splitlines()]
    files |= {name: out / f"{name}.jsonl" for name in ("filtered", "bootstrapped")}
    for arm in ARMS[1:]:
        results[arm] = clip(s, folder, arm, [files[arm], clean_file], steps, seed)
    return {
        "filter": filter_figures(decisions),
        "pairs": {a: sum(1 for _ in files[a].open()) + len(clean) for a in ARMS},
        "ranks": results,
    }


def clip(
    s: argparse.Namespace, folder: Path, arm: str, files: list[Path], steps: int, seed: int
) -> list[int]:
    """Train the small CLIP; its ranks on the held-out pairs."""
    run = train(
        load("clip-small"), folder / f"clip-{arm}",
        [
            f"seed={seed}", f"stages.pretrain.data={_paths(s, files)}",
            f"stages.pretrain.num_steps={steps}",
            f"evaluation.data.path={s.data / 'test.jsonl'}", "evaluation.before=false",
        ],
    )  # fmt: skip
    found = ranks_of(run / "model", s.data / "test.jsonl", run / "ranks.json")
    print(f"seed {seed} {arm}: {recall(found, 1):.3f} {recall(found, 10):.3f}", file=sys.stderr)
    return found


def ranks_of(model: Path, test: Path, kept: Path) -> list[int]:
    """Rank of the right text for every picture, then of the right picture for every text."""
    if not kept.is_file():
        rows = [json.loads(t) for t in test.read_text("utf-8").splitlines()]
        loaded = load_model(model).eval()
        images = loaded.encode_images([test.parent / r["image"] for r in rows])
        texts = loaded.encode_texts([r["caption"] for r in rows])
        found = ranks(images @ texts.T, range(len(rows)))
        both = [*found.text_of_image.tolist(), *found.image_of_text.tolist()]
        kept.write_text(json.dumps(both))
    return json.loads(kept.read_text())


def _paths(s: argparse.Namespace, files: list[Path]) -> str:
    return "[" + ", ".join(f"{{path: '{f}', images: '{s.data}'}}" for f in files) + "]"


def filter_figures(decisions: list[Row]) -> dict[str, float]:
    """Precision and recall over original captions; shares kept."""
    originals = [d for d in decisions if d["text_from"] == ORIGINAL]
    synthetic = [d for d in decisions if d["text_from"] == SYNTHETIC]
    kept = [d for d in originals if d["kept"]]
    true = [d for d in originals if not d["dealt"]]
    hits = sum(not d["dealt"] for d in kept)
    ranked = sorted(originals, key=lambda d: d["score"])
    # The probability that a true caption scores above a dealt one.
    places = sum(i for i, d in enumerate(ranked) if not d["dealt"])
    pairs = len(true) * (len(originals) - len(true))
    return {
        "precision": hits / max(1, len(kept)),
        "recall": hits / len(true),
        "precision_of_keeping_all": len(true) / len(originals),
        "auc": (places - len(true) * (len(true) - 1) / 2) / pairs,
        "kept_original": len(kept) / len(originals),
        "kept_synthetic": sum(d["kept"] for d in synthetic) / len(synthetic),
    }


def recall(found: list[int], depth: int) -> float:
    """Share of queries, both ways, whose partner is among the first."""
    return sum(rank < depth for rank in found) / len(found)


def summarize(s: argparse.Namespace, found: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """What `--json` prints."""
    contenders: dict[str, Any] = {}
    differences: dict[str, Any] = {}
    for arm in ARMS:
        figures: dict[str, Any] = {"pairs": [f["pairs"][arm] for f in found]}
        for depth in DEPTHS:
            rows = [[float(r < depth) for r in f["ranks"][arm]] for f in found]
            low, high = interval_over_seeds(rows)
            by_seed = [statistics.fmean(row) for row in rows]
            figures[f"recall@{depth}"] = {
                "mean": statistics.fmean(by_seed), "low": low, "high": high, "by_seed": by_seed,
            }  # fmt: skip
            noisy = [[float(r < depth) for r in f["ranks"]["noisy"]] for f in found]
            less = [
                [a - b for a, b in zip(*pair, strict=True)]
                for pair in zip(rows, noisy, strict=True)
            ]
            low, high = interval_over_seeds(less)
            mean = statistics.fmean(v for row in less for v in row)
            differences[f"{arm} - noisy, recall@{depth}"] = {
                "difference": mean, "low": low, "high": high,
            }  # fmt: skip
        contenders[arm] = figures
    names = found[0]["filter"]
    return {
        "benchmark": "capfilt_pictures",
        "environment": {k: v for k, v in environment().items() if k != "command"},
        "settings": {k: v for k, v in vars(s).items() if k not in ("data", "work", "json", "out")},
        "filter": {
            name: {
                "mean": statistics.fmean(f["filter"][name] for f in found),
                "by_seed": [f["filter"][name] for f in found],
            }
            for name in names
        },
        "contenders": contenders,
        "differences": {k: v for k, v in differences.items() if not k.startswith("noisy -")},
        "seconds": seconds,
    }


def table(summary: dict[str, Any]) -> str:
    """The figures for a person."""
    lines = ["filter  " + ", ".join(f"{n} {f['mean']:.1%}" for n, f in summary["filter"].items())]
    for arm, figures in summary["contenders"].items():
        shown = (figures[f"recall@{depth}"] for depth in DEPTHS)
        cells = (f"{f['mean']:7.1%} ({f['low']:.1%} to {f['high']:.1%})" for f in shown)
        lines.append(f"{arm:14}" + "".join(cells))
    for name, d in summary["differences"].items():
        lines.append(f"{name}: {d['difference']:+.1%} ({d['low']:+.1%} to {d['high']:+.1%})")
    return "\n".join(lines)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="of `diptych data pictures`")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--noise", type=float, default=0.3)
    parser.add_argument("--clean-share", type=float, default=0.2)
    parser.add_argument("--clip-epochs", type=float, default=10)
    parser.add_argument("--blip-epochs", type=float, default=2)
    parser.add_argument("--tune-epochs", type=float, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    s = parser.parse_args()
    start = time.monotonic()
    s.data, s.work = s.data.resolve(), s.work.resolve()
    rows = [json.loads(t) for t in (s.data / "train.jsonl").read_text("utf-8").splitlines()]
    found = [one_seed(s, seed, rows) for seed in range(s.seeds)]
    summary = summarize(s, found, time.monotonic() - start)
    text = json.dumps(summary, indent=2)
    if s.out:
        s.out.write_text(text + "\n")
    print(text if s.json else table(summary))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
