"""`check` counts what is there; `fix` keeps the good rows and the bad ones apart."""

from __future__ import annotations

import json
import tarfile

import pytest
from rich.console import Console

from diptych.data import format as formats
from diptych.data.checking.check import check
from diptych.errors import DataError
from tests.e2e.faulty_inputs import (
    annotation,
    coco,
    folder_with_picture,
    json_lines,
    parquet,
    png,
    question,
    raw_file,
    row,
    talk,
    tar,
    vqa,
)


def test_report(tmp_path):
    folder_with_picture(tmp_path)
    (tmp_path / "copy.png").write_bytes(png())
    (tmp_path / "wide.png").write_bytes(png(100, 10))
    rows = [
        row(0),
        row(1, image="copy.png", conversations=row(0)["conversations"]),
        row(2, image="wide.png"),
        row(3, image="../climbs.png"),
        row(4, image=None, conversations=talk("Hi", "Ho")),
        "broken",
    ]
    report = check(
        str(json_lines(tmp_path, rows)), measure=lambda s: (20, len(s.answer)), progress=False
    )
    values = json.loads(json.dumps(report.to_dict()))
    assert (values["rows"], values["samples"], values["images"]) == (6, 4, 3)
    assert (values["distinct_images"], values["text_only"]) == (2, 1)
    assert values["width"] == {"min": 24, "median": 24, "p95": 100, "max": 100}
    assert values["tokens"]["max"] == 20
    assert values["supervised_tokens"] == len("Answer 0.") * 2 + len("Answer 2.") + 2
    assert values["duplicate_images"] == 1 and values["duplicate_samples"] == 1
    assert values["duplicate_image_examples"] == [["good.png", "copy.png"]]
    places = {r["where"].rsplit(":")[-1]: r["error"] for r in values["rejects"]}
    assert places == {"4": "UnsafePath", "6": "FormatError"}
    console = Console(record=True, width=200, file=open("/dev/null", "w"))
    console.print(report.table())
    text = console.export_text()
    assert "UnsafePath" in text and "data.jsonl:6" in text and "climbs" in text


def fixed(path, out, **options):
    report = check(str(path), progress=False, **options)
    ledger = report.fix(str(out))
    again = check(str(out), images=str(path.parent), format=options.get("format"), progress=False)
    assert again.ledger.num_rejected == 0
    assert again.num_samples == report.num_samples == ledger.num_used
    rejects = out.with_name(out.name + ".rejects.jsonl")
    lines = rejects.read_text().splitlines() if rejects.exists() else []
    assert len(lines) == len(report.rejects)
    return [json.loads(line) for line in lines]


def test_fix_of_rows(tmp_path):
    folder_with_picture(tmp_path)
    rows = [row(0), row(1, image="gone.png"), "broken", row(0), row(4)]
    kept = fixed(json_lines(tmp_path, rows), tmp_path / "out.jsonl")
    assert [r["error"] for r in kept] == ["MissingImage", "FormatError"]
    assert json.loads(kept[0]["row"]) == rows[1] and kept[1]["row"] == "broken"
    good = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert good == [rows[0], rows[0], rows[4]]


def test_fix_of_rows_on_one_line(tmp_path):
    folder_with_picture(tmp_path)
    rows = [row(0), row(1, image="gone.png"), row(2)]
    fixed(raw_file(tmp_path, json.dumps(rows), "data.json"), tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == [rows[0], rows[2]]


def test_fix_of_other_formats(tmp_path):
    folder_with_picture(tmp_path)
    images = [{"id": 1, "file_name": "good.png"}]
    captions = [{"id": n, "image_id": 1 + n // 2, "caption": "A"} for n in range(3)]
    fixed(coco(tmp_path, images, captions), tmp_path / "out.json")
    assert formats.detect(str(tmp_path / "out.json")) == "captions"
    table = raw_file(tmp_path, "image,caption\ngood.png,A\ngone.png,B\n", "rows.csv")
    fixed(table, tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "caption,image\nA,good.png\n"
    questions = vqa(tmp_path, [question(1), question(2)], [annotation(1)])
    fixed(questions, tmp_path / "out_questions.json")


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_fix_of_shards(tmp_path, kind):
    data = [png(), b"no picture", png(3, 3), b""]
    if kind == "tar":
        members = [("../x.png", png())]
        for number, picture in enumerate(data):
            members += [(f"{number}.png", picture), (f"{number}.txt", b"A")]
        path, out = tar(tmp_path, members), tmp_path / "out.tar"
    else:
        path = parquet(tmp_path, {"image": data, "caption": list("ABCD")})
        out = tmp_path / "out.parquet"
    fixed(path, out)
    if kind == "tar":
        with tarfile.open(out) as archive:
            assert archive.getnames() == ["0.png", "0.txt", "2.png", "2.txt"]


def test_data_that_changed_is_not_fixed_in_silence(tmp_path):
    folder_with_picture(tmp_path)
    path = json_lines(tmp_path, [row(0), row(1)])
    report = check(str(path), progress=False)
    json_lines(tmp_path, [row(0)])
    with pytest.raises(DataError, match="changed"):
        report.fix(str(tmp_path / "out.jsonl"))
