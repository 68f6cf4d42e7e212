"""Format: the contract of a file convention, read into Samples and written back.

A part in `formats/` is one convention. Its module has

    sniff(row) -> bool              whether a row (or a file's top-level object) looks like it
    parse(row) -> Sample            one row; raises a DataError that names the fault
    render(sample) -> dict          one row; the opposite of `parse`
    read(path) -> iterator          a whole file: Samples, and a Reject for every row that is none
    write(samples, path, refuse) -> int   a whole file, replaced in one step; the number of rows

Round trips lose nothing. Keys that a convention does not know travel in `Sample.meta`. What
a row says in another way than its convention's usual one (a number as id, a list with one
image) is noted in `meta["_<format>"]`, and so survives a detour through another format.
Only the way is noted, never the content: rows may be edited on the way.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, cast

from diptych import parts
from diptych.data.reading import files
from diptych.data.reading.cells import read_csv
from diptych.data.reading.ledger import Ledger, RejectFile
from diptych.data.reading.rows import Reject, Row, layout, object_keys, read_json
from diptych.data.sample import ROLES, Sample, Text, Turn
from diptych.errors import (
    DataError,
    EmptyConversation,
    FormatError,
    OneSidedConversation,
    UnknownRole,
)
from diptych.staging import replacing

__all__ = ["Format", "Reject", "Row", "convert", "detect", "read", "write"]

FOLDER = "data.formats"
_MAX_ROWS_SNIFFED = 100

Refuse = Callable[[Reject], None]


class Format(Protocol):
    """What a module in `formats/` provides."""

    def sniff(self, row: dict[str, Any]) -> bool: ...

    def parse(self, row: Row) -> Sample: ...

    def render(self, sample: Sample) -> dict[str, Any]: ...

    def read(self, path: str) -> Iterator[Sample | Reject]: ...

    def write(self, samples: Iterable[Sample], path: str, refuse: Refuse | None = None) -> int: ...


def find(name: str) -> Format:
    """The format of that name.

    Raises:
        PartNotFound: there is none; lists those that exist.
    """
    return cast(Format, parts.find(FOLDER, name))


def read(path: str, format: str | None = None) -> Iterator[Sample | Reject]:
    """Stream the rows of one file (or of a folder of captions).

    Args:
        path: a file or any URL that fsspec opens.
        format: name of the convention; None detects it.

    Raises:
        FormatError: the format cannot be told, or the file as a whole is not of that format.
        DataError: there is no such file.
        PartNotFound: there is no such format.
    """
    return find(format or detect(path)).read(path)


def write(
    samples: Iterable[Sample], path: str, format: str, *, refuse: Refuse | None = None
) -> int:
    """Write samples to one file, which is replaced in one step; returns the number of rows.

    Args:
        refuse: receives samples that the format cannot hold (the picture of a Parquet row in
            a format that only knows paths); None raises instead.
    """
    return find(format).write(samples, path, refuse)


def convert(source: str, target: str, from_: str | None, to: str) -> Ledger:
    """Rewrite a file in another format, streaming; returns what became of its rows.

    Rows that cannot be read or cannot be held by `to` go to `<target>.rejects.jsonl`.
    """
    ledger = Ledger()
    with RejectFile(f"{target}.rejects.jsonl") as rejects:

        def refuse(reject: Reject) -> None:
            ledger.reject(reject)
            rejects.add(reject)

        def samples() -> Iterator[Sample]:
            for item in read(source, from_):
                ledger.read()
                if isinstance(item, Reject):
                    refuse(item)
                else:
                    yield item

        ledger.num_used = write(samples(), target, to, refuse=refuse)
    ledger.check()
    return ledger


def row_text(sample: Sample, format: str | None) -> str:
    """The sample as a row of its format, or where that cannot be, what it holds as JSON."""
    if format is not None:
        try:
            return json.dumps(_row_of(sample, find(format).render), ensure_ascii=False)
        except FormatError:  # a picture inside a shard has no row of text
            pass
    content = {
        "id": sample.id,
        "images": [image.path for image in sample.images()],
        "turns": [[turn.role, turn.text] for turn in sample.turns],
        "meta": sample.meta,
    }
    return json.dumps(content, ensure_ascii=False)


def detect(path: str) -> str:
    """Name of the format of a file, told from its first rows.

    Raises:
        FormatError: no format, or more than one, claims the rows; lists the formats.
    """
    known = parts.names(FOLDER)
    seen: dict[str, Any] = {}
    for row in _first_rows(path):
        seen = seen or row
        claims = [name for name in known if find(name).sniff(row)]
        if len(claims) == 1:
            return claims[0]
        if claims:
            break
    what = f"they have the fields {', '.join(list(seen)[:12])}" if seen else _first_fault(path)
    raise FormatError(
        f"the format of the file cannot be told from its first rows: {what}",
        where=path,
        fix="rename the fields as docs/data-formats.md shows them (pairs have `caption` and "
        f"`image`), or name the format, one of: {', '.join(known)}",
    )


def _first_fault(path: str) -> str:
    """Why no first row could be read, as far as there is one."""
    first_path = path.split(",")[0]
    if files.suffix(first_path) in (".csv", ".tsv"):
        rows: Iterator[Row | Reject] = read_csv(first_path)
    else:
        rows = read_json(first_path)
    fault = next((row for row in rows if isinstance(row, Reject)), None)
    return f"{fault.where}: {fault.message}" if fault else "there are none"


def _first_rows(path: str) -> Iterator[dict[str, Any]]:
    first_path = path.split(",")[0]
    if files.is_folder(first_path):
        yield {"caption": "", "image": ""}
        return
    if files.suffix(first_path) in (".csv", ".tsv"):
        rows: Iterator[Row | Reject] = read_csv(first_path)
    elif layout(first_path) == "object":
        keys: dict[str, Any] = {}
        for key in object_keys(first_path):
            keys[key] = None
            if any(find(name).sniff(keys) for name in parts.names(FOLDER)):
                break
        yield keys
        return
    else:
        rows = read_json(first_path)
    for number, row in enumerate(rows):
        if isinstance(row, Row):
            yield row.value
        if number >= _MAX_ROWS_SNIFFED:
            return


# --- what formats are made of ----------------------------------------------------------------


def parsed(
    rows: Iterable[Row | Reject], parse: Callable[[Row], Sample]
) -> Iterator[Sample | Reject]:
    """`parse` over rows; a row whose fault it names becomes a Reject."""
    for row in rows:
        if isinstance(row, Reject):
            yield row
            continue
        try:
            yield parse(row)
        except DataError as error:
            identity = row.value.get("id")
            shown = str(identity) if isinstance(identity, str | int) else None
            yield Reject.of(error, row.where, row.raw, shown)


def rendered(
    samples: Iterable[Sample], render: Callable[[Sample], Any], refuse: Refuse | None
) -> Iterator[Any]:
    """`render` over samples; those that it cannot hold go to `refuse`."""
    for sample in samples:
        try:
            row = _row_of(sample, render)
        except DataError as error:
            if refuse is None:
                raise
            refuse(Reject.of(error, sample.source, row_text(sample, None), sample.id))
        else:
            yield row


def _row_of(sample: Sample, render: Callable[[Sample], Any]) -> Any:
    try:
        return render(sample)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        # Notes travel through files, where anybody may write them. Without one it is a bug.
        notes = [key for key in sample.meta if key.startswith("_")]
        if not notes:
            raise
        raise FormatError(
            f"a note on how the row was said is damaged ({', '.join(notes)})"
        ) from error


def write_json(rows: Iterable[Any], path: str) -> int:
    """Write rows as JSON lines, or as a JSON array where `path` ends in `.json`."""
    array = files.suffix(path) == ".json"
    count = 0
    with replacing(path) as temporary:
        with open(temporary, "w", encoding="utf-8", newline="\n") as out:
            for row in rows:
                if array:
                    out.write(",\n" if count else "[\n")
                out.write(json.dumps(row, ensure_ascii=False))
                if not array:
                    out.write("\n")
                count += 1
            if array:
                out.write("\n]\n" if count else "[]\n")
    return count


def checked(sample: Sample) -> Sample:
    """The sample itself, if its turns make a conversation to learn from.

    Raises:
        UnknownRole, EmptyConversation, OneSidedConversation: what their names say.
    """
    if not sample.turns:
        raise EmptyConversation("the conversation has no turns")
    roles, learns = set(), False
    for number, turn in enumerate(sample.turns, 1):
        if turn.role not in ROLES:
            raise UnknownRole(f"turn {number} is spoken by '{turn.role}', not {', '.join(ROLES)}")
        if turn.role != "system" and not _says(turn):
            raise EmptyConversation(f"turn {number} of {len(sample.turns)} has no content")
        roles.add(turn.role)
        learns = learns or (turn.learn and turn.role == "assistant")
    if "assistant" not in roles:
        raise OneSidedConversation(f"nobody answers in {len(sample.turns)} turns")
    if "user" not in roles:
        raise OneSidedConversation(f"nobody asks in {len(sample.turns)} turns")
    if not learns:
        raise OneSidedConversation("every answer is marked as not to be learned")
    return sample


def _says(turn: Turn) -> bool:
    """Whether a turn shows or says something; written out, as it is asked of every turn read."""
    for part in turn.parts:  # noqa: SIM110
        if not isinstance(part, Text) or part.text.strip():
            return True
    return False
