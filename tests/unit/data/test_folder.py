"""Folders of pictures: told by content, and nothing passed over in silence."""

from __future__ import annotations

import os

import pytest

from diptych.data.pixels.image import decode
from diptych.data.reading import folder
from diptych.data.reading.magic import HEAD_BYTES, is_picture
from diptych.data.reading.rows import Reject
from diptych.data.source import is_pictures_alone, locate, rows
from diptych.errors import DataError
from tests.e2e.faulty_inputs import encoded, noise


def write(root, files):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def picture(kind="JPEG"):
    return encoded(noise(8, 8), kind)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"])
def test_every_kind_that_is_decoded_is_known_by_its_first_bytes(kind):
    data = picture(kind)
    assert decode(data).size == (8, 8) and is_picture(data[:HEAD_BYTES])
    grey = encoded(noise(8, 8).convert("L"), kind)
    assert is_picture(grey[:HEAD_BYTES])


@pytest.mark.parametrize(
    "data",
    [b"", b"BMW and others, a list", b"P1 is the plan", b"II", b"<svg/>", b"RIFF....WAVE", b"GIF"],
)
def test_what_only_begins_alike_is_none(data):
    assert not is_picture(data)


def test_a_folder_of_pairs_is_told_by_content(tmp_path):
    write(tmp_path, {
        "one.jfif": picture(), "one.txt": "one", "TWO.JPG": picture(), "TWO.txt": "two",
        "three.avif": picture("AVIF"), "three.txt": "three", "4f2a9c": picture("PNG"),
        "4f2a9c.txt": "four", "five.jpg_large": picture(), "five.txt": "five",
        "IMG.1": picture(), "IMG.1.txt": "six", "IMG.2": picture("PNG"), "IMG.2.txt": "seven",
        "deep/8.webp": picture("WEBP"), "deep/8.TXT": "eight",
        "lone.jfif": picture(), "lone": picture("PNG"), "gone.txt": "no picture",
        "README.md": "#", "notes.csv.bak": "x", ".DS_Store": "x", "deep/.x/y.png": picture("PNG"),
    })  # fmt: skip
    source = locate(str(tmp_path))
    assert source.paths == (str(tmp_path),) and source.format == "captions"
    found = list(source.rows())
    good = {s.id: (s.answer, next(s.images()).path) for s in found if not isinstance(s, Reject)}
    assert good == {
        "one": ("one", "one.jfif"), "TWO": ("two", "TWO.JPG"), "three": ("three", "three.avif"),
        "4f2a9c": ("four", "4f2a9c"), "five": ("five", "five.jpg_large"),
        "IMG.1": ("six", "IMG.1"), "IMG.2": ("seven", "IMG.2"), "deep/8": ("eight", "deep/8.webp"),
    }  # fmt: skip
    bad = {r.id: r.message for r in found if isinstance(r, Reject)}
    assert bad.keys() == {"lone", "gone"}
    assert "it cannot be told" in bad["lone"] and "there is no picture" in bad["gone"]
    assert source.passed_over == {".md files": 1, ".bak files": 1, "hidden files": 2}


def test_pictures_alone_whatever_lies_beside_them(tmp_path):
    write(tmp_path, {"4f2a9c": picture("PNG"), "deep/b.jpg_large": picture()})
    assert is_pictures_alone(str(tmp_path))
    write(tmp_path, {"LICENSE.txt": "free", "info.json": "{}", "labels.csv": "file,label\na,b\n"})
    write(tmp_path, {"broken.json": "{", "README.md": "#"})
    assert is_pictures_alone(str(tmp_path))
    source = locate(str(tmp_path), "pictures")
    assert [s.id for s in source.rows()] == ["4f2a9c", os.path.join("deep", "b.jpg_large")]
    assert source.passed_over == {
        ".csv files": 1, ".json files": 2, ".md files": 1, ".txt files": 1,
    }  # fmt: skip
    write(tmp_path, {"deep/b.txt": "a caption"})
    assert not is_pictures_alone(str(tmp_path))
    (tmp_path / "deep/b.txt").unlink()
    write(tmp_path, {"train.json": '[{"image": "4f2a9c", "caption": "a"}]'})
    assert not is_pictures_alone(str(tmp_path)), "rows that name pictures are the data"


def test_a_folder_of_pairs_may_have_other_files_beside_them(tmp_path):
    """As img2dataset writes them: a picture, its text, and what else is known of it."""
    for n in range(3):
        write(tmp_path, {f"{n}.jpg": picture(), f"{n}.txt": f"text {n}"})
        write(tmp_path, {f"{n}.json": f'{{"caption": "text {n}", "image": "{n}.jpg"}}'})
    write(tmp_path, {"info.json": '{"camera": "x"}', "README.md": "#"})
    source = locate(str(tmp_path))
    assert [s.answer for s in source.rows()] == ["text 0", "text 1", "text 2"]
    assert source.passed_over == {".json files": 4, ".md files": 1}
    write(tmp_path, {"train.json": '[{"image": "0.jpg", "caption": "a"}]'})
    assert locate(str(tmp_path)).paths == (os.path.join(tmp_path, "train.json"),)


def test_a_text_far_from_its_picture_makes_a_pair(tmp_path):
    write(
        tmp_path,
        {"a.jpg": picture(), "a.b.txt": "of another", "a.c.txt": "of another", "a.txt": "a"},
    )
    assert folder.has_pairs(str(tmp_path))


def test_nothing_but_other_files_is_no_data(tmp_path):
    write(tmp_path, {"README.md": "#", "run.sh": "#!"})
    with pytest.raises(DataError, match="no data"):
        list(rows(str(tmp_path)))
    assert not is_pictures_alone(str(tmp_path))


def test_what_would_hang_or_cannot_be_read_is_passed_over(tmp_path):
    write(tmp_path, {"a.png": picture("PNG"), ".git/a": "", ".git/b": "", "deep/.x/c/d": ""})
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    found = dict(folder.kinds(str(tmp_path)))
    assert found == {
        "a.png": "picture", "pipe": "other", "dangling": "other", ".git": "hidden",
        os.path.join("deep", ".x"): "hidden",
    }  # fmt: skip


def test_a_folder_behind_an_address_is_told_by_content_too():
    import fsspec

    place = fsspec.filesystem("memory")
    place.pipe("/album/4f2a9c", picture("PNG"))
    place.pipe("/album/b.jfif", picture())
    place.pipe("/album/README.md", b"#")
    place.pipe({f"/album/.hidden/{n}": b"#" for n in range(3)})
    try:
        assert is_pictures_alone("memory://album")
        source = locate("memory://album", "pictures")
        assert [s.id for s in source.rows()] == ["4f2a9c", "b.jfif"]
        assert source.passed_over == {".md files": 1, "hidden files": 1}, "a hidden folder once"
    finally:
        place.rm("/album", recursive=True)
