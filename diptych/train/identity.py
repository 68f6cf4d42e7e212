"""What a run's state belongs to: the contents of its data, its tokenizer, the weights that rest.

A checkpoint holds what has learned; everything else is read again when a run goes on. What is
read then is held to what the checkpoint says, so that no run goes on in the middle of another
order, with other token ids, or beside another encoder. Paths are left out: a folder that was
moved holds what it held.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from diptych.data.checking.index import Index
from diptych.data.reading import files
from diptych.data.sample import Image, Sample, Turn
from diptych.errors import DataChanged, DataError, StartChanged
from diptych.model.architecture import Model
from diptych.train.stage import DataConfig, Stage

ACCEPT = (
    "or add --accept-changed-data, which starts the stage anew with them as they are now; or begin "
    "a new run under another name"
)


def of_data(config: DataConfig, index: Any) -> dict[str, Any]:
    """What one data set holds: its number of rows, and a hash over all of them in order.

    Of each row: id, turns, fields, and the content of every picture. Which rows show the same
    picture decides the order of training and is part of it.

    Returns:
        `path` (for messages alone), `rows` and `sha256`.
    """
    digest = hashlib.sha256()
    pictures = _Pictures(index)
    for number in range(len(index)):
        sample = index[number]
        row = _row(sample, pictures.of(number, sample))
        digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return {"path": config.path, "rows": len(index), "sha256": digest.hexdigest()}


def _row(sample: Sample, pictures: Sequence[Any]) -> list[Any]:
    shown = iter(pictures)
    turns = [
        [
            [getattr(turn, f.name) for f in fields(Turn) if f.name != "parts"],
            [next(shown) if isinstance(p, Image) else p.text for p in turn.parts],
        ]
        for turn in sample.turns
    ]
    return [sample.id, turns, sample.meta]


class _Pictures:
    """Contents of a data set's pictures, as its index found them or as they are since."""

    def __init__(self, index: Any):
        # Pictures that a stage withholds are no part of what it learns from.
        self.index: Index | None = index if isinstance(index, Index) else None
        self.places: dict[Any, int] = {}
        self.now: dict[str, str | None] = {}
        self.read_at = 0
        if self.index is not None:
            self.read_at = os.stat(self.index.folder / "index.json").st_mtime_ns

    def of(self, number: int, sample: Sample) -> list[Any]:
        """For each picture of a row: its content, and which of the data set's places it has."""
        images = list(sample.images())
        if self.index is None or not images:
            return []
        known: Sequence[str | None] = self.index.image_sha256(number) or [None] * len(images)
        return [
            [self._content(image, sha256), self._place(image)]
            for image, sha256 in zip(images, known, strict=True)
        ]

    def _place(self, image: Image) -> int:
        return self.places.setdefault((image.path, image.span), len(self.places))

    def _content(self, image: Image, sha256: str | None) -> Any:
        assert self.index is not None
        if image.span is not None or files.is_url(self.index.root):
            return sha256 or image.span  # a shard that changes is a changed data file
        if image.path not in self.now:
            self.now[image.path] = self._since(image, sha256)
        return self.now[image.path]

    def _since(self, image: Image, sha256: str | None) -> str | None:
        """The content of a picture's file: an index is used again while its rows are the same, and
        a picture may have been replaced in its place."""
        assert self.index is not None
        try:
            status = os.stat(os.path.join(self.index.root, image.path))
            if sha256 is None:  # `verify_images: none` looks at no picture
                return f"{image.path} {status.st_size}"
            if max(status.st_ctime_ns, status.st_mtime_ns) < self.read_at:
                return sha256
            return hashlib.sha256(self.index.image_bytes(image)).hexdigest()
        except (OSError, DataError):
            return None


def of_stage(
    stage: Stage, data: Sequence[Any], validation: Sequence[Any]
) -> dict[str, list[dict[str, Any]]]:
    """`of_data` for the opened data sets of a stage, those it learns from and those held out."""
    kinds = {"data": (stage.data, data), "validation": (stage.validation, validation)}
    return {
        kind: [of_data(c, i) for c, i in zip(configs, opened, strict=True)]
        for kind, (configs, opened) in kinds.items()
    }


def of_text(model: Model) -> str:
    """Changes with the tokenizer and the chat template: with the ids of any text."""
    tokenizer = model.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend else tokenizer.get_vocab()
    for passing in ("truncation", "padding"):  # set by whoever used it last
        rules.pop(passing, None)
    encoder = getattr(model, "chat_encoder", None)
    about = [
        json.dumps(rules, sort_keys=True),
        str(tokenizer.special_tokens_map),
        str(getattr(encoder, "template", None)),
        str(getattr(tokenizer, "chat_template", None)),
        str(model.tokens_per_image),
    ]
    return _hash("\0".join(about).encode())


def of_weights(digests: Mapping[str, bytes]) -> dict[str, str]:
    """One hash a part, of the hashes of its tensors by their names in the model."""
    parts: dict[str, list[bytes]] = {}
    for name, digest in sorted(digests.items()):
        parts.setdefault(name.partition(".")[0], []).append(name.encode() + digest)
    return {part: _hash(b"".join(found)) for part, found in parts.items()}


def check_data(
    stage: str, known: Mapping[str, Sequence[Any]] | None, now: Mapping[str, Sequence[Any]]
) -> None:
    """Hold the data of a stage to what a checkpoint says of them.

    Args:
        known, now: for `data` and `validation`, one `of_data` a data set.

    Raises:
        DataChanged: they differ; names each, with its rows then and now.
    """
    where = f"stages.{stage}.data"
    if known is None:
        raise DataChanged(
            "the checkpoint was written by an earlier version and does not say which data it "
            "belongs to",
            where=where,
            fix=f"go on with that version; {ACCEPT}",
        )
    changed = changes(known, now)
    if changed:
        raise DataChanged(
            f"the data of stage {stage} changed while the run was stopped: {'; '.join(changed)}",
            where=where,
            fix=f"put the data back as they were; {ACCEPT}",
        )


def check_finished(
    stage: str, known: Mapping[str, Sequence[Any]], now: Mapping[str, Sequence[Any]], run: Path
) -> None:
    """Hold the data of a finished stage, which lie elsewhere now, to what it learned from.

    Raises:
        DataChanged: they differ; that is another run.
    """
    if changed := changes(known, now):
        raise DataChanged(
            f"stage {stage} is finished and learned from other data: {'; '.join(changed)}",
            where=str(run),
            fix="name a new run folder",
        )


def changes(known: Mapping[str, Sequence[Any]], now: Mapping[str, Sequence[Any]]) -> list[str]:
    """What a person is told of every data set that is not what it was."""
    told = []
    for kind in dict.fromkeys((*known, *now)):
        old, new = list(known.get(kind, ())), list(now.get(kind, ()))
        if len(old) != len(new):
            told.append(f"{len(old)} {kind} sets then, {len(new)} now")
        for before, after in zip(old, new, strict=False):
            if before["sha256"] == after["sha256"]:
                continue
            rows = f"{before['rows']:,} rows then, {after['rows']:,} now"
            if before["rows"] == after["rows"]:
                rows = f"{after['rows']:,} rows then and now, with other contents"
            told.append(f"{after['path']}: {rows}")
    return told


def check_start(stage: str, known: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Hold what a stage reads beside its data to what a checkpoint says.

    Args:
        known, now: `text` (see `of_text`), `weights` by part, `origins` by key of the recipe.

    Raises:
        StartChanged: they differ; names the tokenizer, the parts and the keys.
    """
    changed = ["the tokenizer or chat template"] if known["text"] != now["text"] else []
    for what, naming in (("weights", "the weights of {}"), ("origins", "what {} names")):
        old, new = known[what], now[what]
        changed += [naming.format(n) for n in sorted({*old, *new}) if old.get(n) != new.get(n)]
    if changed:
        raise StartChanged(
            f"since stage {stage} was trained this changed: {', '.join(changed)}",
            where=f"stages.{stage}",
            fix=f"put it back as it was; {ACCEPT}",
        )


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
