"""From an SVG or any picture to a square PNG of one size, the drawing filling it."""

from __future__ import annotations

import io
import re
from typing import Any

from PIL import Image as Pillow

from diptych.data.pixels.image import decode
from diptych.errors import DataError, ImageError

_OPENING = re.compile(r"<svg\b[^>]*>", re.DOTALL)
_LENGTH = r"""\b{}\s*=\s*["']\s*([\d.]+(?:[eE][+-]?\d+)?)\s*(px|pt|pc|mm|cm|in|em)?\s*["']"""
_PIXELS = {"": 1.0, "px": 1.0, "pt": 4 / 3, "pc": 16.0, "mm": 96 / 25.4, "cm": 96 / 2.54,
           "in": 96.0, "em": 16.0}  # fmt: skip
_OVERSIZE = 3
"""SVGs are drawn so much larger: what is drawn may cover a part of the page only."""
_MAX_SIDE = 4096
_LEAST_SIDE = 1 / 8


def draw(picture: bytes | str, size: int, where: str) -> bytes:
    """PNG, RGB on white, `size` x `size` pixels: cut to what is drawn, padded to a square.

    Raises:
        DataError: nothing is drawn, or it cannot be drawn.
    """
    shown = _of_svg(picture, size, where) if isinstance(picture, str) else _of_file(picture, where)
    box = _box(shown)
    if box is None or max(box[2] - box[0], box[3] - box[1]) < _LEAST_SIDE * size:
        raise DataError("nothing is drawn there", where=where)
    white = Pillow.new("RGBA", shown.size, "white")
    cut = Pillow.alpha_composite(white, shown).convert("RGB").crop(box)
    if cut.resize((32, 32)).getcolors(1) is not None:
        raise DataError("the picture has one colour only", where=where)
    side = max(cut.size)
    margin = max(1, side // 24)
    square = Pillow.new("RGB", (side + 2 * margin,) * 2, "white")
    square.paste(cut, ((square.width - cut.width) // 2, (square.height - cut.height) // 2))
    resized = square.resize((size, size), Pillow.Resampling.BICUBIC)
    out = io.BytesIO()
    resized.save(out, format="PNG")
    return out.getvalue()


def _of_svg(text: str, size: int, where: str) -> Pillow.Image:
    """RGBA, large enough that what is drawn is not blurred at `size`."""
    opening = _OPENING.search(text)
    if opening is None:
        raise DataError("the file is no SVG", where=where)
    sides = []
    for name in ("width", "height"):
        found = re.search(_LENGTH.format(name), opening[0])
        if found:
            sides.append(float(found[1]) * _PIXELS[found[2] or ""])
    if not sides or max(sides) <= 0:
        return _rendered(text, where, width=_OVERSIZE * size)
    # Scaled by its own size, so that no page of metres is ever drawn at full length.
    zoom = _OVERSIZE * size / max(sides)
    shown = _rendered(text, where, zoom=zoom)
    box = _box(shown)
    if box is not None:
        small = max(box[2] - box[0], box[3] - box[1])
        larger = min(size / small, _MAX_SIDE / max(shown.size))
        if larger > 1:  # a small drawing on a large page
            shown = _rendered(text, where, zoom=zoom * larger)
    return shown


def _rendered(text: str, where: str, **scale: Any) -> Pillow.Image:
    import resvg_py

    try:
        png = resvg_py.svg_to_bytes(svg_string=text, dpi=96.0, skip_system_fonts=True, **scale)
    except ValueError as error:
        raise DataError(f"the SVG cannot be drawn: {error}", where=where) from None
    return Pillow.open(io.BytesIO(png)).convert("RGBA")


def _box(shown: Pillow.Image) -> tuple[int, int, int, int] | None:
    """What is not transparent."""
    return shown.getchannel("A").point(lambda a: 255 if a > 8 else 0).getbbox()


def _of_file(data: bytes, where: str) -> Pillow.Image:
    try:
        decode(data, where=where)  # refuses what is hostile
    except ImageError as error:
        raise DataError(error.what, where=where) from error
    shown = Pillow.open(io.BytesIO(data)).convert("RGBA")
    if shown.getchannel("A").getextrema()[0] == 255:
        # A photograph or a drawing on paper: its paper is what it does not draw.
        grey = shown.convert("L").point(lambda v: 255 if v < 250 else 0)
        shown.putalpha(grey.point(lambda v: 255) if grey.getbbox() is None else _boxed(grey))
    return shown


def _boxed(mask: Pillow.Image) -> Pillow.Image:
    box = mask.getbbox()
    full = Pillow.new("L", mask.size, 0)
    full.paste(255, box)
    return full
