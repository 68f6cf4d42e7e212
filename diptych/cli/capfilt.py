"""`diptych data capfilt`: a captioner writes, a filter keeps what fits (BLIP, section 3.3).

Both start from one pretrained captioner and are tuned a little on clean pairs, apart from each
other. Every noisy text and every written one is scored by the filter; what became of each stands
in the result. Work is done in parts that appear whole, so a stopped run goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from diptych.cli.evaluation import write_json
from diptych.data.index import Index
from diptych.data.sample import Image, Sample
from diptych.errors import ConfigError, DataError
from diptych.model.checkpoint import load_model, save_model
from diptych.model.trainable import Learn
from diptych.progress import Progress
from diptych.train.stage import DataConfig, Stage
from diptych.train.trainer import Trainer

PART_ROWS = 128
ORIGINAL, SYNTHETIC = "original", "synthetic"


def capfilt(
    noisy: str,
    clean: str,
    model: str,
    out: Path,
    *,
    images: str | None = None,
    clean_images: str | None = None,
    by: Literal["both", "match", "similarity"] = "both",
    threshold: float | None = None,
    epochs: float = 2.0,
    learning_rate: float = 1e-4,
    batch_size: int = 64,
    top_p: float = 0.9,
    seed: int = 0,
    progress: Progress,
) -> dict[str, Any]:
    """Bootstrap a noisy set; returns what `--json` prints.

    Writes `captioner/`, `filter/` (models and their runs), `decisions.jsonl` (every text with its
    score, kept or not), `filtered.jsonl` (originals that fit) and `bootstrapped.jsonl` (these and
    the synthetic ones that fit). Image paths are those of the noisy set.

    Args:
        noisy, clean: pairs of pictures and texts, in any format.
        model: a captioner, pretrained on whatever there is (BLIP: on the noisy set itself).
        by: what a score is: the filter's matching probability, the likeness of the two vectors
            (cosine, brought to 0..1), or the mean of both. The paper decides by matching alone,
            which learns much later than likeness does.
        threshold: least score of a text that is kept; None finds the one that best tells clean
            pairs from the same pictures with each other's texts. A tenth of the clean pictures is
            held out of the tuning for that.
        epochs, learning_rate, batch_size: of both tunings.
        top_p: of the nucleus sampling that writes (BLIP: 0.9, more diverse than beams).

    Raises:
        ConfigError: the model is no captioner, or `out` holds another run.
        DataError: a set cannot be used.
    """
    settings = {
        "noisy": noisy, "clean": clean, "model": model, "by": by, "threshold": threshold,
        "epochs": epochs,
        "learning_rate": learning_rate, "batch_size": batch_size, "top_p": top_p, "seed": seed,
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    _claim(out, settings)
    index = Index.build(noisy, out / "data", images=images)
    index.ledger.enforce(0.01)
    held = _hold_out(clean, clean_images, out, seed)
    tuned = {
        name: _tuned(model, name, losses, out, settings, held, progress)
        for name, losses in (("captioner", ["lm"]), ("filter", ["itc", "itm"]))
    }
    calibration = None
    if threshold is None:
        calibration = _calibrated(tuned["filter"], held, by, out, seed)
        threshold = float(calibration["threshold"])
    parts = range(0, len(index), PART_ROWS)
    (out / "parts").mkdir(exist_ok=True)
    with progress.task("write and filter captions", len(parts)) as task:
        for number, start in enumerate(parts):
            file = out / "parts" / f"{number:06d}.jsonl"
            if not file.is_file():
                rows = [index[i] for i in range(start, min(start + PART_ROWS, len(index)))]
                found = list(
                    _decide(rows, index, tuned, settings | {"threshold": threshold}, seed + number)
                )
                staged = file.with_suffix(".part")
                staged.write_text(_lines(found), encoding="utf-8")
                staged.rename(file)
            task.advance()
    decisions = [
        json.loads(line)
        for number in range(len(parts))
        for line in (out / "parts" / f"{number:06d}.jsonl").read_text("utf-8").splitlines()
    ]
    kept = [d for d in decisions if d["kept"]]
    originals = [d for d in kept if d["text_from"] == ORIGINAL]
    _write(out / "decisions.jsonl", decisions)
    _write(out / "filtered.jsonl", originals)
    _write(out / "bootstrapped.jsonl", kept)
    counts = Counter((d["text_from"], d["kept"]) for d in decisions)
    summary = {
        "rows": len(index),
        "original": {"kept": counts[ORIGINAL, True], "dropped": counts[ORIGINAL, False]},
        "synthetic": {"kept": counts[SYNTHETIC, True], "dropped": counts[SYNTHETIC, False]},
        "images": index.root,
        "threshold": threshold,
        "calibration": calibration,
        "settings": settings,
    }
    write_json(out / "capfilt.json", summary)
    # What the report needs: where the pictures are, and what it is about.
    write_json(out / "evaluation.json", {"images": index.root})
    dropped = counts[ORIGINAL, False]
    headline = f"Of {len(index):,} captions {dropped:,} were dropped as not fitting their picture."
    write_json(out / "page.json", {"kind": "Caption filter", "headline": headline})
    from diptych.report.page import write

    write(out)
    return summary


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Note what the folder is for; parts of another run are not mixed in."""
    canonical = json.dumps(settings, sort_keys=True).encode()
    mark = {"fingerprint": hashlib.sha256(canonical).hexdigest()[:12], "settings": settings}
    file = out / "run.json"
    if file.is_file():
        if json.loads(file.read_text(encoding="utf-8"))["fingerprint"] != mark["fingerprint"]:
            raise ConfigError(
                "the folder holds a run with other settings", where=str(out), fix="name a new one"
            )
        return
    write_json(file, mark)


@dataclass(frozen=True)
class _Held:
    """The clean pairs: a file to tune on, and pairs to set the threshold by."""

    tune: str
    images: str
    pairs: tuple[tuple[Image, str], ...]
    index: Index


MIN_HELD = 16
MAX_HELD = 512


def _hold_out(clean: str, images: str | None, out: Path, seed: int) -> _Held:
    """A tenth of the clean pictures for the threshold, the rest for tuning.

    Where that is too few, or pictures are not files of their own, all pairs serve for both.
    """
    index = Index.build(clean, out / "clean", images=images)
    index.ledger.enforce(0.01)
    samples = [index[i] for i in range(len(index))]
    shown = [next(s.images(), None) for s in samples]
    for sample, image in zip(samples, shown, strict=True):
        if image is None or not sample.answer.strip():
            raise DataError(f"sample '{sample.id}' is no pair", where=sample.source)
    pairs = [(i, s.answer.strip()) for i, s in zip(shown, samples, strict=True) if i is not None]
    names = sorted({image.path for image, _ in pairs})
    count = min(MAX_HELD, len(names) // 10)
    if count < MIN_HELD or any(i.span is not None or i.data is not None for i, _ in pairs):
        return _Held(clean, index.root, tuple(pairs[:MAX_HELD]), index)
    held = set(random.Random(seed).sample(names, count))
    rows = [
        {"id": s.id, "image": i.path, "image_id": i.path, "caption": text}
        for s, (i, text) in zip(samples, pairs, strict=True)
        if i.path not in held
    ]
    _write(out / "clean_tune.jsonl", rows)
    return _Held(
        str(out / "clean_tune.jsonl"),
        index.root,
        tuple(pair for pair in pairs if pair[0].path in held),
        index,
    )


def _calibrated(model: Any, held: _Held, by: str, out: Path, seed: int) -> dict[str, Any]:
    """The threshold with the best mean of true pairs kept and exchanged ones dropped.

    Raises:
        DataError: all clean texts are the same, so that nothing can be exchanged.
    """
    file = out / "threshold.json"
    if file.is_file():
        return dict(json.loads(file.read_text(encoding="utf-8")))
    order = list(range(len(held.pairs)))
    random.Random(seed).shuffle(order)
    images = [held.pairs[i][0] for i in order]
    texts = [held.pairs[i][1] for i in order]
    # Every picture gets the next text that is another one.
    others = [
        next((t for t in (*texts[n + 1 :], *texts[:n]) if t != texts[n]), None)
        for n in range(len(texts))
    ]
    if not texts or None in others:
        raise DataError(
            "the clean texts are all alike, so that no threshold can be found",
            fix="give a threshold",
        )
    data = [held.index.image_bytes(image) for image in images]
    both = [*texts, *(t for t in others if t is not None)]
    pairs = [(n % len(texts), n) for n in range(len(both))]
    scores = _scores(model, data, both, pairs, by)
    true, wrong = sorted(scores[: len(texts)]), sorted(scores[len(texts) :])
    best = max(
        sorted({*true, *wrong}),
        key=lambda at: _share(true, at) + 1 - _share(wrong, at),
    )
    found = {
        "threshold": best,
        "pairs": len(texts),
        "kept_true": _share(true, best),
        "kept_exchanged": _share(wrong, best),
        "held_out": held.tune.endswith("clean_tune.jsonl"),
    }
    write_json(file, found)
    return found


def _share(scores: Sequence[float], threshold: float) -> float:
    return sum(score >= threshold for score in scores) / len(scores)


def _scores(
    model: Any, images: list[bytes], texts: list[str], pairs: list[tuple[int, int]], by: str
) -> list[float]:
    """What the filter thinks of each (picture, text), 0..1; see `capfilt`."""
    kinds = []
    if by != "similarity":
        kinds.append(model.match_scores(images, texts, pairs))
    if by != "match":
        pictures, words = model.encode_images(images), model.encode_texts(texts)
        left, right = [i for i, _ in pairs], [t for _, t in pairs]
        kinds.append((1 + (pictures[left] * words[right]).sum(1)) / 2)
    return [float(sum(values) / len(kinds)) for values in zip(*kinds, strict=True)]


def _tuned(
    model: str,
    name: str,
    losses: list[str],
    out: Path,
    settings: dict[str, Any],
    held: _Held,
    progress: Progress,
) -> Any:
    """The captioner or the filter: the model, tuned on the clean pairs for its task alone."""
    folder = out / name
    if (folder / "model" / "config.json").is_file():
        return load_model(folder / "model")
    tuned = load_model(model)
    if tuned.config.name != "captioner":
        raise ConfigError(
            f"'{model}' is a {tuned.config.name}; captions are written and checked by a captioner",
            fix="train one with `diptych train blip-small`",
        )
    heads = () if losses == ["lm"] else ("heads",)
    stage = Stage(
        name="tune",
        objective={"name": "blip", "losses": losses, "queue_size": 512, "alpha": 0.0},
        data=(DataConfig(path=held.tune, images=held.images),),
        learn={part: Learn() for part in ("vision_encoder", "text", *heads)},
        num_epochs=settings["epochs"],
        global_batch_size=settings["batch_size"],
        learning_rate=settings["learning_rate"],
        weight_decay=0.05,
        precision="bf16",
        long_samples="truncate",
    )
    trainer = Trainer(tuned, [stage], folder, seed=settings["seed"], trackers=(), progress=progress)
    trainer.train()
    save_model(tuned, folder / "model")
    return tuned.eval()


def _decide(
    rows: list[Sample], index: Index, tuned: dict[str, Any], settings: dict[str, Any], seed: int
) -> Iterator[dict[str, Any]]:
    """Both texts of every row with their scores and whether they are kept."""
    shown = [next(r.images(), None) for r in rows]
    for row, image in zip(rows, shown, strict=True):
        if image is None or not row.answer.strip():
            raise DataError(f"sample '{row.id}' is no pair of picture and text", where=row.source)
    data = [index.image_bytes(image) for image in shown if image is not None]
    written = tuned["captioner"].caption(data, top_p=settings["top_p"], seed=seed)
    texts = [t for row, new in zip(rows, written, strict=True) for t in (row.answer.strip(), new)]
    pairs = [(i // 2, i) for i in range(len(texts)) if texts[i]]
    found = _scores(tuned["filter"], data, texts, pairs, settings["by"])
    scores = dict(zip((t for _, t in pairs), found, strict=True))
    for i, (row, image) in enumerate(zip(rows, shown, strict=True)):
        assert image is not None, "checked above"
        for which, text_from in ((2 * i, ORIGINAL), (2 * i + 1, SYNTHETIC)):
            score = float(scores[which]) if which in scores else 0.0
            # Notes of the format it was read from mean nothing in the one it is written to.
            rest = {k: v for k, v in row.meta.items() if not k.startswith("_")}
            yield {
                **rest,
                "id": f"{row.id}/{text_from}",
                "image": image.path,
                "image_id": rest.get("image_id", row.id),
                "caption": texts[which],
                "text_from": text_from,
                "score": score,
                "kept": bool(texts[which]) and score >= settings["threshold"],
            }


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.write_text(_lines(rows), encoding="utf-8")
    staged.rename(path)
