"""Training, evaluation, chat and embedding on a GPU, in under eight minutes.

A vision-language model of SmolLM2's size with random weights (ViT-B/16, MLP, a Llama of 30 layers,
width 576) on charts that Diptych draws: steps in bf16, questions answered, one question a turn, and
pictures embedded with `--precision auto`. Beside it how often the host waited for the device in a
training step (`torch.cuda.set_sync_debug_mode`) and the highest memory of the GPU.

    python benchmarks/gpu.py --json > benchmarks/results/gpu.json
    python benchmarks/gpu.py --quick --device cpu     # does it work?

With `--json` standard output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def recipe(quick: bool) -> dict[str, Any]:
    """What is trained."""
    width, layers = (32, 2) if quick else (768, 12)
    text = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
            "num_key_value_heads": 3, "num_hidden_layers": 30}  # fmt: skip
    if quick:
        text = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
                "num_key_value_heads": 2, "num_hidden_layers": 2}  # fmt: skip
    return {
        "name": "gpu",
        "model": {
            "vision_encoder": {
                "config": {"model_type": "clip_vision_model", "hidden_size": width,
                           "intermediate_size": 4 * width, "num_hidden_layers": layers,
                           "num_attention_heads": 2 if quick else 12,
                           "image_size": 224, "patch_size": 32 if quick else 16},
                "image": {"resize": "exact", "size": [224, 224]},
            },
            "connector": "mlp",
            "language_model": {
                "config": {"model_type": "llama", "max_position_embeddings": 2048, **text,
                           "vocab_size": 512 if quick else 4096},
                "tokenizer": "data", "template": "chatml",
            },
        },
        "stages": [{
            "name": "instruct",
            "data": [{"path": "charts/train.json", "images": "charts/images"}],
            "learn": {"vision_encoder": {}, "connector": {}, "language_model": {}},
            "num_steps": 4 if quick else 150, "global_batch_size": 8 if quick else 256,
            "learning_rate": 3e-4, "precision": "bf16",
        }],
        "trackers": [],
    }  # fmt: skip


PLAIN = "import runpy; runpy.run_module('diptych', run_name='__main__')"


def diptych(folder: Path, *words: str, code: str = PLAIN) -> tuple[dict[str, Any], float, str]:
    """A command as a user gives it: what it prints, its seconds, and its log."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--json"], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout or "{}"), time.perf_counter() - start, done.stderr


WATCHED = """
import collections, sys, warnings, runpy, torch
if torch.cuda.is_available():
    torch.cuda.set_sync_debug_mode("warn")
    from diptych.train.trainer import Trainer
    step, seen = Trainer._step, []
    def counted(self, *args):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            figures = step(self, *args)
        waits = sum("synchroniz" in str(w.message) for w in found)
        seen.append((waits, len(args[1].batches)))
        return figures
    Trainer._step = counted
try:
    runpy.run_module("diptych", run_name="__main__")
finally:
    if torch.cuda.is_available() and seen:
        print("WAITS", *seen[-1], file=sys.stderr)
"""


def measure(quick: bool, device: str) -> dict[str, Any]:
    """All of it."""
    chosen = ("--device", device)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        diptych(folder, "data", "charts", "charts", "--num", "40" if quick else "600")
        (folder / "gpu.json").write_text(json.dumps(recipe(quick)))
        words = ("train", "gpu.json", "--run", "run", *chosen)
        _, seconds, said = diptych(folder, *words, code=WATCHED)
        metrics = (folder / "run" / "metrics.jsonl").read_text()
        lines = [json.loads(line) for line in metrics.splitlines()]
        steps = [x for x in lines if "seconds" in x][2:]
        waits = [x.split()[1:] for x in said.splitlines() if x.startswith("WAITS")]
        found: dict[str, Any] = {
            "train": {
                "command_seconds": seconds,
                "step_seconds": sorted(x["seconds"] for x in steps)[len(steps) // 2],
                "tokens_per_second": sorted(x["tokens_per_second"] for x in steps)[len(steps) // 2],
                "memory_bytes": max(x["memory_bytes"] for x in steps),
                "loss": [steps[0]["loss"], steps[-1]["loss"]],
                "waits_of_a_step": int(waits[0][0]) if waits else None,
                "micro_batches": int(waits[0][1]) if waits else None,
            }
        }
        limit = "16" if quick else "600"
        data = ("charts/test.json", "--images", "charts/images", "--limit", limit, *chosen)
        result, seconds, _ = diptych(folder, "eval", "run", *data, "--max-new-tokens", "8")
        asked = result["after"]["n"]
        found["eval"] = {"command_seconds": seconds, "questions": asked,
                         "questions_per_second": asked / seconds}  # fmt: skip
        picture = str(next((folder / "charts" / "images").iterdir()))
        ask = ("--ask", "What is shown?", "--max-new-tokens", "32", *chosen)
        _, seconds, _ = diptych(folder, "chat", "run", picture, *ask)
        found["chat"] = {"command_seconds": seconds}
        for precision in ("float32", "auto"):
            done, _, _ = diptych(
                folder, "embed", "run", "charts/images", "--space", "states",
                "--precision", precision, "--to", f"parquet:vectors-{precision}", *chosen,
            )  # fmt: skip
            found[f"embed_{precision}"] = {
                "rows_per_second": done["written"] / done["seconds"], "pace": done["pace"],
            }  # fmt: skip
    return found


def main() -> int:
    """Measure, print a table or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--quick", action="store_true", help="a tiny model, a few rows")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    from diptych.cli.run import environment

    start = time.perf_counter()
    found = measure(asked.quick, asked.device)
    summary = {
        "benchmark": "gpu", "environment": environment(sys.argv), "device": asked.device,
        "seconds": time.perf_counter() - start, **found,
    }  # fmt: skip
    print(json.dumps(summary) if asked.json else json.dumps(summary, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
