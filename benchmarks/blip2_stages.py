"""What BLIP-2's first stage is worth: captions after stage 2, with and without it.

On the picture corpus:

- the language model of the recipe blip2-small learns the corpus's wording without pictures, once;
- `stage1`: queries learn by contrast, matching and captioning (recipe blip2-small-stage1); then
  stage 2 (recipe blip2-small): queries in front of the frozen language model;
- `random`: the same stage 2 from a Q-Former of the same sizes with random weights;
- `blind`: the same as `stage1`, but every picture of stage 2 and of the test is one grey square:
  what the habits of captions alone are worth.

All three see the same captions in the same order for the same number of steps. With several
`--rates`, each arm has the rate of stage 2 that serves it best on the validation pairs with the
first seed. The score is CIDEr-D of captions by beam search on the held-out pairs; differences are
paired, with 95 % intervals over pictures and seeds drawn anew together.

    diptych data pictures pictures
    python benchmarks/blip2_stages.py --data pictures --work runs-blip2 --rates 2e-3,5e-3 --json

A stopped run goes on where it was: every training run is a folder of `--work`.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

from diptych.cli.evaluation import evaluate_data
from diptych.cli.run import environment, run_recipe
from diptych.eval import captions
from diptych.eval.interval import interval_over_seeds
from diptych.eval.result import Result
from diptych.model.folder import load_model
from diptych.progress import Progress
from diptych.recipe import EvaluationConfig, Recipe, load

ARMS = ("stage1", "random", "blind")


def grey(data: Path, out: Path) -> Path:
    """The same pairs, every picture a grey square.

    Each under the name of the picture that it replaces: samples of one picture come one after the
    other, and with a single square all would, in the order of the file.
    """
    if (out / "test.jsonl").is_file():
        return out
    square = io.BytesIO()
    Image.new("RGB", (128, 128), (127, 127, 127)).save(square, "PNG")
    for split in ("train", "validation", "test"):
        text = (data / f"{split}.jsonl").read_text("utf-8")
        for line in text.splitlines():
            file = out / json.loads(line)["image"]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(square.getvalue())
        staged = out / f".{split}.jsonl"
        staged.write_text(text, encoding="utf-8")
        staged.rename(out / f"{split}.jsonl")
    return out


def train(recipe: Recipe, folder: Path, changes: list[str]) -> Path:
    """Run a recipe with these changes, or go on with it; the run's folder."""
    named = recipe.override([*changes, f"name={folder.name}", "trackers=[]"])
    run_recipe(named, folder, progress=Progress(folder.with_name(f"{folder.name}.log"), quiet=True))
    return folder


def speaking(recipe: Recipe, work: Path, data: Path, encoder: Path) -> list[str]:
    """The language model after the recipe's first stage, as changes that put it in place."""
    folder = work / "language-model"
    if not (folder / "config.json").is_file():
        alone = recipe.model_copy(update={"stages": recipe.stages[:1], "evaluation": None})
        rows = f"[{{path: '{data / 'train.jsonl'}', pictures: withheld}}]"
        weights = encoder.resolve() / "model"
        run = train(
            alone, work / "speaker",
            [
                "model.connector={name: linear}", f"model.vision_encoder.weights={weights}",
                f"stages.speak.data={rows}",
            ],
        )  # fmt: skip
        model = load_model(run / "model").language_model
        model.module.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
    return [
        f"model.language_model.weights={folder}", "model.language_model.config=null",
        "model.language_model.tokenizer=null",
    ]  # fmt: skip


def stage2(recipe: Recipe, folder: Path, changes: list[str], rate: float) -> Path:
    """Stage 2 at this rate; the run's folder."""
    return train(recipe, folder, [*changes, f"stages.generate.learning_rate={rate}"])


def validated(run: Path, config: EvaluationConfig, pairs: Path) -> float:
    """CIDEr-D on the validation pairs."""
    folder = run / "eval" / "validation"
    if not (folder / "result.json").is_file():
        data = config.data.model_copy(update={"path": str(pairs)})
        own = config.model_copy(update={"data": data})
        result, _ = evaluate_data(load_model(run / "model").eval(), own, run / "data", blind=False)
        result.save(folder)
    return float(Result.load(folder).aggregates["CIDEr"])


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="of `diptych data pictures`")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--encoder", type=Path, help="a clip-small run; made when left out")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", default=",".join(ARMS), help="stage1 and what it is held against")
    parser.add_argument("--stage1-epochs", type=float, help="other than the recipe's")
    parser.add_argument("--stage2-epochs", type=float, help="other than the recipe's")
    parser.add_argument("--rates", help="of stage 2, to choose from; the recipe's when left out")
    parser.add_argument("--limit", type=int, help="test pairs, for a quick look")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    s = parser.parse_args()
    start = time.monotonic()
    arms = s.arms.split(",")
    if arms[0] != "stage1" or not set(arms) <= set(ARMS):
        parser.error(f"--arms begins with stage1 and names some of {', '.join(ARMS)}")
    work, data = s.work.resolve(), s.data.resolve()
    work.mkdir(parents=True, exist_ok=True)
    paths = {"seen": data, "grey": grey(data, work / "grey")}
    encoder = s.encoder
    if encoder is None:
        encoder = work / "clip-small"
        train(load("clip-small"), encoder, _data("pretrain", data))
    first, second = load("blip2-small-stage1"), load("blip2-small")
    speaker = speaking(second, work, data, encoder)
    second = second.model_copy(update={"stages": second.stages[1:]})
    rates = [float(r) for r in s.rates.split(",")] if s.rates else [second.stages[0].learning_rate]
    assert second.evaluation is not None
    on_validation: dict[str, dict[float, float]] = {arm: {} for arm in arms}
    results: dict[str, list[Result]] = {arm: [] for arm in arms}
    for seed in range(s.seeds):
        shared = [f"seed={seed}", f"model.vision_encoder.weights={encoder.resolve() / 'model'}"]
        epochs = [f"stages.represent.num_epochs={s.stage1_epochs}"] if s.stage1_epochs else []
        stage1 = train(
            first, work / f"stage1-{seed}", [*shared, *epochs, *_data("represent", data)]
        )
        sizes = load_model(stage1 / "model").query_former.hf_config.to_dict()
        given = {k: v for k, v in sizes.items() if isinstance(v, int | float | str)}
        connectors = {
            "stage1": [f"model.connector.weights={stage1 / 'model'}"],
            "random": ["model.connector.weights=null", f"model.connector.config={given}"],
        }
        connectors["blind"] = connectors["stage1"]
        for arm in arms:
            changes = [*shared, *connectors[arm], "evaluation.before=false", *speaker]
            if s.stage2_epochs:
                changes.append(f"stages.generate.num_epochs={s.stage2_epochs}")
            if s.limit:
                changes.append(f"evaluation.limit={s.limit}")
            pairs = paths["grey" if arm == "blind" else "seen"]
            changes += _data("generate", pairs)

            runs = {r: work / f"{arm}-{r:g}-then-2-{seed}" for r in rates}
            found = on_validation[arm]
            if len(rates) > 1 and not found:
                for rate, folder in runs.items():
                    run = stage2(second, folder, changes, rate)
                    found[rate] = validated(run, second.evaluation, pairs / "validation.jsonl")
            rate = max(found, key=found.__getitem__) if found else rates[0]
            run = stage2(second, runs[rate], changes, rate)
            results[arm].append(Result.load(run / "eval" / "after"))
            figures = results[arm][-1].aggregates
            print(f"{arm} seed {seed}: {figures}", file=sys.stderr, flush=True)
    summary = {
        "benchmark": "blip2_stages",
        "environment": {k: v for k, v in environment().items() if k != "command"},
        "settings": {
            "seeds": s.seeds, "stage1_epochs": s.stage1_epochs or first.stages[0].num_epochs,
            "stage2_epochs": s.stage2_epochs or second.stages[0].num_epochs,
            "limit": s.limit, "rates": rates,
        },
        "cider_on_validation_by_rate": on_validation,
        "contenders": {arm: _figures(found) for arm, found in results.items()},
        "differences": {
            f"stage1 - {arm}": paired(results["stage1"], results[arm]) for arm in arms[1:]
        },
        "seconds": time.monotonic() - start,
    }  # fmt: skip
    text = json.dumps(summary, indent=2)
    if s.out:
        s.out.write_text(text + "\n")
    print(text if s.json else table(summary))


def _data(stage: str, folder: Path) -> list[str]:
    files = {"stages." + stage + ".data": "train", "evaluation.data.path": "test"}
    (train_key, train_name), (test_key, test_name) = files.items()
    return [
        f"{train_key}=[{{path: '{folder / train_name}.jsonl'}}]",
        f"{test_key}={folder / test_name}.jsonl",
    ]


def _figures(results: list[Result]) -> dict[str, Any]:
    names = sorted(results[0].aggregates)
    by_seed = {name: [r.aggregates[name] for r in results] for name in names}
    return {
        name: {
            "mean": statistics.mean(values),
            "spread": statistics.stdev(values) if len(values) > 1 else 0.0,
            "by_seed": values,
        }
        for name, values in by_seed.items()
    }


def cider(result: Result) -> dict[str, float]:
    """CIDEr-D of every caption."""
    written = {r.id: r.output or "" for r in result.records}
    scores = captions.score(written, {r.id: [r.truth] for r in result.records})
    return dict(zip(written, scores.per_image["CIDEr"], strict=True))


def paired(a: list[Result], b: list[Result]) -> dict[str, float]:
    """Mean difference of CIDEr-D by picture, with an interval over seeds and pictures."""
    rows = [
        [own[name] - other[name] for name in own]
        for own, other in zip(map(cider, a), map(cider, b), strict=True)
    ]
    low, high = interval_over_seeds(rows)
    mean = statistics.fmean(v for row in rows for v in row)
    return {"difference": mean, "low": low, "high": high}


def table(summary: dict[str, Any]) -> str:
    """The figures for a person."""
    lines = [f"{'':10}{'CIDEr':>9}{'spread':>9}{'by seed':>30}"]
    for name, figures in summary["contenders"].items():
        c = figures["CIDEr"]
        seeds = ", ".join(f"{v:.3f}" for v in c["by_seed"])
        lines.append(f"{name:10}{c['mean']:9.3f}{c['spread']:9.3f}{seeds:>30}")
    for name, d in summary["differences"].items():
        lines.append(f"{name}: {d['difference']:+.3f} ({d['low']:+.3f} to {d['high']:+.3f})")
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
