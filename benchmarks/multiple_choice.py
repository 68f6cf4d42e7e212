"""Time MMLU-style multiple choice: prompts read once against every candidate read alone.

    python benchmarks/multiple_choice.py [--json] [--quick]

Contenders, on the same items, worked examples and random language model, in turns in one process,
each through `diptych.eval.runner.evaluate`:

- `shared`: the model's own `log_likelihoods` (model/shared_prefix.py): the candidates of a prompt
  share it, consecutive prompts share their worked examples;
- `one_by_one`: one forward pass for every prompt and candidate, as Diptych had it at 6dcf3a4.

Both must choose the same answers; `largest_difference` is that of a log-likelihood in nats.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from diptych.data.batching.budget import Budget
from diptych.data.text.chat import Encoded, Fate
from diptych.data.text.tokenizer import train
from diptych.eval.benchmarks.choices import CONTINUATIONS, LETTERS, Choices
from diptych.eval.runner import evaluate
from diptych.model.architecture import config_from_dict
from diptych.model.folder import build

WORDS = (
    "the river a mountain of city in stone under light when water over which north from rises "
    "between early late energy number of cells market law treaty planet measured by heat theory "
    "first second large small always never without moves against time"
)
SUBJECTS = ("astronomy", "geography", "law", "physics")
SHOTS = 5


class OneByOne:
    """Diptych at 6dcf3a4: `raw_log_likelihoods` and `_encoded_sums` of model/likelihood.py."""

    def __init__(self, model: Any):
        self.model = model

    @torch.no_grad()
    def log_likelihoods(self, samples, continuations, *, images, chat=True):
        found = []
        for sample, texts in zip(samples, continuations, strict=True):
            tokenizer = self.model.tokenizer
            prompt = "".join(t.text for t in sample.turns)
            start = tokenizer.encode(prompt, add_special_tokens=False)
            encoded = []
            for text in texts:
                whole = start + tokenizer.encode(text, add_special_tokens=False)
                fates = [Fate.PROMPT] * len(start) + [Fate.TARGET] * (len(whole) - len(start))
                encoded.append(Encoded(tuple(whole), tuple(fates), ()))
            collator = self.model.collator(Budget(packed=False))
            batches = (collator.batch_of([one]).to(self.model.device) for one in encoded)
            found.append([float(self.model.target_log_probs(b).double().sum()) for b in batches])
        return found


class Noting:
    """A model whose log-likelihoods are kept by sample."""

    def __init__(self, model: Any):
        self.model, self.found = model, {}

    def log_likelihoods(self, samples, continuations, **settings):
        rows = self.model.log_likelihoods(samples, continuations, **settings)
        self.found |= {s.id: row for s, row in zip(samples, rows, strict=True)}
        return rows


def write_items(folder: Path, num_items: int) -> list[str]:
    """Files in MMLU's form, `SUBJECT_test.csv` and `SUBJECT_dev.csv`; returns all their texts."""
    drawn, known = random.Random(0), WORDS.split()
    texts = []

    def words(least: int, most: int) -> str:
        return " ".join(drawn.choices(known, k=drawn.randint(least, most)))

    for subject in SUBJECTS:
        for split, count in (("test", num_items // len(SUBJECTS)), ("dev", SHOTS)):
            rows = [
                [f"{words(15, 45).capitalize()}?", *(words(2, 10) for _ in LETTERS),
                 drawn.choice(LETTERS)]
                for _ in range(count)
            ]  # fmt: skip
            (folder / split).mkdir(exist_ok=True)
            path = folder / split / f"{subject}_{split}.csv"
            with path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(rows)
            texts += [" ".join(row) for row in rows]
    return texts


def compose(tokenizer: Path, width: int, layers: int) -> Any:
    """A model around a random Llama; the vision encoder is never used."""
    eye = {"model_type": "clip_vision_model", "hidden_size": 8, "intermediate_size": 8,
           "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 14,
           "patch_size": 7}  # fmt: skip
    text = {"model_type": "llama", "hidden_size": width, "intermediate_size": 3 * width,
            "num_hidden_layers": layers, "num_attention_heads": 8,
            "max_position_embeddings": 2048}  # fmt: skip
    return build(config_from_dict({
        "vision_encoder": {"config": eye, "image": {"resize": "exact", "size": [14, 14]}},
        "connector": "mlp",
        "language_model": {"config": text, "tokenizer": str(tokenizer), "template": "plain"},
    })).eval()  # fmt: skip


def measure(num_items: int, width: int, layers: int, repeats: int) -> dict[str, Any]:
    """Seconds of each contender, their ratio, and how far their numbers are apart."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = write_items(folder, num_items)
        train(texts, folder / "tokenizer", vocab_size=600)
        model = compose(folder / "tokenizer", width, layers)
        benchmark = Choices(folder / "test", dev=folder / "dev", num_shots=SHOTS)
        encode = model.tokenizer.encode
        lengths = [len(encode(s.turns[0].text, add_special_tokens=False))
                   for s in benchmark.samples()]  # fmt: skip
        contenders = {"shared": Noting(model), "one_by_one": Noting(OneByOne(model))}
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        results = {}
        for _ in range(repeats):
            for name, contender in contenders.items():
                start = time.perf_counter()
                results[name] = evaluate(contender, benchmark, blind=False, progress=False)
                seconds[name].append(time.perf_counter() - start)
    ours, theirs = (contenders[name].found for name in ("shared", "one_by_one"))
    apart = max(abs(a - b) for id in theirs for a, b in zip(ours[id], theirs[id], strict=True))
    answers = [[r.output for r in results[name].records] for name in contenders]
    return {
        "settings": {
            "items": len(lengths), "shots": SHOTS, "candidates": len(CONTINUATIONS),
            "subjects": len(SUBJECTS), "width": width, "layers": layers, "repeats": repeats,
            "prompt_tokens_mean": statistics.mean(lengths), "prompt_tokens_max": max(lengths),
        },
        "contenders": {
            name: {
                "seconds": statistics.median(values),
                "items_per_second": len(lengths) / statistics.median(values),
                "accuracy": results[name].score,
            }
            for name, values in seconds.items()
        },
        "ratio": statistics.median(seconds["one_by_one"]) / statistics.median(seconds["shared"]),
        "largest_difference": apart,
        "same_answers": answers[0] == answers[1],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print exactly one JSON object")
    parser.add_argument("--quick", action="store_true", help="few items, to see that it works")
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--width", type=int, default=256, help="of the language model")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    if options.quick:
        options.items, options.width, options.layers = 8, 32, 2
    found = {
        "environment": {
            "cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(),
            "threads": torch.get_num_threads(), "torch": torch.__version__,
        },
        **measure(options.items, options.width, options.layers, options.repeats),
    }  # fmt: skip
    if options.json:
        print(json.dumps(found, indent=2, allow_nan=False))
        return
    for name, figures in found["contenders"].items():
        print(f"{name:12} {figures['seconds']:8.2f} s {figures['items_per_second']:8.1f} items/s")
    print(f"ratio {found['ratio']:.1f}, largest difference {found['largest_difference']:.2g} nats")


if __name__ == "__main__":
    main()
