"""Thumbnails for the page: hostile image files in, small data URIs out.

Only raster formats are opened, the pixel count is checked before anything is decoded, and the
bytes that reach the page were encoded here, never taken over from the file.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_SIDE_PIXELS = 256
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
    try:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            return Thumbnail(fault="the path leaves the image folder")
        if not path.is_file():
            return Thumbnail(fault="the picture is missing")
        if path.stat().st_size > MAX_FILE_BYTES:
            return Thumbnail(fault="the file is too large")
    except (OSError, ValueError):
        return Thumbnail(fault="the path cannot be used")
    try:
        with Image.open(path, formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                return Thumbnail(fault="the picture has too many pixels")
            # JPEG decodes straight to a smaller size; other formats ignore it.
            picture.draft("RGB", (2 * MAX_SIDE_PIXELS, 2 * MAX_SIDE_PIXELS))
            small = _on_white(ImageOps.exif_transpose(picture))
    except Image.DecompressionBombError:
        return Thumbnail(fault="the picture has too many pixels")
    except Exception as error:
        # Decoders raise almost anything on crafted bytes; the page names it instead of failing.
        return Thumbnail(fault=f"the picture cannot be read ({type(error).__name__})")
    small.thumbnail((MAX_SIDE_PIXELS, MAX_SIDE_PIXELS), Image.Resampling.LANCZOS)
    mime, data = _encode(small)
    uri = f"data:{mime};base64,{base64.b64encode(data).decode()}"
    return Thumbnail(uri, small.width, small.height)


def _on_white(picture: Image.Image) -> Image.Image:
    """RGB; transparency on white, 16-bit greys scaled to 8 bits instead of clipped."""
    if picture.mode.startswith("I"):
        picture = picture.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture = Image.new("RGBA", layer.size, "white")
        picture.alpha_composite(layer)
    return picture.convert("RGB")


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
