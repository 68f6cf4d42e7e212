"""Pictures alone: a folder of them, or rows that name one and say nothing about it.

For what reads pictures only (`diptych embed --what image`). Rows are JSON lines, a JSON array, CSV
or TSV. It is never detected, as a row without a caption is mostly one whose caption was forgotten;
the embedding job takes a folder so in which no picture has a text
(`diptych.data.source.is_pictures_alone`). In a folder, files are told by their content
(`diptych.data.reading.folder`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from diptych.data import format as contract
from diptych.data.reading import files, keys
from diptych.data.reading import folder as folders
from diptych.data.reading.cells import read_csv
from diptych.data.reading.rows import Reject, Row, read_json
from diptych.data.sample import Image, Sample, Turn
from diptych.errors import FormatError

MARK = "_pictures"
_KNOWN = frozenset({"id", "image"})


def sniff(row: dict[str, Any]) -> bool:
    """Never: the format must be named."""
    return False


def read(path: str) -> Iterator[Sample | Reject]:
    """Samples of a folder's pictures, whose ids are their names, or of a file's rows."""
    if files.is_folder(path):
        return _read_folder(path)
    rows = read_csv(path) if files.suffix(path) in (".csv", ".tsv") else read_json(path)
    return contract.parsed(rows, parse)


def _read_folder(folder: str) -> Iterator[Sample]:
    for name, kind in folders.kinds(folder):
        if kind == "picture":
            yield Sample(name, (Turn("user", (Image(name),)),), files.join(folder, name), {})


def write(samples: Iterable[Sample], path: str, refuse: contract.Refuse | None = None) -> int:
    """JSON lines, or a JSON array where `path` ends in `.json`."""
    return contract.write_json(contract.rendered(samples, render, refuse), path)


def parse(row: Row) -> Sample:
    """One row with an image.

    Raises:
        FormatError: there is no image, or it is not a path.
    """
    note: dict[str, Any] = {}
    sample_id = keys.take_id(row, note)
    path = keys.require(row.value, "image", str, "a path")
    if not path:
        raise FormatError("'image' is empty, not a path")
    meta = keys.take_meta(row.value, _KNOWN, MARK, note)
    return Sample(sample_id, (Turn("user", (Image(path),)),), row.where, meta)


def render(sample: Sample) -> dict[str, Any]:
    """One row.

    Raises:
        FormatError: the sample is more than one picture.
    """
    match sample.turns:
        case (Turn("user", (Image() as image,)),):
            row = keys.give_id(sample, keys.noted(sample, MARK))
            row["image"] = keys.image_path(image)
            return keys.give_meta(row, sample.meta, _KNOWN, MARK)
    raise FormatError("the sample is not one picture alone; this format holds no more")
