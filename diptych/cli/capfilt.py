"""`diptych data capfilt`: a captioner writes, a filter keeps what fits (BLIP, section 3.3).

Both start from one pretrained captioner and are tuned a little on clean pairs, apart from each
other. Every noisy text and every written one is scored by the filter; what became of each stands
in the result. Work is done in parts that appear whole, so a stopped run goes on where it was.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import PIL.Image

from diptych import json_text
from diptych.cli.filter_threshold import Held, calibrated, filter_scores
from diptych.convert.published import ready
from diptych.data.checking.index import Index
from diptych.data.sample import Sample
from diptych.errors import ConfigError, DataError
from diptych.model.folder import composition, load_model, model_folder, save_model
from diptych.model.opened import open_model, place
from diptych.model.trainable import Learn
from diptych.progress import Progress
from diptych.staging import file_hash, replacing, write_json, write_text
from diptych.train.claim import hold, working_in
from diptych.train.stage import DataConfig, Stage
from diptych.train.trainer import Trainer

log = logging.getLogger(__name__)

PART_ROWS = 128
_CLEAN = "--clean-images says where the clean pictures are, if not beside the file"
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
    max_reject_share: float = 0.5,
    seed: int = 0,
    progress: Progress,
    precision: str | None = None,
) -> dict[str, Any]:
    """Bootstrap a noisy set; returns what `--json` prints.

    Writes `captioner/`, `filter/` (models and their runs), `decisions.jsonl` (every text with its
    score, kept or not), `filtered.jsonl` (originals that fit), `bootstrapped.jsonl` (these and
    the synthetic ones that fit) and `rejects.jsonl` (rows that could not be read, with reasons).
    Image paths are those of the noisy set; pictures that are no files of their own there (shards,
    Parquet) are written to `images/`.

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
        max_reject_share: of noisy rows that cannot be read (missing pictures, empty captions)
            before the run stops.
        precision: in which captions are written and scored; as for `open_model`.

    Raises:
        ConfigError: the model is no captioner.
        RunTaken: `out` holds another run, or another process works in it.
        DataError: a set cannot be used.
    """
    settings = {
        "noisy": noisy, "clean": clean, "model": model, "by": by, "threshold": threshold,
        "epochs": epochs,
        "learning_rate": learning_rate, "batch_size": batch_size, "top_p": top_p, "seed": seed,
    }  # fmt: skip
    model = settings["model"] = ready(model)
    model_hashes = _captioner(model)
    _compare(out, settings, None)
    with working_in(out):
        return _bootstrap(
            out, settings, model_hashes, images, clean_images, max_reject_share, progress, precision
        )


def _bootstrap(
    out: Path,
    settings: dict[str, Any],
    model_hashes: dict[str, str],
    images: str | None,
    clean_images: str | None,
    max_reject_share: float,
    progress: Progress,
    precision: str | None,
) -> dict[str, Any]:
    """See `capfilt`; the folder is this process's alone."""
    noisy, clean, model = settings["noisy"], settings["clean"], settings["model"]
    by, threshold, seed = settings["by"], settings["threshold"], settings["seed"]
    index = Index.build(noisy, out / "data", images=images)
    index.ledger.enforce(max_reject_share, advice="or allow them with --max-reject-share")
    clean_index = Index.build(clean, out / "clean", images=clean_images)
    clean_index.ledger.enforce(0.01, advice=_CLEAN)
    contents = {
        name: {"files": found.files, "images": found.root}
        for name, found in (("noisy", index), ("clean", clean_index))
    }
    _compare(out, settings, contents | {"model": model_hashes})
    write_json(out / _RUN, {"settings": settings, "contents": contents | {"model": model_hashes}})
    # Rows name pictures beside the noisy set, or in `images/` where those are no files.
    as_files = all(image.span is None for row in index for image in row.images())
    root = index.root if as_files else str(out.resolve())
    held = _hold_out(clean, clean_index, out, seed)
    tuned = {
        name: _tuned(model, name, losses, out, settings, held, progress, precision)
        for name, losses in (("captioner", ["lm"]), ("filter", ["itc", "itm"]))
    }
    calibration = None
    if threshold is None:
        calibration = calibrated(tuned["filter"], held, by, out, seed)
        threshold = float(calibration["threshold"])
    parts = range(0, len(index), PART_ROWS)
    (out / "parts").mkdir(exist_ok=True)
    with progress.task("write and filter captions", len(parts)) as task:
        for number, start in enumerate(parts):
            file = out / "parts" / f"{number:06d}.jsonl"
            if not file.is_file():
                rows = [index[i] for i in range(start, min(start + PART_ROWS, len(index)))]
                decided = settings | {"threshold": threshold}
                place = None if as_files else out
                found = list(_decide(rows, index, tuned, decided, seed + number, place))
                write_text(file, _lines(found))
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
    if index.ledger.num_rejected:
        shutil.copyfile(index.folder / "rejects.jsonl", out / "rejects.jsonl")
    counts = Counter((d["text_from"], d["kept"]) for d in decisions)
    summary = {
        "rows": len(index),
        "original": {"kept": counts[ORIGINAL, True], "dropped": counts[ORIGINAL, False]},
        "synthetic": {"kept": counts[SYNTHETIC, True], "dropped": counts[SYNTHETIC, False]},
        "rejected": index.ledger.num_rejected,
        "images": root,
        "threshold": threshold,
        "calibration": calibration,
        "settings": settings,
    }
    write_json(out / "capfilt.json", summary)
    # What the report needs: where the pictures are, and what it is about.
    write_json(out / "evaluation.json", {"images": root})
    dropped = counts[ORIGINAL, False]
    judged = dropped + counts[ORIGINAL, True]
    headline = f"Of {judged:,} captions {dropped:,} were dropped as not fitting their picture."
    write_json(out / "page.json", {"kind": "Caption filter", "headline": headline})
    from diptych.report.page import write

    write(out)
    return summary


def _captioner(model: str) -> dict[str, str]:
    """Hashes of a captioner's weights.

    Raises:
        ConfigError: it is another kind of model.
    """
    folder = model_folder(model)
    name = composition(folder).name
    if name != "captioner":
        raise ConfigError(
            f"'{model}' is a {name}; captions are written and checked by a captioner",
            fix="train one with `diptych train blip-small`",
        )
    return {file.name: file_hash(file) for file in sorted(folder.glob("*.safetensors"))}


_RUN = "run.json"


def _compare(out: Path, settings: dict[str, Any], contents: dict[str, Any] | None) -> None:
    """Hold a run to what its folder is for: parts of other settings or data are not mixed in.

    Args:
        contents: what the data and the model hold; None where they have not been read yet.

    Raises:
        RunTaken: the folder is for something else.
    """
    file = out / _RUN
    if not file.is_file():
        return
    known = json.loads(file.read_text(encoding="utf-8"))
    both: Any = (
        {"settings": {}, "contents": {}, **known},
        {"settings": settings, "contents": contents},
    )
    there, here = (
        {
            name: [one["settings"].get(name), one["contents"].get(name) if contents else None]
            for name in settings
        }
        for one in both
    )
    hold(out, _short(there), _short(here), what="settings or data")


def _short(values: dict[str, Any]) -> dict[str, Any]:
    """Values as JSON text, so that a difference is told by its name alone."""
    return {name: json.dumps(value, sort_keys=True) for name, value in values.items()}


MIN_HELD = 16
MAX_HELD = 512


def _hold_out(clean: str, index: Index, out: Path, seed: int) -> Held:
    """A tenth of the clean pictures for the threshold, the rest for tuning.

    Where that is too few, or pictures are not files of their own, all pairs serve for both.
    """
    samples = [index[i] for i in range(len(index))]
    shown = [next(s.images(), None) for s in samples]
    for sample, image in zip(samples, shown, strict=True):
        if image is None or not sample.texts:
            raise DataError(f"sample '{sample.id}' is no pair", where=sample.source)
    pairs = [
        (i, text) for i, s in zip(shown, samples, strict=True) if i is not None for text in s.texts
    ]
    names = sorted({image.path for image, _ in pairs})
    count = min(MAX_HELD, len(names) // 10)
    if count < MIN_HELD or any(i.span is not None or i.data is not None for i, _ in pairs):
        return Held(clean, index.root, tuple(pairs[:MAX_HELD]), index, apart=False)
    held = set(random.Random(seed).sample(names, count))
    rows = [
        {"id": str(n), "image": i.path, "image_id": i.path, "caption": text}
        for n, (i, text) in enumerate(pairs)
        if i.path not in held
    ]
    _write(out / "clean_tune.jsonl", rows)
    return Held(
        str(out / "clean_tune.jsonl"),
        index.root,
        tuple(pair for pair in pairs if pair[0].path in held),
        index,
        apart=True,
    )


def _tuned(
    model: str,
    name: str,
    losses: list[str],
    out: Path,
    settings: dict[str, Any],
    held: Held,
    progress: Progress,
    precision: str | None,
) -> Any:
    """The captioner or the filter: the model, tuned on the clean pairs for its task alone."""
    folder = out / name
    if (folder / "model" / "config.json").is_file():
        return open_model(folder / "model", precision=precision)
    tuned = place(load_model(model), precision=precision)
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
    rows: list[Sample],
    index: Index,
    tuned: dict[str, Any],
    settings: dict[str, Any],
    seed: int,
    extract_to: Path | None,
) -> Iterator[dict[str, Any]]:
    """All texts of every row, found and written, with their scores and whether they are kept.

    Args:
        extract_to: pictures are written to `images/` there, and named so.
    """
    shown = [next(r.images(), None) for r in rows]
    for row, image in zip(rows, shown, strict=True):
        if image is None or not row.texts:
            raise DataError(f"sample '{row.id}' is no pair of picture and text", where=row.source)
    data = [index.image_bytes(image) for image in shown if image is not None]
    paths = [image.path for image in shown if image is not None]
    if extract_to is not None:
        paths = [_extracted(picture, extract_to) for picture in data]
    written = tuned["captioner"].caption(data, top_p=settings["top_p"], seed=seed)
    # A byte-level captioner may write any character; with a NUL no reader takes the row again.
    written = [text.replace("\0", "").strip() for text in written]
    # (number of the row, which of its texts, the text)
    texts = [
        entry
        for i, (row, new) in enumerate(zip(rows, written, strict=True))
        for entry in (
            *((i, _named(ORIGINAL, n, row), text) for n, text in enumerate(row.texts)),
            (i, SYNTHETIC, new),
        )
    ]
    said = [(i, t) for i, _, t in texts if t]
    scores = iter(
        filter_scores(
            tuned["filter"], data, [t for _, t in said],
            [(i, n) for n, (i, _) in enumerate(said)], settings["by"],
        )
    )  # fmt: skip
    for i, which, text in texts:
        score = next(scores) if text else 0.0
        row = rows[i]
        # Notes of the format it was read from mean nothing in the one it is written to.
        rest = {k: v for k, v in row.meta.items() if not k.startswith("_") and k != "answers"}
        yield {
            **rest,
            "id": f"{row.id}/{which}",
            "image": paths[i],
            "image_id": rest.get("image_id", row.id),
            "caption": text,
            "text_from": SYNTHETIC if which == SYNTHETIC else ORIGINAL,
            "score": score,
            "kept": bool(text) and score >= settings["threshold"],
        }


def _named(kind: str, number: int, row: Sample) -> str:
    return kind if len(row.texts) == 1 else f"{kind}-{number}"


def _extracted(picture: bytes, out: Path) -> str:
    """Write a picture under its content's name; the path below `out`."""
    with PIL.Image.open(io.BytesIO(picture)) as opened:
        ending = (opened.format or "img").lower()
    path = Path("images") / f"{hashlib.sha256(picture).hexdigest()[:32]}.{ending}"
    if not (out / path).is_file():
        with replacing(out / path) as temporary:
            temporary.write_bytes(picture)
    return path.as_posix()


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json_text.dumps(row) + "\n" for row in rows)


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Replace a file as a whole; one that says the same stays, as runs that learn from it would
    take it for changed."""
    text = _lines(rows)
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    write_text(path, text)
