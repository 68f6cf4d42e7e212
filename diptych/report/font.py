"""The Chinese characters of a page as a font inside it, so that it reads the same everywhere."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

FONT = Path(__file__).parents[1] / "fonts" / "NotoSansSC-subset.otf"
FAMILY = "Diptych Chinese"
"""Last before the generic names in the font lists of `style.css`: a font of the system is taken
first."""
_CHINESE = re.compile("[\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef]")


def chinese_font(page: str) -> str:
    """A `@font-face` rule with what the page needs of the bundled font; empty if it needs nothing.

    The bundled font has some thousand characters; those that it lacks are left to the system.
    """
    wanted = set(_CHINESE.findall(page))
    if not wanted:
        return ""
    from fontTools import subset
    from fontTools.ttLib import TTFont

    font = TTFont(FONT, recalcTimestamp=False)
    codes = {ord(character) for character in wanted} & set(font.getBestCmap())
    if not codes:
        return ""
    options = subset.Options(flavor="woff", layout_features=[], desubroutinize=True)
    made = subset.Subsetter(options)
    made.populate(unicodes=codes)
    made.subset(font)
    font.flavor = "woff"
    buffer = io.BytesIO()
    font.save(buffer)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'\n@font-face {{ font-family: "{FAMILY}"; '
        f'src: url(data:font/woff;base64,{data}) format("woff"); }}\n'
    )
