"""`diptych data capfilt`: a captioner writes, a filter keeps what fits (BLIP, section 3.3).

Both start from one pretrained captioner and are tuned a little on clean pairs, apart from each
other. Every noisy text and every written one is scored by the filter; what became of each stands
in the result. Work is done in parts that appear whole, so a stopped run goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diptych.cli.evaluation import write_json
from diptych.data.index import Index
from diptych.data.sample import Sample
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
    threshold: float = 0.5,
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
        threshold: least matching probability of a text that is kept.
        epochs, learning_rate, batch_size: of both tunings.
        top_p: of the nucleus sampling that writes (BLIP: 0.9, more diverse than beams).

    Raises:
        ConfigError: the model is no captioner, or `out` holds another run.
        DataError: a set cannot be used.
    """
    settings = {
        "noisy": noisy, "clean": clean, "model": model, "threshold": threshold, "epochs": epochs,
        "learning_rate": learning_rate, "batch_size": batch_size, "top_p": top_p, "seed": seed,
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    _claim(out, settings)
    index = Index.build(noisy, out / "data", images=images)
    index.ledger.enforce(0.01)
    tuned = {
        name: _tuned(model, name, losses, out, settings, clean, clean_images, progress)
        for name, losses in (("captioner", ["lm"]), ("filter", ["itc", "itm"]))
    }
    parts = range(0, len(index), PART_ROWS)
    (out / "parts").mkdir(exist_ok=True)
    with progress.task("write and filter captions", len(parts)) as task:
        for number, start in enumerate(parts):
            file = out / "parts" / f"{number:06d}.jsonl"
            if not file.is_file():
                rows = [index[i] for i in range(start, min(start + PART_ROWS, len(index)))]
                found = list(_decide(rows, index, tuned, settings, seed + number))
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
        "settings": settings,
    }
    write_json(out / "capfilt.json", summary)
    # What the report needs: where the pictures are.
    write_json(out / "evaluation.json", {"images": index.root})
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


def _tuned(
    model: str,
    name: str,
    losses: list[str],
    out: Path,
    settings: dict[str, Any],
    clean: str,
    clean_images: str | None,
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
        data=(DataConfig(path=clean, images=clean_images),),
        learn={part: Learn() for part in ("vision_encoder", "text", *heads)},
        num_epochs=settings["epochs"],
        global_batch_size=settings["batch_size"],
        learning_rate=settings["learning_rate"],
        weight_decay=0.05,
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
    scores = dict(zip((t for _, t in pairs), tuned["filter"].match_scores(data, texts, pairs),
                      strict=True))  # fmt: skip
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
                "score": round(score, 6),
                "kept": bool(texts[which]) and score >= settings["threshold"],
            }


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.write_text(_lines(rows), encoding="utf-8")
    staged.rename(path)
