"""Pictures: one good row, and one about the picture in question."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from tests.e2e.faults.case import CASES, Case, case
from tests.e2e.faulty_inputs import (
    encoded,
    json_lines,
    noise,
    png,
    png_claiming,
    row,
)


def picture_case(name: str, data: bytes | None, error: str | None, says: str = "") -> None:
    def build(folder: Path) -> Path:
        if data is not None:
            (folder / "odd.img").write_bytes(data)
        return json_lines(folder, [row(1), row(2, image="odd.img")])

    rejects = {error: 1} if error else {}
    CASES.append(Case(name, build, good=1 if error else 2, rejects=rejects, says=says))


jpeg = encoded(noise(), "JPEG", quality=90)
animated = encoded(
    noise(), "GIF", save_all=True, append_images=[noise(seed=1), noise(seed=2)], duration=50
)
exif = Image.Exif()
exif[0x0112] = 6
deep = Image.fromarray((np.arange(64 * 48).reshape(48, 64) * 20).astype(np.uint16))
picture_case("missing picture", None, "MissingImage", "odd.img")
picture_case("empty picture", b"", "EmptyImage")
picture_case("truncated JPEG", jpeg[: len(jpeg) // 2], "TruncatedImage")
picture_case("truncated PNG", encoded(noise(), "PNG")[:2000], "TruncatedImage")
picture_case("header only", png()[:20], "TruncatedImage")
picture_case("truncated WebP", encoded(noise(), "WEBP")[:300], "TruncatedImage")
picture_case("truncated GIF", encoded(noise(), "GIF")[:900], "TruncatedImage")
picture_case("truncated BMP", encoded(noise(), "BMP")[:900], "TruncatedImage")
picture_case("truncated TIFF", encoded(noise(), "TIFF")[:900], "TruncatedImage")
picture_case("web page as picture", b"<!doctype html><html>404</html>", "NotAnImage")
picture_case("text as picture", b"hello", "NotAnImage")
picture_case("SVG", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "NotAnImage")
picture_case("format not allowed", encoded(noise(), "ICO"), "NotAnImage")
picture_case("bomb by header", png_claiming(50_000, 50_000), "ImageTooLarge", "pixels")
picture_case("bomb below Pillow's error", png_claiming(10_000, 10_000), "ImageTooLarge")
picture_case("CMYK", encoded(noise().convert("CMYK"), "JPEG"), None)
picture_case("palette", encoded(noise().quantize(16), "PNG"), None)
picture_case("palette with alpha", encoded(noise().quantize(16), "PNG", transparency=3), None)
picture_case("alpha", encoded(noise().convert("RGBA"), "PNG"), None)
picture_case("grey with alpha", encoded(noise().convert("LA"), "PNG"), None)
picture_case("16 bit", encoded(deep, "PNG"), None)
picture_case("one bit", encoded(noise().convert("1"), "PNG"), None)
picture_case("animated", animated, None)
picture_case("EXIF-rotated", encoded(noise(), "JPEG", exif=exif), None)
picture_case("damaged EXIF", jpeg[:2] + b"\xff\xe1\x00\x0cExif\0\0XXXX" + jpeg[2:], None)
picture_case("1x1", png(1, 1), None)
picture_case("1x4000", png(1, 4000), None)
picture_case("progressive JPEG", encoded(noise(), "JPEG", progressive=True), None)
picture_case("PPM", encoded(noise(), "PPM"), None)


@case("folder instead of picture", good=1, rejects={"NotAnImage": 1}, says="folder")
def _(folder):
    (folder / "odd.img").mkdir()
    return json_lines(folder, [row(1), row(2, image="odd.img")])


@case("named pipe instead of picture", good=1, rejects={"NotAnImage": 1})
def _(folder):
    os.mkfifo(folder / "odd.img")
    return json_lines(folder, [row(1), row(2, image="odd.img")])
