"""Losses in bfloat16 beside those in float32, and how many weights move in one step.

A small vision-language model learns 200 steps on chart questions that Diptych draws, all parts in
full, four times: float32 and bf16 from the same seed, and float32 from two other seeds (of the
order of the data and the new weights), which says how far apart two runs are that nobody would tell
apart.
Then one step at 2e-5, a usual rate of fine-tuning, from weights that a recipe keeps in bfloat16.

    python benchmarks/precision_curves.py --plot docs/images/precision.png
    python benchmarks/precision_curves.py --json > benchmarks/results/precision_curves.json
    python benchmarks/precision_curves.py --quick     # does it work?

With `--json` standard output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RUNS = {"float32": ("float32", 0), "bf16": ("bf16", 0), "float32, seed 1": ("float32", 1),
        "float32, seed 2": ("float32", 2)}  # fmt: skip
WINDOW = 20
"""Steps over which losses are averaged before they are compared."""


def recipe(precision: str, seed: int, steps: int, **stage: Any) -> dict[str, Any]:
    """A small model and one stage."""
    return {
        "name": "precision", "seed": seed, "trackers": [],
        "model": {
            "vision_encoder": {
                "config": {"model_type": "clip_vision_model", "hidden_size": 128,
                           "intermediate_size": 512, "num_hidden_layers": 3,
                           "num_attention_heads": 4, "image_size": 112, "patch_size": 16},
                "image": {"resize": "exact", "size": [112, 112]}, "dtype": "bfloat16",
            },
            "connector": "mlp",
            "language_model": {
                "config": {"model_type": "llama", "hidden_size": 192, "intermediate_size": 512,
                           "num_attention_heads": 6, "num_key_value_heads": 2,
                           "num_hidden_layers": 4, "max_position_embeddings": 1024,
                           "vocab_size": 1024},
                "tokenizer": "data", "template": "chatml", "dtype": "bfloat16",
            },
        },
        "stages": [{
            "name": "instruct", "data": [{"path": "charts/train.json", "images": "charts/images"}],
            "learn": {"vision_encoder": {}, "connector": {}, "language_model": {}},
            "num_steps": steps, "global_batch_size": 32, "learning_rate": 1e-3,
            "precision": precision, **stage,
        }],
    }  # fmt: skip


def train(folder: Path, name: str, values: dict[str, Any]) -> Path:
    """Run a recipe; its folder."""
    (folder / f"{name}.json").write_text(json.dumps(values))
    done = subprocess.run(
        [sys.executable, "-m", "diptych", "train", f"{name}.json", "--run", name, "--json"],
        cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    print(name, "done", file=sys.stderr)
    return folder / name


def losses(run: Path) -> list[float]:
    """Of every step."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def smooth(values: list[float]) -> np.ndarray:
    """Means of `WINDOW` steps in a row."""
    width = min(WINDOW, len(values))
    return np.convolve(values, np.ones(width) / width, mode="valid")


def plot(curves: dict[str, list[float]], file: Path) -> None:
    """All losses, averaged."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for name, values in curves.items():
        strong = name in ("float32", "bf16")
        axes.plot(smooth(values), label=name, lw=1.6 if strong else 0.8, alpha=1 if strong else 0.6)
    axes.set(xlabel=f"step (means of {WINDOW})", ylabel="loss")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=130)


def main() -> int:
    """Measure, print a table or one JSON object; exit code 1 where bf16 lies beyond the noise."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--quick", action="store_true", help="a few steps")
    asked = parser.parse_args()
    steps = 4 if asked.quick else 200
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        charts = ("data", "charts", "charts", "--num", "40" if asked.quick else "400")
        subprocess.run(
            [sys.executable, "-m", "diptych", *charts], cwd=folder, check=True,
            capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        curves = {
            name: losses(train(folder, f"run{n}", recipe(*settings, steps)))
            for n, (name, settings) in enumerate(RUNS.items())
        }
        one = train(folder, "one", recipe("bf16", 0, 1, learning_rate=2e-5))
        groups = json.loads((one / "parameters.json").read_text())
    means = {name: smooth(values) for name, values in curves.items()}
    apart = float(np.abs(means["bf16"] - means["float32"]).max())
    others = [means[name] for name in RUNS if "seed" in name] + [means["float32"]]
    noise = max(float(np.abs(a - b).max()) for i, a in enumerate(others) for b in others[:i])
    found = {
        "steps": steps, "window": WINDOW, "bf16_to_float32": apart, "seeds_apart": noise,
        "last": {name: float(values[-1]) for name, values in means.items()},
        "moved_at_2e-5": groups,
    }  # fmt: skip
    if asked.plot:
        plot(curves, asked.plot)
    if asked.json:
        from diptych.cli.run import environment

        print(json.dumps({"environment": environment(sys.argv), **found, "curves": curves}))
    else:
        print(json.dumps(found, indent=2))
    return int(apart > noise and not asked.quick)


if __name__ == "__main__":
    raise SystemExit(main())
