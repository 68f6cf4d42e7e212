"""Templates for text and templates for parts render the same conversation."""

from __future__ import annotations

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from diptych.convert import chat_parts
from diptych.data.chat import TEMPLATES, _joined
from diptych.data.sample import Image, Text, Turn

PICTURE = Image("a.png")
TURNS = {
    "picture first": (PICTURE, Text("What is it?")),
    "break written out": (PICTURE, Text("\n  What is it?")),
    "picture last": (Text("Look: \n"), PICTURE),
    "two pictures": (PICTURE, PICTURE, Text("Which?")),
    "between": (Text("This"), PICTURE, Text("or this"), PICTURE, Text("?")),
    "text only": (Text("\n Hello "),),
    "two texts": (Text("a"), Text("b")),
    "empty text": (PICTURE, Text("\n")),
}


def render(template: str, content: object) -> str:
    texts, _ = render_jinja_template(
        conversations=[[{"role": "user", "content": content}]],
        chat_template=template,
        add_generation_prompt=True,
        eos_token="</s>",
    )
    return texts[0]


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@pytest.mark.parametrize("turn", sorted(TURNS))
def test_parts_render_as_diptych_joins_them(name, turn):
    parts = TURNS[turn]
    joined = "".join(
        p.text if isinstance(p, Text) else chat_parts.IMAGE_MARK
        for p in _joined(Turn("user", parts))
    )
    listed = [
        {"type": "text", "text": p.text} if isinstance(p, Text) else {"type": "image"}
        for p in parts
    ]
    template = chat_parts.for_parts(TEMPLATES[name])
    assert render(template, listed) == render(TEMPLATES[name], joined) == render(template, joined)


def test_prelude_is_taken_off_again():
    template = TEMPLATES["chatml"]
    assert chat_parts.for_text(chat_parts.for_parts(template), tokenizer=None) == template
