"""Chinese on a page: the characters travel with it, and nothing does where there are none."""

from __future__ import annotations

import base64
import io
import re

from fontTools.ttLib import TTFont

from diptych.report import font


def test_no_chinese_no_font():
    assert font.chinese_font("<p>What is shown? Café, 30 %</p>") == ""


def test_the_characters_of_the_page_and_no_others():
    rule = font.chinese_font("<p>图表：最大的是哪一个？ mixed 图</p>")
    assert f'font-family: "{font.FAMILY}"' in rule
    data = re.search(r"base64,([^)]+)\)", rule)[1]
    inside = TTFont(io.BytesIO(base64.b64decode(data)))
    codes = set(inside.getBestCmap())
    assert {ord(c) for c in "图表最大的是哪一个"} <= codes
    assert len(codes) < 30 and len(data) < 20_000


def test_what_the_bundled_font_lacks_is_left_to_the_system():
    assert font.chinese_font("\u9f98") == "" or "\u9f98" not in font.chinese_font("\u9f98")
