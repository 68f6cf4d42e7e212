"""Captions: one picture, one text, in the five ways they are published.

- COCO annotation file: `{"images": [{"id", "file_name"}], "annotations": [{"id", "image_id",
  "caption"}]}`. Rows are the annotations; a picture without one is no row and is not kept.
- Karpathy's own file of splits: `{"images": [{"filepath", "filename", "split", "cocoid",
  "sentences": [{"raw", "tokens"}]}], "dataset"}`. Rows are the images.
- Karpathy rows, as a JSON array or JSON lines: `{"caption": text or list, "image", "image_id"}`.
- CSV or TSV with a header (`caption` and `image`, or one of the usual other names); a column
  named `key:json` holds JSON values. TSV is not quoted: a line is a row. Two columns, one of
  them a picture's path, need no header.
- A folder in which each picture has a `.txt` of its name beside it.

Every caption is a Sample: the user shows the picture, the assistant says the text. Of a list
of captions the first is said and all stand in `meta["answers"]`.
Source: COCO (arXiv:1405.0312, cocodataset.org/#format-data); Karpathy's split as LAVIS
publishes it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from diptych.data import format as contract
from diptych.data.reading import fields, files, keys
from diptych.data.reading import folder as folders
from diptych.data.reading.cells import read_csv
from diptych.data.reading.disk_map import DiskMap
from diptych.data.reading.rows import Reject, Row, layout, read_json, read_object
from diptych.data.reading.strict_json import parse_json
from diptych.data.sample import Image, Sample, Text, Turn
from diptych.errors import DataError, DuplicateId, FormatError, MissingImage
from diptych.staging import replacing

MARK = "_captions"
# What only one of the four ways says; the other three keep it like any key they do not know.
_COCO_MARK = "_coco"
_FOLDER_MARK = "_text_file"
_CAPTION_KEYS = ("caption", "text", "title")
_IMAGE_KEYS = ("image", "image_path", "filepath", "file_path", "file_name", "filename", "path")
_KNOWN = frozenset({"id", *_CAPTION_KEYS, *_IMAGE_KEYS})
_COCO = frozenset({"images", "annotations"})
_SPLITS = frozenset({"images", "dataset"})


def sniff(row: dict[str, Any]) -> bool:
    """A caption beside an image, or COCO's two lists; none of the other formats' keys."""
    if {"conversations", "messages", "question", "questions"} & row.keys():
        return False
    if row.keys() >= _COCO or row.keys() >= _SPLITS:
        return True
    return _key(row, _CAPTION_KEYS) is not None and _key(row, _IMAGE_KEYS) is not None


def _key(row: dict[str, Any], names: tuple[str, ...]) -> str | None:
    for name in names:
        if name in row:
            return name
    return None


def read(path: str) -> Iterator[Sample | Reject]:
    """Samples of a COCO file, Karpathy rows, CSV, or a folder of pictures and texts."""
    if files.is_folder(path):
        return _read_folder(path)
    if files.suffix(path) in (".csv", ".tsv"):
        return contract.parsed(_json_columns(read_csv(path)), parse)
    if layout(path) == "object":
        return _read_splits(path) if _has_splits(path) else _read_coco(path)
    return contract.parsed(read_json(path), parse)


def write(samples: Iterable[Sample], path: str, refuse: contract.Refuse | None = None) -> int:
    """By the path: CSV/TSV, JSON lines, a folder's `.txt` files, else COCO or a JSON array.

    `.json` becomes a COCO file when the samples came from one.
    """
    if os.path.isdir(path):
        return sum(1 for _ in contract.rendered(samples, _TextFiles(path), refuse))
    if files.suffix(path) in (".csv", ".tsv"):
        return _write_csv(samples, path, refuse)
    iterator = iter(samples)
    first = next(iterator, None)
    rest = _chain(first, iterator)
    if first and files.suffix(path) == ".json" and keys.noted(first, _COCO_MARK):
        return _write_coco(rest, path, refuse)
    return contract.write_json(contract.rendered(rest, render, refuse), path)


def _chain(first: Sample | None, rest: Iterator[Sample]) -> Iterator[Sample]:
    if first is not None:
        yield first
        yield from rest


def parse(row: Row) -> Sample:
    """One row with a caption (or a list of them) and an image.

    Raises:
        FormatError: a field is missing or of the wrong type.
        EmptyConversation: there is no caption.
    """
    note: dict[str, Any] = {}
    fields.refuse_unseen(row.value, pictures=False)
    sample_id = keys.take_id(row, note)
    caption_key = _key(row.value, _CAPTION_KEYS) or "caption"
    image_key = _key(row.value, _IMAGE_KEYS) or "image"
    caption = keys.require(row.value, caption_key, (str, list), "text or a list of texts")
    path = keys.require(row.value, image_key, str, "a path")
    if not path:
        raise FormatError(f"'{image_key}' is empty, not a path")
    captions = [caption] if isinstance(caption, str) else caption
    if isinstance(caption, list):
        note["list"] = True
        if not all(isinstance(c, str) for c in captions):
            raise FormatError(f"'{caption_key}' holds something that is not text")
    if (caption_key, image_key) != ("caption", "image"):
        note["keys"] = [caption_key, image_key]
    known = frozenset({"id", caption_key, image_key})
    meta = keys.take_meta(row.value, known, MARK, note)
    if len(captions) > 1 and "answers" not in meta:
        meta["answers"] = captions
        note["answers"] = True
    return _sample(sample_id, path, captions[0] if captions else "", row.where, meta)


def _sample(id: str, path: str, caption: str, where: str, meta: dict[str, Any]) -> Sample:
    said = (Text(caption),) if caption else ()
    turns = (Turn("user", (Image(path),)), Turn("assistant", said))
    return contract.checked(Sample(id, turns, where, meta))


def render(sample: Sample) -> dict[str, Any]:
    """One Karpathy row.

    Raises:
        FormatError: the sample is no bare caption of one picture.
    """
    path, caption = _caption(sample)
    note = keys.noted(sample, MARK)
    caption_key, image_key = note.get("keys", ("caption", "image"))
    meta = dict(sample.meta)
    said: Any = caption
    if note.get("list"):
        answers = meta.pop("answers", None) if note.get("answers") else None
        said = [caption, *answers[1:]] if isinstance(answers, list) else [caption]
    row = keys.give_id(sample, note) | {caption_key: said, image_key: path}
    known = frozenset({"id", caption_key, image_key}) if note else _KNOWN
    return keys.give_meta(row, meta, known, MARK)


def _caption(sample: Sample) -> tuple[str, str]:
    match sample.turns:
        case (Turn("user", (Image() as image,)), Turn("assistant", (Text(caption),))):
            return keys.image_path(image), caption
    raise FormatError("the sample is not one picture and its caption; this format holds no more")


# --- COCO ------------------------------------------------------------------------------------


def _read_coco(path: str) -> Iterator[Sample | Reject]:
    images = DiskMap()
    header: dict[str, Any] = {}
    for key, item in read_object(path, rows_of=frozenset({"images"}), skip=_COCO):
        if isinstance(item, Reject):
            yield item
        elif not isinstance(item, Row):
            header[key] = item
        elif images.add(str(item.value.get("id")), json.dumps([item.number, item.value])):
            error = DuplicateId(f"the image id {item.value.get('id')} occurs twice")
            yield Reject.of(error, item.where, item.raw)
    first = True
    for key, item in read_object(path, rows_of=frozenset({"annotations"}), skip=_COCO):
        if key not in ("annotations", "") or isinstance(item, Reject):
            # Faults outside the annotations were reported by the first pass.
            if isinstance(item, Reject) and key == "annotations":
                yield item
            continue
        for sample in contract.parsed([item], lambda row: _parse_annotation(row, images)):
            if first and isinstance(sample, Sample):
                sample.meta[_COCO_MARK]["file"] = header
                first = False
            yield sample
    images.close()


def _has_splits(path: str) -> bool:
    """Whether a file is Karpathy's own: told by its first row, as the whole file may be long."""
    for key, item in read_object(path, rows_of=_COCO):
        if isinstance(item, Row):
            return key == "images" and "sentences" in item.value
    return False


def _read_splits(path: str) -> Iterator[Sample | Reject]:
    def rows() -> Iterator[Row | Reject]:
        for key, item in read_object(path, rows_of=frozenset({"images"})):
            if isinstance(item, Reject):
                yield item
            elif isinstance(item, Row) and key == "images":
                try:
                    yield Row(_of_splits(item.value), item.where, item.raw, item.number)
                except FormatError as error:
                    yield Reject.of(error, item.where, item.raw)

    return contract.parsed(rows(), parse)


def _of_splits(value: dict[str, Any]) -> dict[str, Any]:
    """A row of Karpathy's file of splits as a Karpathy row; nothing of it is lost."""
    sentences = keys.require(value, "sentences", list, "a list of sentences")
    if not all(isinstance(s, dict) and isinstance(s.get("raw"), str) for s in sentences):
        raise FormatError("'sentences' holds something that has no text under 'raw'")
    folder = value.get("filepath", "")
    name = keys.require(value, "filename", str, "a file's name")
    taken = ("sentences", "filepath", "filename")
    row = {
        "image": f"{folder}/{name}" if folder else name,
        "caption": [s["raw"] for s in sentences],
        **{k: v for k, v in value.items() if k not in taken},
        "tokens": [s.get("tokens") for s in sentences],
    }
    if "cocoid" in value or "imgid" in value:
        row.setdefault("id", value.get("cocoid", value.get("imgid")))
    return row


def _parse_annotation(row: Row, images: DiskMap) -> Sample:
    note: dict[str, Any] = {}
    sample_id = keys.take_id(row, note)
    keys.require(row.value, "image_id", (int, str), "a number or text")
    caption = keys.require(row.value, "caption", str, "text")
    found = images.get(str(row.value["image_id"]))
    if found is None:
        raise MissingImage(f"the file lists no image with the id {row.value['image_id']}")
    note["number"], note["image"] = json.loads(found)
    path = keys.require(note["image"], "file_name", str, "a path")
    meta = keys.take_meta(row.value, frozenset({"id", "caption"}), _COCO_MARK, note)
    return _sample(sample_id, path, caption, row.where, meta)


def _write_coco(samples: Iterable[Sample], path: str, refuse: contract.Refuse | None) -> int:
    images = DiskMap()
    header: dict[str, Any] = {}
    count = 0
    with replacing(path) as temporary:
        with open(temporary, "w", encoding="utf-8", newline="\n") as out:
            out.write('{"annotations": [')
            for image, annotation, about in contract.rendered(samples, _coco_rows, refuse):
                out.write((",\n" if count else "\n") + json.dumps(annotation, ensure_ascii=False))
                header = header or about
                images.add(*image)
                count += 1
            out.write('\n],\n"images": [')
            for number, (_, image_row) in enumerate(images.items()):
                out.write((",\n" if number else "\n") + image_row)
            out.write("\n]")
            for key, value in header.items():
                out.write(f",\n{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
            out.write("}\n")
    images.close()
    return count


def _coco_rows(sample: Sample) -> tuple[tuple[str, str], dict[str, Any], dict[str, Any]]:
    path, caption = _caption(sample)
    note = keys.noted(sample, _COCO_MARK)
    if "image" not in note:
        raise FormatError("the sample did not come from a COCO file; write Karpathy rows instead")
    image = note["image"] | {"file_name": path}
    annotation = keys.give_id(sample, note) | {"caption": caption}
    known = frozenset({"id", "caption"})
    annotation = keys.give_meta(annotation, sample.meta, known, _COCO_MARK)
    key = f"{note['number']:012d}"
    return (key, json.dumps(image, ensure_ascii=False)), annotation, dict(note.get("file", {}))


# --- CSV -------------------------------------------------------------------------------------

_JSON_COLUMN = ":json"


def _json_columns(rows: Iterable[Row | Reject]) -> Iterator[Row | Reject]:
    columns: set[str] | None = None
    for row in rows:
        if columns is None and isinstance(row, Row):  # all rows have those of the first
            columns = {name for name in row.value if name.endswith(_JSON_COLUMN)}
        if isinstance(row, Reject) or not columns:
            yield row
            continue
        try:
            value = {
                k.removesuffix(_JSON_COLUMN): _json_cell(k, v) if k.endswith(_JSON_COLUMN) else v
                for k, v in row.value.items()
            }
        except FormatError as error:
            yield Reject.of(error, row.where, row.raw)
        else:
            yield Row(value, row.where, row.raw, row.number)


def _json_cell(column: str, text: str) -> Any:
    try:
        return parse_json(text)
    except FormatError as error:
        raise FormatError(f"the column '{column}' holds no JSON: {error.what}") from None


def _write_csv(samples: Iterable[Sample], path: str, refuse: contract.Refuse | None) -> int:
    is_tsv = files.suffix(path) == ".tsv"
    columns: list[str] = []
    count = 0

    def cells(sample: Sample) -> list[str]:
        row = render(sample)
        if not columns:
            columns.extend(k if isinstance(v, str) else k + _JSON_COLUMN for k, v in row.items())
        if [c.removesuffix(_JSON_COLUMN) for c in columns] != list(row):
            raise FormatError(f"the row has other keys than the first: {', '.join(row)}")
        if any(not isinstance(row[c], str) for c in columns if not c.endswith(_JSON_COLUMN)):
            raise FormatError("a value is not text, unlike that of the first row")
        line = [
            json.dumps(row[c.removesuffix(_JSON_COLUMN)]) if c.endswith(_JSON_COLUMN) else row[c]
            for c in columns
        ]
        for column, cell in zip(columns, line, strict=True):
            if is_tsv and any(mark in cell for mark in "\t\n\r"):
                raise FormatError(
                    f"'{column}' has a tab or a line break, which a cell of TSV cannot have",
                    fix="write to .csv or .jsonl",
                )
        return line

    with replacing(path) as temporary:
        with open(temporary, "w", encoding="utf-8", newline="") as out:
            for line in contract.rendered(samples, cells, refuse):
                for row in [line] if count else [columns, line]:
                    out.write("\t".join(row) if is_tsv else ",".join(map(_quoted, row)))
                    out.write("\n")
                count += 1
    return count


def _quoted(cell: str) -> str:
    # Python's writer leaves a carriage return bare, which its reader then refuses.
    return '"' + cell.replace('"', '""') + '"' if set(cell) & set(',"\r\n') else cell


# --- a folder of pictures and texts ----------------------------------------------------------


def _read_folder(folder: str) -> Iterator[Sample | Reject]:
    # Grouped by name without suffix; names arrive sorted, but `a.b.txt` may come between
    # `a.jpg` and `a.txt`, so groups are joined on disk rather than by neighbourhood.
    groups = DiskMap()
    for name, kind in folders.kinds(folder):
        if kind not in ("picture", "text"):
            continue
        stem = folders.stem(folder, name)
        if groups.add(stem, name) is not None:
            together = f"{groups.pop(stem)}\n{name}"
            groups.add(stem, together)
    for stem, joined in groups.items():
        try:
            yield _read_pair(folder, stem, joined.split("\n"))
        except DataError as error:
            yield Reject.of(error, files.join(folder, joined.split("\n")[0]), "", stem)
    groups.close()


def _read_pair(folder: str, stem: str, names: list[str]) -> Sample:
    texts = [n for n in names if n.lower().endswith(".txt")]
    pictures = [n for n in names if n not in texts]
    if not pictures:
        raise MissingImage(f"there is no picture beside '{texts[0]}'")
    if len(pictures) > 1 or len(texts) > 1:
        raise FormatError(f"it cannot be told which belong together: {', '.join(names)}")
    if not texts:
        raise FormatError(
            f"there is no caption beside '{pictures[0]}' (a .txt of the same name)",
            fix="write one; pictures alone are good for `diptych embed --what image` only",
        )
    where = files.join(folder, texts[0])
    with files.reading(where) as stream:
        data = stream.read(files.CHUNK_BYTES + 1)
    if len(data) > files.CHUNK_BYTES:
        raise FormatError("the caption is longer than 1 MiB")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"the caption is not UTF-8: {error.reason}") from None
    if "\0" in text:
        raise FormatError("the caption contains a NUL byte")
    caption = text.rstrip("\r\n")
    note = {"end": text[len(caption) :]} if text != caption else {}
    return _sample(stem, pictures[0], caption, where, {_FOLDER_MARK: note} if note else {})


class _TextFiles:
    """Writes captions as `.txt` beside pictures that already lie in a folder."""

    def __init__(self, folder: str):
        self._folder = folder
        self._written = DiskMap()

    def __call__(self, sample: Sample) -> None:
        path, caption = _caption(sample)
        parts = Path(path).parts
        if files.is_url(path) or os.path.isabs(path) or ".." in parts:
            raise FormatError(f"the picture '{path}' does not lie in the folder")
        target = os.path.join(self._folder, os.path.splitext(path)[0] + ".txt")
        if not os.path.realpath(target).startswith(os.path.realpath(self._folder) + os.sep):
            raise FormatError(f"the picture '{path}' does not lie in the folder")
        if self._written.add(target, sample.id) is not None:
            raise FormatError(f"a folder holds one caption a picture, and '{path}' has two")
        extra = {key for key in sample.meta if key not in (MARK, _FOLDER_MARK)}
        if extra:
            raise FormatError(f"a text file cannot hold {', '.join(sorted(extra))}")
        with replacing(target) as temporary:
            end = keys.noted(sample, _FOLDER_MARK).get("end", "")
            temporary.write_text(caption + end, encoding="utf-8", newline="")
