"""The picture corpus: fetching, drawing, near-duplicates, split, rows."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from diptych.errors import ConfigError, DataError
from diptych.synthetic.pictures import collection as collections
from diptych.synthetic.pictures import corpus, emoji_names, make
from diptych.synthetic.pictures.alike import Groups, near_duplicates, signature
from diptych.synthetic.pictures.collection import Entry, caption, spoken
from diptych.synthetic.pictures.drawing import draw
from diptych.synthetic.pictures.fetch import Package, unpacked

SVG = '<svg xmlns="http://www.w3.org/2000/svg" {}>{}</svg>'
CIRCLE = '<circle cx="50" cy="50" r="{}" fill="{}"/>'
BOX = 'viewBox="0 0 100 100"'


def entry(name: str, picture: bytes | str, concept: str | None = None, **more) -> Entry:
    values = {
        "id": f"fake/{name.replace(' ', '-')}", "concept": concept or name, "name": name,
        "captions": {"en": caption(name, ["thing"])}, "category": "things", "licence": "CC0-1.0",
        "source": f"fake 1: {name}", "picture": picture,
    }  # fmt: skip
    return Entry(**{**values, **more})


def shape(seed: int) -> str:
    """A drawing unlike those of other seeds."""
    rng = np.random.default_rng(seed)
    marks = "".join(
        f'<rect x="{x}" y="{y}" width="{w}" height="{h}" fill="rgb({r},{g},{b})"/>'
        for x, y, w, h, r, g, b in rng.integers(5, 90, (6, 7))
    )
    return SVG.format(BOX, marks)


# -- fetching -------------------------------------------------------------------------------


def wheel(folder: Path, name: str, version: str, files: dict[str, bytes]) -> str:
    """A wheel that pip can download from a folder; its SHA-256."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    meta = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in {**files, **meta}.items():
            archive.writestr(member, data)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index that is a folder."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_a_package_is_fetched_verified_and_kept(index, tmp_path):
    files = {"pics/a.svg": b"<svg/>", "pics/b.txt": b"no", "code.py": b"raise SystemExit"}
    digest = wheel(index, "pics", "1.0", files)
    package = Package("pip", "pics", "1.0", digest, lambda name: name.endswith(".svg"))
    folder = unpacked(package, tmp_path / "cache")
    assert [p.name for p in folder.rglob("*") if p.is_file()] == ["a.svg"]
    (index / "pics-1.0-py3-none-any.whl").unlink()
    assert unpacked(package, tmp_path / "cache") == folder  # no index is asked again


def test_another_file_than_expected_is_refused(index, tmp_path):
    wheel(index, "pics", "1.0", {"a.svg": b"<svg/>"})
    package = Package("pip", "pics", "1.0", "0" * 64, lambda name: True)
    with pytest.raises(DataError, match="SHA-256"):
        unpacked(package, tmp_path / "cache")
    assert not [p for p in (tmp_path / "cache").iterdir()]


def test_a_package_that_cannot_be_had_is_named(index, tmp_path):
    package = Package("pip", "absent", "1.0", "0" * 64, lambda name: True)
    with pytest.raises(DataError, match="has no absent") as caught:
        unpacked(package, tmp_path / "cache")
    assert "absent 1.0 (pip)" in str(caught.value)
    tool = Package("npm", "x", "1", "0" * 64, lambda name: True)
    path = os.environ["PATH"]
    os.environ["PATH"] = ""
    try:
        with pytest.raises(DataError, match="not installed"):
            unpacked(tool, tmp_path / "cache")
    finally:
        os.environ["PATH"] = path


def test_members_that_climb_out_are_refused(index, tmp_path):
    digest = wheel(index, "evil", "1.0", {"../../escaped.svg": b"<svg/>"})
    package = Package("pip", "evil", "1.0", digest, lambda name: True)
    with pytest.raises(DataError, match="climbs out"):
        unpacked(package, tmp_path / "cache")
    assert not (tmp_path / "escaped.svg").exists()


def test_a_deb_is_read(tmp_path, monkeypatch):
    """ar archive with data.tar.xz, as dpkg-deb writes it."""
    from diptych.synthetic.pictures import fetch

    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:xz") as tar:
        for name, data in (("./usr/share/a.svg", b"<svg/>"), ("./usr/share/b.txt", b"no")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    parts = (
        ("debian-binary", b"2.0\n"),
        ("control.tar.xz", b"odd"),
        ("data.tar.xz", inner.getvalue()),
    )
    deb = b"!<arch>\n"
    for name, data in parts:
        deb += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}".encode() + b"`\n" + data
        deb += b"\n" * (len(data) % 2)
    file = tmp_path / "x.deb"
    file.write_bytes(deb)
    monkeypatch.setattr(fetch, "_download", lambda package, folder: file)
    digest = hashlib.sha256(deb).hexdigest()
    package = Package("apt", "x", "1", digest, lambda name: name.endswith(".svg"))
    folder = unpacked(package, tmp_path / "cache")
    assert (folder / "usr/share/a.svg").read_bytes() == b"<svg/>"
    assert not (folder / "usr/share/b.txt").exists()


# -- drawing --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "opening", [BOX, 'width="100" height="100"', 'width="210mm" height="297mm"', ""]
)
def test_what_is_drawn_fills_the_square(opening):
    png = draw(SVG.format(opening, CIRCLE.format(10, "red")), 64, "x")
    shown = np.asarray(Pillow.open(io.BytesIO(png)))
    assert shown.shape == (64, 64, 3)
    red = (shown[..., 0] > 200) & (shown[..., 1] < 60)
    rows, columns = np.nonzero(red)
    assert rows.min() <= 4 and rows.max() >= 59 and columns.min() <= 4 and columns.max() >= 59
    assert (shown[0, 0] == 255).all()


def test_what_shows_nothing_is_refused():
    for picture, says in (
        (SVG.format(BOX, ""), "nothing is drawn"),
        ("no drawing", "no SVG"),
        (SVG.format(BOX, "<rect"), "cannot be drawn"),
        (SVG.format(BOX, '<rect width="100" height="100" fill="blue"/>'), "one colour"),
        (b"not a picture", "image|picture"),
    ):
        with pytest.raises(DataError, match=says):
            draw(picture, 64, "x")


def test_a_drawing_that_kills_its_renderer_is_rejected_and_its_neighbours_are_drawn(monkeypatch):
    real = corpus._draw_one

    def fatal(found, size):
        if found.name == "bomb":
            os._exit(1)  # what an aborting renderer does to its process
        return real(found, size)

    monkeypatch.setattr(corpus, "_draw_one", fatal)
    entries = [entry(f"thing {i}", shape(i)) for i in range(5)]
    entries.insert(2, entry("bomb", shape(9)))
    drawn = list(corpus._drawn(entries, 32, 1))
    assert [png is not None for png, _ in drawn] == [True, True, False, True, True, True]
    assert drawn[2] == (None, "the renderer gave up")


# -- alike ----------------------------------------------------------------------------------


def test_near_duplicates_and_others():
    pictures = [draw(shape(i), 128, "x") for i in range(12)]
    again = draw(shape(3).replace("<rect", '<rect opacity="0.97"', 1), 128, "x")
    pairs = near_duplicates([signature(p) for p in [*pictures, again]])
    assert pairs == [(3, 12)]


def test_same_outline_in_other_colours_is_not_alike():
    flags = [
        draw(SVG.format(BOX, f'<rect width="100" height="30" fill="{a}"/>'
                        f'<rect y="30" width="100" height="30" fill="{b}"/>'), 64, "x")
        for a, b in (("#222", "#e22"), ("#228", "#ee2"))
    ]  # fmt: skip
    assert near_duplicates([signature(f) for f in flags]) == []


def test_groups_join_over_several_ways():
    groups = Groups(6)
    groups.join(0, 1)
    groups.join_equal(["a", None, "a", "b", None, "b"])
    groups.join(5, 1)
    assert groups.lists() == [[0, 1, 2, 3, 5], [4]]


# -- the corpus -----------------------------------------------------------------------------


@pytest.fixture
def fake(monkeypatch):
    """A collection of forty drawings: some of one concept, two copies, one that cannot be drawn."""
    found = [entry(f"thing {chr(97 + i // 26)}{chr(97 + i % 26)}", shape(i)) for i in range(40)]
    found.append(entry("thing aa again", shape(500), concept="thing aa"))
    found.append(entry("copy", shape(5)))
    found.append(entry("broken", "no drawing"))
    found.append(entry("stumm", shape(600), captions={"de": "stumm"}))

    class Part:
        PACKAGES = ()

        @staticmethod
        def entries(folders):
            return iter(found)

    monkeypatch.setattr(collections, "find", lambda name: Part)
    return found


def rows(folder: Path, split: str) -> list[dict]:
    return [json.loads(t) for t in (folder / f"{split}.jsonl").read_text("utf-8").splitlines()]


def test_the_split_keeps_what_is_alike_together(fake, tmp_path):
    out = tmp_path / "out"
    summary = make(out, names=["fake"], num_test=6, num_validation=4, size_pixels=48, workers=1)
    splits = {s: rows(out, s) for s in ("train", "validation", "test")}
    assert [len(splits[s]) for s in splits] == [summary["pairs"][s] for s in splits]
    assert len(splits["test"]) == 6 and len(splits["validation"]) == 4
    side = {r["image_id"]: s for s, found in splits.items() for r in found}
    groups = [("fake/thing-aa", "fake/thing-aa-again"), ("fake/thing-af", "fake/copy")]
    for a, b in groups:
        assert side.get(a) == side.get(b) == "train" or (a in side) != (b in side)
    concepts = {s: {r["concept"] for r in found} for s, found in splits.items()}
    assert not concepts["train"] & concepts["test"]
    assert len({r["caption"] for r in splits["test"]}) == 6
    rejected = {r["id"]: r["reason"] for r in rows(out, "rejects")}
    assert rejected == {
        "fake/broken": "the file is no SVG",
        "fake/stumm": "no caption in these languages",
    }
    # Every drawing is somewhere: in a split, rejected, or left out as alike.
    assert len(side) + len(rejected) + summary["left_out_as_alike"] == len(fake)


def test_rows_carry_licence_and_source_and_are_read(fake, tmp_path):
    from diptych.data.source import rows as read

    out = tmp_path / "out"
    make(out, names=["fake"], num_test=5, num_validation=0, size_pixels=48, workers=1,
         languages=("en", "de"))  # fmt: skip
    samples = list(read(str(out / "train.jsonl"), None, None))
    sample = next(s for s in samples if s.id.endswith("/de") or "thing" in s.id)
    assert sample.meta["licence"] == "CC0-1.0" and sample.meta["source"].startswith("fake 1: ")
    assert {s.meta["language"] for s in samples} | {"de"} == {"en", "de"}
    assert all((out / i.path).is_file() for s in samples for i in s.images())


def test_same_arguments_same_bytes(fake, tmp_path):
    contents = []
    for name, workers in (("a", 1), ("b", 2)):
        make(tmp_path / name, names=["fake"], num_test=5, size_pixels=32, workers=workers,
             num_validation=2)  # fmt: skip
        files = sorted(p for p in (tmp_path / name).rglob("*") if p.is_file())
        contents.append({str(p.relative_to(tmp_path / name)): p.read_bytes() for p in files})
    assert contents[0] == contents[1]


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"num_test": 100}, DataError, "too few"),
        ({"size_pixels": 8}, ConfigError, "pixels"),
        ({"languages": ()}, ConfigError, "language"),
        ({"num_test": 0}, ConfigError, "test picture"),
    ],
)
def test_what_cannot_be_made_is_named(fake, arguments, error, says, tmp_path):
    with pytest.raises(error, match=says):
        make(tmp_path / "out", names=["fake"], workers=1, **{"num_validation": 0, **arguments})
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_not_touched(fake, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        make(tmp_path, names=["fake"])


# -- collections ----------------------------------------------------------------------------


def test_names_and_keywords():
    assert caption("red apple", ["apple", "fruit", "Red", "fruit"]) == "red apple: fruit"
    assert spoken("red_apple_02") == "red apple"
    assert spoken("star 05pt02step") == "star 05pt02step"
    assert emoji_names.key("1F44B-1F3FD") is None
    assert emoji_names.key("2764-FE0F") == "2764"


def test_clip_art_is_told_by_its_own_metadata(tmp_path):
    from diptych.synthetic.pictures.collections import clipart

    root = tmp_path / "usr/share/openclipart/svg/animals/mammals"
    root.mkdir(parents=True)
    work = (
        '<cc:Work rdf:about=""><dc:title>{}</dc:title><dc:creator><cc:Agent>'
        "<dc:title>Jean Doe</dc:title></cc:Agent></dc:creator><dc:subject><rdf:Bag>"
        "<rdf:li>animal</rdf:li><rdf:li>hash</rdf:li><rdf:li>0xa1</rdf:li><rdf:li>jean doe</rdf:li><rdf:li>pet</rdf:li></rdf:Bag></dc:subject></cc:Work>"
    )
    titles = ["Sleeping_cat_02", *["Zoo Series"] * (clipart.MAX_SHARED + 1)]
    for number, title in enumerate(titles):
        name = "cat" if number == 0 else f"lion_jean_doe_{number:02d}"
        (root / f"{name}.svg").write_text(SVG.format(BOX, work.format(title)))
    (root / "bad.svg").write_text(SVG.format(BOX, "<cc:Work><dc:title>x</cc:Work>"))
    found = list(clipart.entries([tmp_path]))
    assert found[0].captions["en"] == "Sleeping cat: animal, pet, mammals, animals"
    assert (found[0].author, found[0].category) == ("Jean Doe", "animals")
    assert {e.name for e in found[1:]} == {"lion"}


def test_stamps_speak_many_languages(tmp_path):
    from diptych.synthetic.pictures.collections import stamps

    root = tmp_path / "usr/share/tuxpaint/stamps/food"
    root.mkdir(parents=True)
    (root / "egg.svg").write_text("<svg/>")
    (root / "egg.txt").write_text("An egg.\nde.utf8=Ein Ei.\npt_br.utf8=Um ovo.\nzh_cn.utf8=\n")
    (root / "alone.txt").write_text("No picture.")
    (only,) = stamps.entries([tmp_path])
    assert only.captions == {"en": "An egg.", "de": "Ein Ei.", "pt-br": "Um ovo."}


@pytest.mark.parametrize("name", collections.names())
def test_every_collection_names_its_packages(name):
    part = collections.find(name)
    assert part.PACKAGES
    for package in part.PACKAGES:
        assert package.tool in ("pip", "npm", "apt") and len(package.sha256) == 64


def test_the_command_explains_itself():
    command = [sys.executable, "-m", "diptych", "data", "pictures", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "licence" in done.stdout
