"""Templates for text and templates for parts render the same conversation."""

from __future__ import annotations

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from diptych.convert import chat_parts
from diptych.data.sample import Image, Text
from diptych.data.text.chat import TEMPLATES
from diptych.data.text.joints import JOINTS, joined

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
    "blanks before two": (Text(" "), PICTURE, Text("\n"), PICTURE, Text(" Which? ")),
    "around": (PICTURE, Text("  this "), PICTURE, Text("  that \n"), PICTURE),
    "one inside": (Text(" Is "), PICTURE, Text("red? ")),
    "nothing but pictures": (PICTURE, Text(" "), PICTURE),
}


def render(template: str, content: object) -> str:
    texts, _ = render_jinja_template(
        conversations=[[{"role": "user", "content": content}]],
        chat_template=template,
        add_generation_prompt=True,
        eos_token="</s>",
        bos_token="<s>",
    )
    return texts[0]


@pytest.mark.parametrize("joint", JOINTS)
@pytest.mark.parametrize("name", sorted(TEMPLATES))
@pytest.mark.parametrize("turn", sorted(TURNS))
def test_parts_render_as_diptych_joins_them(name, turn, joint):
    parts = TURNS[turn]
    text = "".join(
        p.text if isinstance(p, Text) else chat_parts.IMAGE_MARK for p in joined(parts, joint)
    )
    listed = [
        {"type": "text", "text": p.text} if isinstance(p, Text) else {"type": "image"}
        for p in parts
    ]
    template = chat_parts.for_parts(TEMPLATES[name], joint)
    assert render(template, listed) == render(TEMPLATES[name], text) == render(template, text)


@pytest.mark.parametrize("begin", [False, True])
@pytest.mark.parametrize("joint", ["line", "front", "none"])
def test_prelude_is_taken_off_again(joint, begin):
    template = TEMPLATES["chatml"]
    whole = chat_parts.for_parts(template, joint, begin=begin)
    text, found = chat_parts.for_text(whole, tokenizer=None)
    assert (text.removeprefix("{{ bos_token }}"), found) == (template, joint)
    assert text.startswith("{{ bos_token }}") == begin
