"""How fast rows are read, and how much memory that takes, for each way in which they are published.

Every measurement is a process of its own that runs `diptych.data.source.rows` over one file and
counts what comes out. Seconds are those of the processor, so that what else the machine does
counts little; memory is the peak above what the imports take (Linux). With `--against` another
checkout reads the same files in turn with this one; ratios are the median over the repeats of
(here) / (there).

    python benchmarks/read_formats.py --num 200000 --json
    python benchmarks/read_formats.py --num 20000 --against ../older_checkout
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_PROBE = """
import json, sys, time
import pyarrow.parquet
from diptych import parts
from diptych.data import format
from diptych.data.source import rows
from diptych.data.sample import Sample

def kib(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key))

# What is imported at first use is no cost of a row.
for name in parts.names(format.FOLDER):
    format.find(name)
with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")
before, start, good, bad = kib("VmRSS"), time.process_time(), 0, 0
for item in rows(sys.argv[1]):
    if isinstance(item, Sample):
        good += 1
    else:
        bad += 1
seconds = time.process_time() - start
mib = (kib("VmHWM") - before) / 1024
print(json.dumps({"seconds": seconds, "good": good, "bad": bad, "mib": mib}))
"""


def conversation(number: int) -> list[dict[str, str]]:
    """Two questions and answers of usual length about a picture."""
    return [
        {"from": "human", "value": "<image>\nWhat is the person in the picture doing?"},
        {
            "from": "gpt",
            "value": f"The person number {number} is riding a \u201cbicycle\u201d. " * 4,
        },
        {"from": "human", "value": "Which colour is it?"},
        {
            "from": "gpt",
            "value": "It is red, with a white saddle and a small basket in front. " * 2,
        },
    ]


def messages(number: int) -> list[dict[str, Any]]:
    """The same as messages with parts."""
    roles = {"human": "user", "gpt": "assistant"}
    turns = []
    for turn in conversation(number):
        parts: list[dict[str, str]] = [
            {"type": "text", "text": turn["value"].removeprefix("<image>\n")}
        ]
        if turn["value"].startswith("<image>"):
            parts.insert(0, {"type": "image", "image": f"{number:012d}.jpg"})
        turns.append({"role": roles[turn["from"]], "content": parts})
    return turns


def caption(number: int) -> str:
    """A caption of usual length."""
    return f"A man, number {number}, rides a red bicycle along the river on a cloudy afternoon."


def llava(number: int) -> dict[str, Any]:
    """One row of LLaVA's instruction data."""
    return {
        "id": f"{number:012d}",
        "image": f"coco/train2017/{number:012d}.jpg",
        "conversations": conversation(number),
    }


def pair(number: int) -> dict[str, Any]:
    """One row of Karpathy's split."""
    return {"caption": caption(number), "image": f"{number}.jpg", "image_id": f"coco_{number}"}


def _array(path: Path, rows: Iterator[Any]) -> None:
    with open(path, "w", encoding="utf-8") as out:
        for number, row in enumerate(rows):
            out.write(("[" if number == 0 else ", ") + json.dumps(row))
        out.write("]")


def _lines(path: Path, rows: Iterator[Any]) -> None:
    with open(path, "w", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)


def _cells(path: Path, mark: str, num: int) -> None:
    with open(path, "w", encoding="utf-8") as out:
        out.write(f"id{mark}caption{mark}image\n")
        for number in range(num):
            text = caption(number) if mark == "\t" else f'"{caption(number)}"'
            out.write(f"{number}{mark}{text}{mark}{number}.jpg\n")


def _coco(path: Path, num: int) -> None:
    images = [{"id": n, "file_name": f"{n:012d}.jpg", "height": 480} for n in range(num // 5 or 1)]
    annotations = [
        {"id": n, "image_id": n % len(images), "caption": caption(n)} for n in range(num)
    ]
    text = json.dumps({"info": {}, "images": images, "annotations": annotations})
    path.write_text(text, encoding="utf-8")


def _vqa(path: Path, num: int) -> None:
    answers = [{"answer": "red", "answer_confidence": "yes", "answer_id": n} for n in range(10)]
    questions, annotations = [], []
    for n in range(num):
        common = {"question_id": n, "image_id": n // 5}
        questions.append(common | {"question": "Which colour is the bicycle?"})
        told = {"question_type": "what", "answer_type": "other", "multiple_choice_answer": "red"}
        annotations.append(common | told | {"answers": answers})
    path.write_text(json.dumps({"data_subtype": "val2014", "questions": questions}))
    beside = path.with_name(path.name.replace("questions", "annotations"))
    beside.write_text(json.dumps({"annotations": annotations}))


def _picture() -> bytes:
    """Bytes as many as a small JPEG has; readers look at the first of them only."""
    return b"\xff\xd8\xff\xe0" + bytes(range(256)) * 32


def _tar(path: Path, num: int) -> None:
    with tarfile.open(path, "w") as archive:
        for number in range(num):
            text = caption(number).encode()
            for ending, data in (("jpg", _picture()), ("txt", text)):
                member = tarfile.TarInfo(f"{number:09d}.{ending}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
                archive.members = []  # type: ignore[attr-defined]


def _parquet(path: Path, num: int) -> None:
    import pyarrow
    import pyarrow.parquet

    writer = None
    for start in range(0, num, 1000):
        numbers = range(start, min(start + 1000, num))
        table = pyarrow.table(
            {
                "id": [str(n) for n in numbers],
                "image": [{"bytes": _picture(), "path": f"{n}.jpg"} for n in numbers],
                "conversations": [conversation(n) for n in numbers],
                "width": [640 for _ in numbers],
            }
        )
        writer = writer or pyarrow.parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


FORMATS: dict[str, tuple[str, Callable[[Path, int], None]]] = {
    "llava array": ("a.json", lambda p, n: _array(p, map(llava, range(n)))),
    "llava lines": ("a.jsonl", lambda p, n: _lines(p, map(llava, range(n)))),
    "messages lines": (
        "m.jsonl",
        lambda p, n: _lines(p, ({"id": i, "messages": messages(i)} for i in range(n))),
    ),
    "captions csv": ("c.csv", lambda p, n: _cells(p, ",", n)),
    "captions tsv": ("c.tsv", lambda p, n: _cells(p, "\t", n)),
    "captions coco": ("coco.json", _coco),
    "captions karpathy": ("karpathy.json", lambda p, n: _array(p, map(pair, range(n)))),
    "vqa pair": ("v2_questions.json", _vqa),
    "tar": ("t.tar", lambda p, n: _tar(p, n // 10 or 1)),
    "parquet": ("p.parquet", lambda p, n: _parquet(p, n // 10 or 1)),
}
"""Name -> (file, what writes it). Shards hold a tenth of the rows, as they hold pictures, too."""


def measured(path: Path, checkout: Path) -> dict[str, float]:
    """One run over a file by the package of a checkout: rows, rows a second, peak memory."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", _PROBE, str(path)],
        env=environment,
        cwd=checkout,
        check=True,
        capture_output=True,
        text=True,
    )
    found = json.loads(run.stdout)
    if found["bad"]:
        raise SystemExit(f"{path.name}: {found['bad']} rows were rejected by {checkout}")
    return {
        "rows": found["good"],
        "rows_a_second": found["good"] / found["seconds"],
        "peak_mib": found["mib"],
    }


def compared(path: Path, checkouts: list[Path], repeats: int) -> dict[str, Any]:
    """Runs in turn, each repeat beginning with another checkout; medians, and median ratios."""
    runs: list[list[dict[str, float]]] = [[] for _ in checkouts]
    for repeat in range(repeats):
        for step in range(len(checkouts)):
            which = (repeat + step) % len(checkouts)
            runs[which].append(measured(path, checkouts[which]))
    names = ("rows_a_second", "peak_mib")
    result: dict[str, Any] = {"rows": runs[0][0]["rows"]}
    result |= {name: statistics.median(run[name] for run in runs[0]) for name in names}
    if len(checkouts) > 1:
        result["against"] = {name: statistics.median(r[name] for r in runs[1]) for name in names}
        for name in names:
            ratios = [
                here[name] / max(there[name], 0.1)
                for here, there in zip(runs[0], runs[1], strict=True)
            ]
            result[f"{name}_ratio"] = statistics.median(ratios)
    return result


def main() -> None:
    """Write the files, read them, print the table or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--num", type=int, default=200_000, help="rows of each data file")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--against", type=Path, help="another checkout of this repository")
    parser.add_argument("--only", nargs="*", choices=list(FORMATS), help="these formats only")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    checkouts = [ROOT] + ([arguments.against.resolve()] if arguments.against else [])
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.only or FORMATS:
            file, write = FORMATS[name]
            path = Path(folder, name.replace(" ", "_"), file)
            path.parent.mkdir()
            write(path, arguments.num)
            found[name] = compared(path, checkouts, arguments.repeats)
            path.unlink()
            if not arguments.json:
                print(f"{name:18} {_shown(found[name])}", flush=True)
    if arguments.json:
        about = {"python": platform.python_version(), "repeats": arguments.repeats}
        print(json.dumps(about | {"num": arguments.num, "formats": found}, indent=1))


def _shown(result: dict[str, Any]) -> str:
    text = f"{result['rows_a_second']:10,.0f} rows/s {result['peak_mib']:8.1f} MiB"
    if "against" in result:
        text += f"   speed x {result['rows_a_second_ratio']:.2f}, memory x "
        text += f"{result['peak_mib_ratio']:.2f}"
    return text


if __name__ == "__main__":
    main()
