"""Thumbnails: small, safe and right, whatever the file holds."""

from __future__ import annotations

import base64
import io
import random
import struct
import zlib

import pytest
from PIL import Image

from diptych.report import thumbnails
from diptych.report.thumbnails import thumbnail


def decoded(result) -> Image.Image:
    assert result.fault == ""
    return Image.open(io.BytesIO(base64.b64decode(result.uri.split(",", 1)[1])))


def test_large_pictures_shrink_and_keep_their_shape(tmp_path):
    Image.new("RGB", (1024, 512), "#336699").save(tmp_path / "a.png")
    result = thumbnail(tmp_path, "a.png")
    assert (result.width, result.height) == (256, 128) == decoded(result).size
    assert decoded(result).convert("RGB").getpixel((9, 9)) == (0x33, 0x66, 0x99)


def test_noise_is_squeezed_to_the_budget(tmp_path):
    noise = random.Random(0).randbytes(600 * 600 * 3)
    Image.frombytes("RGB", (600, 600), noise).save(tmp_path / "noise.png")
    result = thumbnail(tmp_path, "noise.png")
    assert len(result.uri) <= thumbnails.TARGET_BYTES * 4 / 3 + 64
    assert decoded(result).format == "JPEG"


def test_modes_load_right(tmp_path):
    Image.new("RGBA", (20, 10), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert decoded(thumbnail(tmp_path, "clear.png")).getpixel((5, 5)) == (255, 255, 255)
    Image.new("I;16", (20, 10), 0x8000).save(tmp_path / "deep.png")
    assert decoded(thumbnail(tmp_path, "deep.png")).getpixel((5, 5)) == (128, 128, 128)
    Image.new("CMYK", (20, 10), (0, 0, 0, 0)).save(tmp_path / "print.jpg")
    assert decoded(thumbnail(tmp_path, "print.jpg")).getpixel((5, 5)) == (255, 255, 255)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10)).save(tmp_path / "turned.jpg", exif=exif)
    assert decoded(thumbnail(tmp_path, "turned.jpg")).size == (10, 20)


@pytest.mark.parametrize("name", ["../secret.png", "link.png", "/etc/passwd", "a\x00b.png"])
def test_nothing_outside_the_folder_is_read(tmp_path, name):
    inside = tmp_path / "images"
    inside.mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    result = thumbnail(inside, name)
    assert result.uri == "" and "path" in result.fault


def test_bombs_are_refused_before_they_are_decoded(tmp_path):
    header = struct.pack(">IIBBBBB", 8000, 8000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    data += struct.pack(">I", zlib.crc32(chunk)) + struct.pack(">I", 4) + b"IDAT" + bytes(8)
    (tmp_path / "bomb.png").write_bytes(data)
    assert "too many pixels" in thumbnail(tmp_path, "bomb.png").fault
    (tmp_path / "huge.png").write_bytes(data.replace(header, struct.pack(">II", 60000, 60000)))
    assert thumbnail(tmp_path, "huge.png").uri == ""


@pytest.mark.parametrize("data", [b"", b"hello", b"\xff\xd8\xff\xe0", b"<svg onload='alert(1)'/>"])
def test_what_is_no_picture_has_a_reason(tmp_path, data):
    (tmp_path / "x.png").write_bytes(data)
    result = thumbnail(tmp_path, "x.png")
    assert result.uri == "" and result.fault


def test_missing_and_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    assert "missing" in thumbnail(tmp_path, "no.png").fault
    assert thumbnail(tmp_path, "folder").fault
