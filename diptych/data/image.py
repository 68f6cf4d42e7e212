"""Pictures: from hostile bytes to RGB.

`decode` trusts nothing: the format must be one of a few, the size is read from the header
before any pixel is, and whatever Pillow raises becomes a named error.
"""

from __future__ import annotations

import io
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from diptych.data.sample import Image
from diptych.errors import (
    EmptyImage,
    ImageError,
    ImageTooLarge,
    MissingImage,
    NotAnImage,
    TruncatedImage,
)

MAX_PIXELS = 89_478_485
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_EXIF_ORIENTATION = 0x0112
_TURNS = {
    2: Pillow.Transpose.FLIP_LEFT_RIGHT,
    3: Pillow.Transpose.ROTATE_180,
    4: Pillow.Transpose.FLIP_TOP_BOTTOM,
    5: Pillow.Transpose.TRANSPOSE,
    6: Pillow.Transpose.ROTATE_270,
    7: Pillow.Transpose.TRANSVERSE,
    8: Pillow.Transpose.ROTATE_90,
}
# `warnings.catch_warnings` changes the process; one thread at a time may do that.
_WARNINGS = threading.Lock()


def given(image: Any) -> Image:
    """What a user shows, a path, bytes or a PIL picture, as a reference with its bytes.

    Raises:
        MissingImage: there is no such file.
    """
    if isinstance(image, Image) and image.data is not None:
        return image
    if isinstance(image, str | Path):
        path = Path(image)
        if not path.is_file():
            raise MissingImage("there is no such picture", where=str(path))
        return Image(str(path), path.read_bytes())
    if isinstance(image, bytes):
        return Image("picture", image)
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="PNG")
    return Image("picture", buffer.getvalue())


def decode(data: bytes, *, where: str = "", max_pixels: int = MAX_PIXELS) -> Pillow.Image:
    """An RGB picture, upright, from encoded bytes.

    CMYK, palette, grey and 16-bit pictures are converted (16 bits are scaled to 8);
    transparency is laid over white; of an animation the first frame is taken; EXIF
    orientation is applied.

    Args:
        where: the picture's name for error messages.
        max_pixels: width times height that is still decoded; the default is Pillow's own
            threshold for a suspected decompression bomb.

    Raises:
        EmptyImage: there are no bytes.
        ImageTooLarge: more pixels than allowed; known before anything is decoded.
        TruncatedImage: the bytes begin like a picture and end too early or are damaged.
        NotAnImage: the bytes are no PNG, JPEG, WebP, GIF, BMP, TIFF or PPM.
    """
    picture, orientation = _open(data, where, max_pixels)
    try:
        picture.load()
        picture = _to_rgb(picture)
    except Exception as error:
        raise TruncatedImage(
            f"the picture is cut off or damaged: {error}",
            where=where,
            fix="fetch the picture again, or drop the row",
        ) from error
    return picture.transpose(_TURNS[orientation]) if orientation in _TURNS else picture


def measure(data: bytes, *, where: str = "", max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(width, height) in pixels from the header alone, after EXIF orientation.

    Raises:
        As `decode`, as far as the header shows it.
    """
    picture, orientation = _open(data, where, max_pixels)
    width, height = picture.size
    return (height, width) if orientation in (5, 6, 7, 8) else (width, height)


def _open(data: bytes, where: str, max_pixels: int) -> tuple[Pillow.Image, int]:
    if not data:
        raise EmptyImage("the picture has no bytes", where=where, fix="fetch the picture again")
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            picture: Pillow.Image = Pillow.open(io.BytesIO(data), formats=FORMATS)
        except Pillow.DecompressionBombError:
            raise too_large("far more", where, max_pixels) from None
        except Exception as error:
            raise _unreadable(data, where, error) from error
        width, height = picture.size
        if width * height > max_pixels:
            raise too_large(f"{width} x {height} =", where, max_pixels, width * height)
        try:
            orientation = picture.getexif().get(_EXIF_ORIENTATION, 1)
        except Exception:  # damaged EXIF says nothing about the pixels: the picture stands as is
            orientation = 1
    return picture, orientation if isinstance(orientation, int) else 1


def too_large(size: str, where: str, max_pixels: int, pixels: int | None = None) -> ImageError:
    exact = f"{size} {pixels:,} pixels" if pixels else f"{size} pixels"
    return ImageTooLarge(
        f"the picture has {exact} and {max_pixels:,} are allowed",
        where=where,
        fix="scale it down, or drop the row; it may be a decompression bomb",
    )


def _unreadable(data: bytes, where: str, error: Exception) -> ImageError:
    if "Decompressed data too large" in str(error):
        return ImageTooLarge(
            f"the picture's embedded text is too large: {error}", where=where, fix="drop the row"
        )
    if data.startswith(_MAGIC) or (data[:4] == b"RIFF" and data[8:12] in (b"WEBP", b"")):
        return TruncatedImage(
            f"the picture's header is cut off or damaged ({len(data):,} bytes)",
            where=where,
            fix="fetch the picture again, or drop the row",
        )
    return NotAnImage(
        f"the {len(data):,} bytes are no picture that can be read (they begin with {data[:8]!r})",
        where=where,
        fix=f"give {', '.join(FORMATS)}; a web page saved under a picture's name is common",
    )


def _to_rgb(picture: Pillow.Image) -> Pillow.Image:
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode.startswith("I") or picture.mode == "F":
        return _grey(picture).convert("RGB")
    if "A" in picture.getbands() or "a" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Pillow.new("RGBA", picture.size, (255, 255, 255, 255))
        return Pillow.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


def _grey(picture: Pillow.Image) -> Pillow.Image:
    """Deep grey values scaled to 8 bits; Pillow alone would clip them to white."""
    values = np.asarray(picture).astype(np.float64)
    top = np.nanmax(values, initial=0.0)
    if picture.mode == "F":
        scale = 255.0 if top <= 1.0 else 1.0
    else:
        scale = 255.0 / (65535.0 if top <= 65535 else 2.0**31 - 1)
    scaled = np.nan_to_num(values * scale).round().clip(0, 255)
    return Pillow.fromarray(scaled.astype(np.uint8))
