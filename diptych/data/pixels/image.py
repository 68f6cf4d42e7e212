"""Pictures: from hostile bytes to RGB.

`decode` trusts nothing: the format must be one of a few, the size is read from the header
before any pixel is, and whatever Pillow raises becomes a named error. `given` takes what a user
hands over in Python or on the command line, and `decode` then gives the same pixels for a picture
in memory as for its file.
"""

from __future__ import annotations

import io
import threading
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow
from PIL import features

from diptych.data.reading import files, magic
from diptych.data.sample import Image
from diptych.errors import (
    ConfigError,
    DataError,
    EmptyImage,
    ImageError,
    ImageTooLarge,
    MissingImage,
    ModelError,
    NotAnImage,
    TruncatedImage,
)

MAX_PIXELS = 89_478_485
MAX_FETCHED_BYTES = 64 << 20
"""Size of a picture at an address that is still fetched."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
_EXIF_ORIENTATION = 0x0112
# Where Pillow keeps EXIF, and XMP, which it reads an orientation from when EXIF has none.
_EXIF = ("exif", "Raw profile type exif")
_XMP = ("xmp", "XML:com.adobe.xmp")
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
    """What a user hands over, as a reference with its encoded bytes.

    A row's picture never comes this way: addresses are fetched here, and rows cannot name any.

    Args:
        image: a path, an address (`https://...`), encoded bytes, a PIL picture (the frame at which
            it stands), or an `Image` that has its bytes.

    Raises:
        MissingImage: there is no such file, the address does not answer, or the `Image` is a row's
            name without bytes.
        ImageTooLarge: more than MAX_FETCHED_BYTES at the address, or a PIL picture of more than
            MAX_PIXELS.
        TruncatedImage: the file behind a PIL picture ends too early or is damaged.
        MissingExtra: the address needs a package that is not installed.
        ConfigError: it is none of these.
    """
    if isinstance(image, Image):
        if image.data is None:
            raise MissingImage(
                "this is the name of a row's picture, without its bytes",
                where=image.path[:200],
                fix="read them first (Index.image_bytes), or give the path of the file",
            )
        return image
    if isinstance(image, str) and files.is_url(image):
        return Image(image, _fetched(image))
    if isinstance(image, str | Path):
        path = Path(image).expanduser()
        if not path.is_file():
            is_address = str(image).startswith(("http:/", "https:/"))
            raise MissingImage(
                "there is no such picture",
                where=str(image)[:200],
                fix="give an address as text: a Path loses one of its slashes"
                if is_address
                else "check the path; it is taken as written",
            )
        return Image(str(image), path.read_bytes())
    if isinstance(image, bytes | bytearray | memoryview):
        return Image("picture", bytes(image))
    if isinstance(image, Pillow.Image):
        return Image("picture", _encoded(image))
    raise ConfigError(
        f"a picture is a path, an address, bytes or a PIL picture, not {type(image).__name__}",
        fix="turn an array into one with PIL.Image.fromarray",
    )


def _fetched(address: str) -> bytes:
    pieces, total = [], 0
    try:
        with files.reading(address) as stream:
            while total <= MAX_FETCHED_BYTES and (piece := stream.read(files.CHUNK_BYTES)):
                pieces.append(piece)
                total += len(piece)
    except DataError as error:
        raise MissingImage(error.what, where=address, fix=error.fix) from None
    if total > MAX_FETCHED_BYTES:
        raise ImageTooLarge(
            f"the address gives more than the {MAX_FETCHED_BYTES:,} bytes that are fetched",
            where=address,
            fix="download and scale it down",
        )
    return b"".join(pieces)


def _encoded(picture: Pillow.Image) -> bytes:
    """A PIL picture as PNG, with the pixels that its file would give."""
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise too_large(f"{width} x {height} =", "picture", MAX_PIXELS, width * height)
    if not width * height:
        raise EmptyImage(f"the picture has {width} x {height} pixels", where="picture")
    # A TIFF that is not loaded yet would be turned by its XMP; the user's picture keeps its own.
    xmp = {key: picture.info.pop(key) for key in _XMP if key in picture.info}
    try:
        upright = _upright(picture, "picture")
    finally:
        picture.info.update(xmp)
    # Pixels alone: what stands in `info` would be saved, and read, once more.
    bare = Pillow.frombytes("RGB", upright.size, upright.tobytes())
    buffer = io.BytesIO()
    bare.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def decode(
    data: bytes,
    *,
    where: str = "",
    max_pixels: int = MAX_PIXELS,
    enough: tuple[int, int] | None = None,
) -> Pillow.Image:
    """An RGB picture, upright, from encoded bytes.

    CMYK, palette, grey and 16-bit pictures are converted (16 bits are scaled to 8);
    transparency is laid over white; of an animation the first frame is taken; the orientation of
    EXIF (in TIFF the tag, in AVIF the container's) is applied, that of XMP is not, as in browsers.

    Args:
        where: the picture's name for error messages.
        max_pixels: width times height that is still decoded; the default is Pillow's own
            threshold for a suspected decompression bomb.
        enough: a width and height in pixels that are enough; a JPEG may come out smaller than it
            is, and much faster, but not smaller than that.

    Raises:
        EmptyImage: there are no bytes.
        ImageTooLarge: more pixels than allowed; known before anything is decoded.
        TruncatedImage: the bytes begin like a picture and end too early or are damaged.
        NotAnImage: the bytes are no PNG, JPEG, WebP, GIF, BMP, TIFF, PPM or AVIF.
    """
    picture = _open(data, where, max_pixels)
    if enough is not None:
        picture.draft("RGB", enough)
    return _upright(picture, where)


def measure(data: bytes, *, where: str = "", max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(width, height) in pixels of what `decode` gives, from the header alone.

    Raises:
        As `decode`, as far as the header shows it.
    """
    picture = _open(data, where, max_pixels)
    if picture.format == "PNG" and any(key.encode() in data for key in ("eXIf", *_EXIF)):
        try:
            picture.load()  # EXIF may stand behind the pixels
        except Exception:  # `decode` will say so
            return picture.size
    width, height = picture.size
    return (height, width) if _orientation(picture) in (5, 6, 7, 8) else (width, height)


def _open(data: bytes, where: str, max_pixels: int) -> Pillow.Image:
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
        for key in _XMP:
            picture.info.pop(key, None)
        if picture.format == "TIFF":
            # Read here, where its warnings are silenced; what is damaged shows when it loads.
            with suppress(Exception):
                picture.getexif()
    width, height = picture.size
    if width * height > max_pixels:
        raise too_large(f"{width} x {height} =", where, max_pixels, width * height)
    return picture


def _upright(picture: Pillow.Image, where: str) -> Pillow.Image:
    """The pixels in RGB, turned as EXIF says.

    Raises:
        TruncatedImage: they cannot be decoded.
    """
    try:
        picture.load()
        orientation = _orientation(picture)
        picture = _to_rgb(picture)
    except Exception as error:
        raise TruncatedImage(
            f"the picture is cut off or damaged: {error}",
            where=where,
            fix="fetch the picture again, or drop the row",
        ) from error
    return picture.transpose(_TURNS[orientation]) if orientation in _TURNS else picture


def _orientation(picture: Pillow.Image) -> int:
    """EXIF's orientation, 1 to 8, as far as Pillow has not applied it itself.

    Pillow turns TIFF when it loads it (its size says so before), and then keeps no EXIF in `info`.
    """
    exif = {key: picture.info[key] for key in _EXIF if key in picture.info}
    if not exif:
        return 1
    # Of the picture itself, `getexif` would give the orientation of its XMP where EXIF has none.
    bare = Pillow.new("1", (1, 1))
    bare.info.update(exif)
    try:
        with _WARNINGS, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = bare.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # damaged EXIF says nothing about the pixels: the picture stands as is
        return 1
    return found if found in _TURNS else 1


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
    is_webp = data[:4] == b"RIFF" and data[8:12] in (b"WEBP", b"")
    kind = magic.brand(data)
    if kind in magic.AVIF and not features.check("avif"):
        return NotAnImage(
            "the picture is AVIF, which this build of Pillow does not read",
            where=where,
            fix="install Pillow from its wheel (pip install --force-reinstall pillow)",
        )
    if data.startswith((*magic.MAGIC, b"BM")) or is_webp or kind in magic.AVIF:
        return TruncatedImage(
            f"the picture's header is cut off or damaged ({len(data):,} bytes)",
            where=where,
            fix="fetch the picture again, or drop the row",
        )
    if kind in magic.HEIC:
        return NotAnImage(
            "the picture is HEIC, which is not read", where=where, fix="save it as JPEG or AVIF"
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
    has_alpha = picture.mode != "LAB" and {"A", "a"} & set(picture.getbands())
    if has_alpha or "transparency" in picture.info:
        # Pillow makes premultiplied grey nothing but grey.
        picture = (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")
        white = Pillow.new("RGBA", picture.size, (255, 255, 255, 255))
        return Pillow.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


def _grey(picture: Pillow.Image) -> Pillow.Image:
    """Deep grey values scaled to 8 bits; Pillow alone would clip them to white."""
    values = np.asarray(picture).astype(np.float64)
    top = values[np.isfinite(values)].max(initial=0.0)
    if picture.mode == "F" and top <= 255:
        scale = 255.0 if top <= 1.0 else 1.0
    else:
        most = 2.0**31 - 1 if picture.mode != "F" else top
        scale = 255.0 / (65535.0 if top <= 65535 else most)
    scaled = np.nan_to_num(values * scale).round().clip(0, 255)
    if isinstance(clear := picture.info.get("transparency"), int):
        scaled[values == clear] = 255  # the one value that is transparent, over white
    return Pillow.fromarray(scaled.astype(np.uint8))


def no_images(image: Image) -> bytes:
    """Stands in where no way to the pictures was given.

    Raises:
        ModelError: always.
    """
    raise ModelError(
        f"the picture {image.path} is needed and no reader was given",
        fix="pass images=, a function from Image to bytes",
    )
