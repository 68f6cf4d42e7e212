"""Tar shards and Parquet."""

from __future__ import annotations

import json
import tarfile
from typing import Any

from diptych import errors
from tests.e2e.faults.case import CASES, Case, case
from tests.e2e.faulty_inputs import (
    encoded,
    json_lines,
    link,
    noise,
    parquet,
    png,
    raw_file,
    row,
    talk,
    tar,
)

# --- tar -------------------------------------------------------------------------------------

llava_member = json.dumps({"conversations": talk("<image>?", "A")}).encode()


def tar_case(
    name: str, members: list[Any], good: int, rejects: dict[str, int], says: str = ""
) -> None:
    start = [("a.png", png()), ("a.txt", b"A cat.")]
    CASES.append(
        Case(name, lambda f: tar(f, start + members), good=good, rejects=rejects, says=says)
    )


tar_case("tar row with a conversation", [("b.json", llava_member), ("b.png", png())], 2, {})
tar_case(
    "tar member climbs", [("../b.png", png()), ("../b.txt", b"B")], 1, {"UnsafePath": 1}, "../b"
)
tar_case("tar member is absolute", [("/b.png", png()), ("/b.txt", b"B")], 1, {"UnsafePath": 1})
tar_case(
    "tar symbolic link",
    [(link("b.png", "/etc/passwd"), b""), ("b.txt", b"B")],
    1,
    {"UnsafePath": 1},
    "symbolic",
)
tar_case(
    "tar hard link",
    [(link("b.png", "a.png", tarfile.LNKTYPE), b""), ("b.txt", b"B")],
    1,
    {"UnsafePath": 1},
    "hard",
)
tar_case(
    "tar device",
    [(link("b.png", "", tarfile.CHRTYPE), b""), ("b.txt", b"B")],
    1,
    {"UnsafePath": 1},
    "device",
)
tar_case(
    "tar pipe", [(link("b.png", "", tarfile.FIFOTYPE), b""), ("b.txt", b"B")], 1, {"UnsafePath": 1}
)
tar_case(
    "tar member twice",
    [("b.png", png()), ("b.png", png()), ("b.txt", b"B")],
    1,
    {"FormatError": 1},
    "twice",
)
tar_case(
    "tar key comes again",
    [("b.png", png()), ("b.txt", b"B"), ("a.png", png()), ("a.txt", b"A")],
    3,
    {},
)
tar_case("tar picture without text", [("b.png", png())], 1, {"FormatError": 1})
tar_case("tar text without picture", [("b.txt", b"B")], 1, {"FormatError": 1})
tar_case(
    "tar markers and pictures differ",
    [("b.json", llava_member), ("b.0.png", png()), ("b.1.png", png())],
    1,
    {"MarkerMismatch": 1},
)
tar_case("tar broken JSON", [("b.json", b"{"), ("b.png", png())], 1, {"FormatError": 1})
tar_case(
    "tar JSON of no format", [("b.json", b'{"x": 1}'), ("b.png", png())], 1, {"FormatError": 1}
)
tar_case("tar latin-1 text", [("b.txt", b"\xe9"), ("b.png", png())], 1, {"FormatError": 1})
tar_case("tar empty picture", [("b.txt", b"B"), ("b.png", b"")], 1, {"EmptyImage": 1})
tar_case(
    "tar truncated picture",
    [("b.txt", b"B"), ("b.jpg", encoded(noise(), "JPEG")[:500])],
    1,
    {"TruncatedImage": 1},
)


@case("tar cut off in a member", good=1, rejects={"DataError": 1}, says="breaks off")
def _(folder):
    path = tar(
        folder,
        [("a.txt", b"A"), ("a.png", png()), ("b.txt", b"B"), ("b.png", encoded(noise(), "PNG"))],
    )
    path.write_bytes(path.read_bytes()[: 512 * 7 + 100])
    return path


@case("tar with a damaged header", good=1, rejects={"DataError": 1})
def _(folder):
    path = tar(folder, [("a.txt", b"A"), ("a.png", png()), ("b.txt", b"B"), ("b.png", png())])
    data = bytearray(path.read_bytes())
    data[512 * 6 : 512 * 6 + 40] = b"x" * 40
    path.write_bytes(bytes(data))
    return path


@case("file that is no tar", rejects={"DataError": 1})
def _(folder):
    return raw_file(folder, b"no tar " * 1000, "shard.tar")


@case("empty tar file", rejects={"DataError": 1})
def _(folder):
    return raw_file(folder, b"", "shard.tar")


@case("good shard beside a broken one", good=1, rejects={"DataError": 1})
def _(folder):
    shards = folder / "shards"
    shards.mkdir()
    tar(shards, [("a.txt", b"A"), ("a.png", png())], "0.tar")
    raw_file(shards, b"no tar", "1.tar")
    return shards


# --- Parquet -----------------------------------------------------------------------------------


@case(
    "Parquet with faults",
    good=2,
    rejects={"EmptyImage": 1, "NotAnImage": 1, "MissingImage": 2, "FormatError": 1},
)
def _(folder):
    pictures = [
        {"bytes": png(), "path": "a.png"},
        {"bytes": png(), "path": None},
        {"bytes": b"", "path": "c.png"},
        {"bytes": b"hello", "path": "d.png"},
        {"bytes": None, "path": "e.png"},
        None,
        {"bytes": png(), "path": "g.png"},
    ]
    turns = [talk("<image>?", "A")] * 5 + [talk("<image>?", "A"), None]
    del pictures[5], turns[5]
    pictures.append({"bytes": None, "path": "h.png"})
    turns.append(talk("<image>?", "A"))
    return parquet(folder, {"image": pictures, "conversations": turns})


@case("Parquet with binary column and captions", good=2)
def _(folder):
    return parquet(folder, {"image": [png(), png(3, 3)], "caption": ["A", "B"]})


@case("Parquet marker without picture", good=1, rejects={"MarkerMismatch": 1})
def _(folder):
    columns = {"images": [[png()], []], "conversations": [talk("<image>?", "A")] * 2}
    return parquet(folder, columns)


@case("Parquet of no format", rejects={"FormatError": 2})
def _(folder):
    return parquet(folder, {"x": [1, 2]})


@case("file that is no Parquet", rejects={"DataError": 1})
def _(folder):
    return raw_file(folder, b"PAR1 but not really", "rows.parquet")


@case("Parquet with a damaged page", good=2, rejects={"DataError": 2}, says="rows 2 to 3")
def _(folder):
    import pyarrow
    import pyarrow.parquet

    path = folder / "rows.parquet"
    columns = {"image": [encoded(noise(seed=n), "PNG") for n in range(4)], "caption": list("ABCD")}
    with pyarrow.parquet.ParquetWriter(
        path, pyarrow.table(columns).schema, compression="zstd"
    ) as out:
        for start in (0, 2):
            out.write_table(pyarrow.table({k: v[start : start + 2] for k, v in columns.items()}))
    group = pyarrow.parquet.ParquetFile(path).metadata.row_group(1)
    data = bytearray(path.read_bytes())
    at = group.column(0).dictionary_page_offset or group.column(0).data_page_offset
    data[at : at + 200] = b"\xff" * 200
    path.write_bytes(bytes(data))
    return path


@case("shards and data files together", raises=errors.DataError, says="one set")
def _(folder):
    return [str(tar(folder, [("a.txt", b"A")])), str(json_lines(folder, [row(1)]))]
