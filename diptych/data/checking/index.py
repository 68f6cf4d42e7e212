"""Index: every row read and checked once, the good ones at hand by number.

What `diptych.data.checking.examine` finds good is stored, so that training can visit samples in any
order with memory that does not grow with the data.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diptych.data.checking.examine import Examined, Measure, Picture, Verify, examine
from diptych.data.reading import files
from diptych.data.reading.disk_map import DiskMap
from diptych.data.reading.ledger import Ledger, RejectFile
from diptych.data.reading.rows import Reject
from diptych.data.sample import Image, Part, Sample, Text, Turn
from diptych.data.source import locate, read_bytes
from diptych.errors import DataError
from diptych.progress import Progress
from diptych.staging import put_in_place

_VERSION = 2
_PICTURES = "images.bin"


class Index(Sequence[Sample]):
    """The good samples of a data set, by number, read from disk when asked for.

    Picklable: workers open the files themselves.

    Args:
        folder: an index that `build` made.

    Attributes:
        ledger: what became of every row when the index was built.
        root: folder that image paths are relative to.
        files: what tells the data files from others and from themselves when they change.
        image_keys: uint64 [N], equal for samples whose first picture has equal content; 0
            where there is none or pictures were not looked at.
        lengths: int32 [N, 2], tokens and supervised tokens; -1 where not measured.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        about = json.loads((self.folder / "index.json").read_text(encoding="utf-8"))
        self.root: str = about["root"]
        self.format: str | None = about["format"]
        self.files: list[Any] = about["files"]
        self.ledger = Ledger.load(self.folder / "ledger.json")
        self._open()

    def _open(self) -> None:
        # Memory-mapped: pages come and go, and workers share them.
        self._offsets = np.load(self.folder / "offsets.npy", mmap_mode="r")
        self.lengths = np.load(self.folder / "lengths.npy", mmap_mode="r")
        self.image_keys = np.load(self.folder / "image_keys.npy", mmap_mode="r")
        self._rows = os.open(self.folder / "samples.jsonl", os.O_RDONLY | os.O_CLOEXEC)

    def __getstate__(self) -> dict[str, Any]:
        kept = ("folder", "root", "format", "files", "ledger")
        return {key: self.__dict__[key] for key in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __del__(self) -> None:
        descriptor = self.__dict__.pop("_rows", None)
        if descriptor is not None:
            os.close(descriptor)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def _row(self, number: int) -> dict[str, Any]:
        if not -len(self) <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        number %= len(self)
        start, end = int(self._offsets[number]), int(self._offsets[number + 1])
        return json.loads(os.pread(self._rows, end - start, start))

    def __getitem__(self, number: Any) -> Any:
        """The sample of that number (or, for a slice, a list of samples)."""
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        row = self._row(int(number))
        sizes = iter([(one.width, one.height) for one in map(_picture, row["pictures"])])
        turns = tuple(
            Turn(role, tuple(self._part(part, sizes) for part in parts), not unlearned)
            for role, parts, *unlearned in row["turns"]
        )
        return Sample(row["id"], turns, row["source"], row["meta"])

    def _part(self, part: Any, sizes: Iterator[tuple[int, int]]) -> Part:
        if isinstance(part, str):
            return Text(part)
        path, *span = part
        if path == "" and span:
            path = str(self.folder / _PICTURES)
        return Image(path, None, (span[0], span[1]) if span else None, next(sizes, None))

    def pictures(self, number: int) -> tuple[Picture, ...]:
        """Content hash and size of each of a sample's pictures, in reading order."""
        return tuple(map(_picture, self._row(number)["pictures"]))

    def image_sha256(self, number: int) -> tuple[str, ...]:
        """Content hash of each of a sample's pictures, in reading order."""
        return tuple(picture.sha256 for picture in self.pictures(number))

    def image_bytes(self, image: Image) -> bytes:
        """Encoded bytes of a picture of one of these samples.

        Raises:
            ImageError: the picture is no longer what it was.
        """
        return read_bytes(image, self.root)

    @property
    def is_current(self) -> bool:
        """Whether the data files are still what they were when this was built."""
        try:
            return all(files.identity(str(known[0])) == known for known in self.files)
        except DataError:
            return False

    @classmethod
    def build(
        cls,
        path: str | Sequence[str],
        cache: str | Path,
        *,
        format: str | None = None,
        images: str | None = None,
        workers: int | None = None,
        verify: Verify = "full",
        measure: Measure | None = None,
        measure_key: str | None = None,
        context: int | None = None,
        unique: bool = False,
        progress: bool = True,
    ) -> Index:
        """Read a data set once and keep the good samples, or reuse what an earlier call kept.

        The index lies in a folder of its own inside `cache`, so data sets can share a cache.
        It is staged beside its place and renamed: a killed build leaves nothing half-written.
        It is reused while path, settings, sizes and times of the data files, and the pictures
        that made rows rejects, are the same.

        Args:
            path, format, images: as for `diptych.data.source.locate`.
            cache: folder for indexes; made when missing.
            verify, measure, context, workers, unique: as for `examine`.
            measure_key: names what `measure` computes (a tokenizer's fingerprint); without
                it an index with a measure is built anew each time.
            progress: show progress on a terminal.

        Raises:
            DataError: the data set as a whole cannot be read, or has no rows.
        """
        paths = [path] if isinstance(path, str | os.PathLike) else list(path)
        paths = [_absolute(os.fspath(p)) for p in paths]
        images = _absolute(os.fspath(images)) if images is not None else None
        settings = [_VERSION, paths, format, images, verify, measure_key, context, unique]
        key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
        stem = "".join(c if c.isalnum() else "-" for c in files.base_name(paths[0]))[:40]
        folder = Path(cache) / f"{stem}-{key}"
        source = locate(paths, format, images)
        identities = [files.identity(p) for one in source.paths for p in one.split(",")]
        reusable = measure is None or measure_key is not None
        if reusable and _is_current(folder, identities):
            return cls(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        staged = folder.with_name(f".{folder.name}.{socket.gethostname()}.{os.getpid()}.partial")
        shutil.rmtree(staged, ignore_errors=True)
        try:
            staged.mkdir()
            faulty: dict[str, Any] = {}

            def note(image: Image) -> None:
                if image.data is None and image.span is None:
                    faulty[image.path] = _picture_state(source.root, image.path)

            items = examine(
                source,
                verify=verify,
                measure=measure,
                context=context,
                workers=workers,
                on_image_fault=note,
                unique=unique,
            )
            bars = Progress(quiet=not progress)
            _store(bars.track(items, f"reading {stem}"), staged, source.passed_over)
            about = {
                "root": source.root,
                "format": source.format,
                "files": identities,
                "faulty_images": faulty,
            }
            (staged / "index.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
            put_in_place(staged, folder)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        return cls(folder)


def _picture(stored: Sequence[Any]) -> Picture:
    return Picture(*stored)


def _absolute(path: str) -> str:
    # Each part of a pair of files (VQA) on its own; URLs stay as they are.
    if files.is_url(path):
        return path
    return ",".join(os.path.abspath(p) for p in path.split(","))


def _picture_state(root: str, path: str) -> list[int] | None:
    if files.is_url(root):
        return None
    try:
        status = os.stat(os.path.join(root, path))
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns]


def _is_current(folder: Path, identities: list[Any]) -> bool:
    try:
        about = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    # Pictures that were missing or damaged may have been put right since.
    return about["files"] == identities and all(
        _picture_state(about["root"], path) == state
        for path, state in about["faulty_images"].items()
    )


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed builds of this index on this machine left behind."""
    for left in folder.parent.glob(f".{folder.name}.{socket.gethostname()}.*"):
        pid = left.name.split(".")[-2]
        if pid.isdecimal() and not os.path.exists(f"/proc/{pid}") and sys.platform == "linux":
            shutil.rmtree(left, ignore_errors=True)


def _store(
    items: Iterator[Examined | Reject], folder: Path, passed_over: Mapping[str, int]
) -> None:
    """Write an index's files."""
    ledger = Ledger()
    offsets, lengths, keys = array("Q", [0]), array("i"), array("Q")
    places = DiskMap()
    with (
        RejectFile(folder / "rejects.jsonl") as rejects,
        open(folder / "samples.jsonl", "wb") as rows,
        open(folder / _PICTURES, "wb") as pictures,
    ):
        for item in items:
            ledger.read()
            if isinstance(item, Reject):
                ledger.reject(item)
                rejects.add(item)
                continue
            if item.num_cut_tokens:
                ledger.truncate(item.num_cut_tokens, max(0, item.num_supervised_tokens))
            else:
                ledger.use(max(0, item.num_supervised_tokens))
            for what in item.notes:
                ledger.note(what)
            row = _stored(item, pictures, places)
            rows.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
            offsets.append(rows.tell())
            lengths.extend((item.num_tokens, item.num_supervised_tokens))
            keys.append(int(item.pictures[0].sha256[:16], 16) if item.pictures else 0)
    places.close()
    for what, count in passed_over.items():
        ledger.note(f"passed over: {what}", count)
    if not ledger.num_read:
        raise DataError("the data set has no rows", fix="check the path and the format")
    ledger.check()
    ledger.save(folder / "ledger.json")
    np.save(folder / "offsets.npy", np.frombuffer(offsets, np.uint64))
    np.save(folder / "lengths.npy", np.frombuffer(lengths, np.int32).reshape(-1, 2))
    np.save(folder / "image_keys.npy", np.frombuffer(keys, np.uint64))


def _stored(item: Examined, pictures: Any, places: DiskMap) -> dict[str, Any]:
    def part(part: Part) -> Any:
        if isinstance(part, Text):
            return part.text
        if part.span is not None:
            return [part.path, *part.span]
        if part.data is None:
            return [part.path]
        # Bytes inside a row are kept beside the index, equal ones once. No path names them.
        key = hashlib.sha256(part.data).hexdigest()
        known = places.add(key, str(pictures.tell()))
        if known is None:
            known = str(pictures.tell())
            pictures.write(part.data)
        return ["", int(known), len(part.data)]

    sample = item.sample
    return {
        "id": sample.id,
        "source": sample.source,
        # A third item marks a turn that is not learned.
        "turns": [
            [turn.role, [part(p) for p in turn.parts], *([] if turn.learn else [0])]
            for turn in sample.turns
        ],
        "meta": sample.meta,
        "pictures": [list(picture) for picture in item.pictures],
    }
