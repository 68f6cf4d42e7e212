"""A run folder as a finished quickstart leaves it, drawn and computed from a seed."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

from PIL import Image, ImageDraw

KINDS = {
    "value look-up": (0.71, 0.02, 0.03, 0.05),
    "chart type": (0.99, 0.05, 0.22, 0.24),
    "count": (0.88, 0.04, 0.31, 0.33),
    "largest or smallest": (0.83, 0.01, 0.09, 0.11),
    "colour of a category": (0.92, 0.03, 0.17, 0.19),
    "comparison": (0.79, 0.40, 0.52, 0.53),
    "yes or no": (0.84, 0.44, 0.51, 0.52),
    "sum or difference": (0.24, 0.01, 0.22, 0.26),
    "trend": (0.90, 0.12, 0.41, 0.43),
}
PALETTE = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")
HOSTILE = {
    "script": "<script>alert(1)</script>",
    "breakout": '</script><img src=x onerror="alert(2)">',
    "quotes": "\"double\" 'single' `back` {{ 7 * 7 }} {% raw %}",
    "separator": "line\u2028separator\u2029end",
    "rtl": "\u202eright-to-left override \u05e9\u05dc\u05d5\u05dd",
    "chinese": "\u56fe\u4e2d\u54ea\u4e2a\u7c7b\u522b\u6700\u5927\uff1f",
    "long": "Supercalifragilistic" * 20,
    "surrogate": "lone \ud800 surrogate and NUL \x00 and escape \x1b[31m",
    "attribute": '" onmouseover="alert(3)" x="',
}


def build(folder: Path, *, num_per_kind: int = 60, seed: int = 0) -> Path:
    """Write every file that a report reads, pictures included, and return `folder`."""
    rng = random.Random(seed)
    (folder / "images").mkdir(parents=True)
    num_pictures = 24
    for k in range(num_pictures):
        _draw(rng, k).save(folder / "images" / f"chart_{k:03d}.png")
    records = {name: [] for name in ("after", "before", "blind")}
    hostile = list(HOSTILE.items())
    for k, (name, words) in enumerate(hostile):
        image = ["chart_000.png", "missing.png", "../recipe.json", "broken.png"][k % 4]
        for who, rows in records.items():
            rows.append(
                {
                    "id": f"hostile-{name}",
                    "question": f"Q {words}",
                    "truth": f"T {words}",
                    "output": f"{who} {words}",
                    "score": 0.0,
                    "kind": "hostile <b>kind</b>" if k % 2 else "value look-up",
                    "image": image,
                }
            )
    for kind, (after, before, blind, _) in KINDS.items():
        for k in range(num_per_kind):
            _answer(
                rng, records, kind, k, f"chart_{k % num_pictures:03d}.png", after, before, blind
            )
    (folder / "images" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    for who, rows in records.items():
        _lines(folder / f"records_{who}.jsonl", rows)
    _json(folder / "evaluation.json", _evaluation(num_per_kind))
    _json(folder / "recipe.json", RECIPE)
    _json(folder / "environment.json", ENVIRONMENT)
    _json(folder / "parameters.json", PARAMETERS)
    _json(folder / "ledger.json", LEDGER)
    _json(folder / "timings.json", TIMINGS)
    _lines(folder / "metrics.jsonl", _metrics(rng))
    return folder


def _draw(rng: random.Random, k: int) -> Image.Image:
    width, height = 640, 480
    picture = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(picture)
    num = rng.randint(3, 6)
    values = [rng.randint(15, 95) for _ in range(num)]
    pen.text((40, 18), f"Rainfall in region {k}", fill="#222222", font_size=24)
    if k % 3 == 2:
        start = 0.0
        for value, colour in zip(values, PALETTE, strict=False):
            stop = start + 360 * value / sum(values)
            pen.pieslice((170, 90, 470, 390), start, stop, fill=colour, outline="white")
            start = stop
        return picture
    for tick in range(0, 101, 25):
        y = 430 - 3.4 * tick
        pen.line((70, y, 610, y), fill="#dddddd")
        pen.text((30, y - 10), str(tick), fill="#555555", font_size=16)
    step = 540 / num
    tops = [(70 + step * (i + 0.5), 430 - 3.4 * v) for i, v in enumerate(values)]
    if k % 3 == 1:
        pen.line(tops, fill=PALETTE[0], width=5)
    for (x, y), colour in zip(tops, PALETTE, strict=False):
        if k % 3 == 0:
            pen.rectangle((x - step * 0.35, y, x + step * 0.35, 430), fill=colour)
        pen.text((x - 8, 440), "ABCDEF"[tops.index((x, y))], fill="#222222", font_size=18)
    return picture


def _answer(rng, records, kind, k, image, after, before, blind) -> None:
    questions = {
        "value look-up": ("What is the rainfall of category B?", str(rng.randint(15, 95))),
        "chart type": ("What type of chart is this?", rng.choice(["bar", "line", "pie"])),
        "count": ("How many categories does the chart show?", str(rng.randint(3, 6))),
        "largest or smallest": ("Which category is the largest?", rng.choice("ABCDEF")),
        "colour of a category": ("Which colour has category C?", rng.choice(["green", "blue"])),
        "comparison": ("Is A larger or smaller than D?", rng.choice(["larger", "smaller"])),
        "yes or no": ("Is the rainfall of A above 50?", rng.choice(["yes", "no"])),
        "sum or difference": ("What is the sum of A and B?", str(rng.randint(40, 180))),
        "trend": ("Does the line rise or fall?", rng.choice(["rises", "falls"])),
    }
    question, truth = questions[kind]
    wrong = {"value look-up": "52", "count": "4", "yes or no": "no"}.get(kind, "a bar")
    for who, chance in (("after", after), ("before", before), ("blind", blind)):
        right = rng.random() < chance
        output = truth if right else ("The image is a picture of" if who == "before" else wrong)
        records[who].append(
            {
                "id": f"{kind}/{k}",
                "question": question,
                "truth": truth,
                "output": output,
                "score": float(right),
                "kind": kind,
                "image": image,
            }
        )


def _score(share: float, n: int) -> dict[str, float]:
    half = 1.96 * math.sqrt(share * (1 - share) / n)
    return {"score": share, "low": max(0.0, share - half), "high": min(1.0, share + half), "n": n}


def _evaluation(num_per_kind: int) -> dict:
    n = num_per_kind * len(KINDS)
    names = ("after", "before", "blind", "majority")
    mean = [sum(shares[i] for shares in KINDS.values()) / len(KINDS) for i in range(4)]
    return {
        "benchmark": "charts",
        "metric": "relaxed",
        "n": n,
        **{name: _score(share, n) for name, share in zip(names, mean, strict=True)},
        "majority_method": "commonest training answer of each question kind",
        "blind_method": "the same model with the image withheld",
        "by_kind": {
            kind: {name: _score(s, num_per_kind) for name, s in zip(names, shares, strict=True)}
            for kind, shares in KINDS.items()
        },
        "difference": {"score": mean[0] - mean[1], "low": 0.61, "high": 0.69},
        "p_value": 1e-60,
        "gained": 358,
        "lost": 6,
        "text": {
            "perplexity_before": 17.21,
            "perplexity_after": 17.94,
            "choices_before": 0.312,
            "choices_after": 0.304,
        },
        "images": "images",
    }


def _metrics(rng: random.Random) -> list[dict]:
    rows = []
    for stage, steps, first, last, rate in (
        ("align", 400, 4.1, 0.62, 1e-3),
        ("instruct", 900, 3.4, 0.38, 2e-4),
    ):
        for step in range(1, steps + 1):
            at = step / steps
            loss = last + (first - last) * math.exp(-5 * at) + rng.gauss(0, 0.12 * (1.2 - at))
            warm = min(1.0, at / 0.05)
            losses = {"contrastive": loss * 0.7, "caption": loss * 0.3}
            rows.append(
                {
                    "stage": stage,
                    "step": step,
                    "loss": loss,
                    "losses": losses if stage == "align" else {"next_token": loss},
                    "learning_rate": rate * warm * 0.5 * (1 + math.cos(math.pi * at)),
                    "gradient_norm": abs(rng.gauss(1, 0.2)),
                    "samples": 32,
                    "real_tokens": 1900 + rng.randint(0, 90),
                    "supervised_tokens": 140,
                    "padding_share": 0.018,
                    "tokens_per_second": (9000 if stage == "align" else 5200) + rng.gauss(0, 400),
                    "memory_bytes": 2_900_000_000,
                    "seconds": 0.31,
                }
            )
    return rows


RECIPE = {
    "name": "quickstart charts",
    "model": {
        "vision_encoder": {"name": "resnet", "image_size_pixels": 224, "layers": [2, 2, 2, 2]},
        "connector": {"name": "mlp", "hidden_dim": 576},
        "language_model": {"name": "SmolLM2-135M-Instruct", "lora": {"r": 16, "alpha": 32}},
    },
    "stages": [
        {"name": "align", "objective": {"name": "contrastive", "temperature": 0.07}, "epochs": 4},
        {"name": "instruct", "objective": {"name": "next_token"}, "learning_rate": 2e-4},
    ],
    "seed": 0,
    "notes": HOSTILE["breakout"],
    "</script>": HOSTILE["attribute"],
}
ENVIRONMENT = {
    "python": "3.11.9",
    "platform": "Linux x86_64",
    "cpu": "Example CPU 2.1 GHz",
    "num_cores": 2,
    "memory_bytes": 16_700_000_000,
    "gpu": None,
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "commit": "70fdf2a",
    "dirty": False,
    "extra": {"bf16": True, "threads": 2},
    "command": ["diptych", "quickstart", "--data", "my charts/<b>.json", "it's", "x\u202ey"],
}
PARAMETERS = {
    "parts": [
        {"name": "vision_encoder", "class": "ResNetModel", "parameters": 11_176_512},
        {"name": "connector", "class": "MlpConnector", "parameters": 627_840},
        {"name": "language_model", "class": "LlamaForCausalLM", "parameters": 136_957_824},
    ],
    "stages": {
        "align": [
            {
                "group": "vision_encoder",
                "parameters": 11_176_512,
                "trainable": 11_176_512,
                "learning_rate": 1e-3,
                "share": 0.075,
            },
            {
                "group": "connector",
                "parameters": 627_840,
                "trainable": 627_840,
                "learning_rate": 1e-3,
                "share": 0.0042,
            },
            {
                "group": "language_model",
                "parameters": 136_957_824,
                "trainable": 0,
                "learning_rate": 0.0,
                "share": 0.0,
            },
        ],
        "instruct": [
            {
                "group": "vision_encoder",
                "parameters": 11_176_512,
                "trainable": 11_176_512,
                "learning_rate": 2e-4,
                "share": 0.075,
            },
            {
                "group": "connector",
                "parameters": 627_840,
                "trainable": 627_840,
                "learning_rate": 5e-4,
                "share": 0.0042,
            },
            {
                "group": "language_model",
                "parameters": 136_957_824,
                "trainable": 2_442_240,
                "learning_rate": 2e-4,
                "share": 0.0164,
            },
        ],
    },
    "tokens_per_image": 49,
}
LEDGER = {
    "stages": {
        "align": {
            "read": 12_800,
            "used": 12_800,
            "rejected": {},
            "truncated": {"samples": 0, "tokens": 0},
            "supervised_tokens": 0,
            "examples": [],
        },
        "instruct": {
            "read": 28_800,
            "used": 28_795,
            "rejected": {"NotAnImage": 3, "TruncatedImage": 2},
            "truncated": {"samples": 4, "tokens": 57},
            "supervised_tokens": 126_004,
            "examples": [
                {
                    "where": f"train.json:{k}",
                    "id": HOSTILE["script"],
                    "error": "NotAnImage",
                    "message": HOSTILE["breakout"],
                }
                for k in range(5)
            ],
        },
    }
}
TIMINGS = {
    "phases": [
        {"name": "draw charts", "seconds": 41.2},
        {"name": "load weights", "seconds": 6.8},
        {"name": "evaluate before", "seconds": 38.0},
        {"name": "align", "seconds": 96.4},
        {"name": "instruct", "seconds": 271.9},
        {"name": "evaluate after", "seconds": 62.3},
        {"name": "evaluate blind", "seconds": 21.5},
    ],
    "seconds": 541.0,
    "peak_memory_bytes": 3_420_000_000,
}


def _json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
