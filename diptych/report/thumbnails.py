"""Thumbnails for the page: hostile image files in, small data URIs out.

Pictures are decoded as models see them (`data/pixels/image.py`), and the bytes that reach the
page were encoded here, never taken over from the file.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from diptych.data.pixels.image import decode
from diptych.errors import ImageError, ImageTooLarge

MAX_SIDE_PIXELS = 256
TILE_PIXELS = 64
MAX_PIXELS = 50_000_000
MAX_FILE_BYTES = 64_000_000
# 120 pictures of this size, in base64, stay under 3.3 MB.
TARGET_BYTES = 20_000


@dataclass(frozen=True)
class Thumbnail:
    """A picture for the page, or the reason why there is none.

    Attributes:
        uri: `data:` URI; empty when the picture cannot be shown.
        width, height: of the thumbnail, in pixels.
        fault: one line; empty when there is a picture.
    """

    uri: str = ""
    width: int = 0
    height: int = 0
    fault: str = ""


def thumbnail(folder: Path, name: str) -> Thumbnail:
    """The picture `name` inside `folder`, at most MAX_SIDE_PIXELS a side.

    Never raises for what a file holds: the fault is in the result, and the page shows it.
    """
    small, fault = _opened(folder, name)
    if small is None:
        return Thumbnail(fault=fault)
    small.thumbnail((MAX_SIDE_PIXELS, MAX_SIDE_PIXELS), Image.Resampling.LANCZOS)
    mime, data = _encode(small)
    uri = f"data:{mime};base64,{base64.b64encode(data).decode()}"
    return Thumbnail(uri, small.width, small.height)


def sprite(pictures: Sequence[tuple[str, str]], columns: int) -> str:
    """Many pictures (folder, name) as one `data:` URI, TILE_PIXELS a side, row by row.

    A picture that cannot be shown is a grey tile.
    """
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * TILE_PIXELS, max(1, rows) * TILE_PIXELS), "white")
    for number, (folder, name) in enumerate(pictures):
        small, _ = _opened(Path(folder), name) if folder and name else (None, "")
        if small is None:
            small = Image.new("RGB", (TILE_PIXELS, TILE_PIXELS), "lightgrey")
        small.thumbnail((TILE_PIXELS, TILE_PIXELS), Image.Resampling.BILINEAR)
        row, column = divmod(number, columns)
        corner = (TILE_PIXELS - small.width) // 2, (TILE_PIXELS - small.height) // 2
        sheet.paste(small, (column * TILE_PIXELS + corner[0], row * TILE_PIXELS + corner[1]))
    data = _save(sheet, format="WEBP", quality=60, method=4)
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}"


def _opened(folder: Path, name: str) -> tuple[Image.Image | None, str]:
    """The picture in RGB, or why there is none; it may be a good deal larger than needed."""
    try:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            return None, "the path leaves the image folder"
        if not path.is_file():
            return None, "the picture is missing"
        if path.stat().st_size > MAX_FILE_BYTES:
            return None, "the file is too large"
    except (OSError, ValueError):
        return None, "the path cannot be used"
    try:
        enough = (2 * MAX_SIDE_PIXELS, 2 * MAX_SIDE_PIXELS)
        return decode(path.read_bytes(), max_pixels=MAX_PIXELS, enough=enough), ""
    except ImageTooLarge:
        return None, "the picture has too many pixels"
    except (OSError, ImageError) as error:
        return None, f"the picture cannot be read ({type(error).__name__})"


def _encode(picture: Image.Image) -> tuple[str, bytes]:
    """PNG when it is small enough (drawings stay sharp), else JPEG at the quality that fits."""
    data = _save(picture, format="PNG", optimize=True)
    if len(data) <= TARGET_BYTES:
        return "image/png", data
    for quality in (88, 75, 60, 40, 20):
        data = _save(picture, format="JPEG", quality=quality, optimize=True)
        if len(data) <= TARGET_BYTES:
            break
    return "image/jpeg", data


def _save(picture: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, **options)  # type: ignore[arg-type]
    return buffer.getvalue()
