"""Chat templates in the two forms: content as text, and content as a list of parts.

Diptych renders templates with plain text for content. Processors and servers hand over a
list of parts ({"type": "image"}, {"type": "text", "text": ...}). A short prelude in Jinja
turns one into the other, so that the template itself stays as it was trained with.
"""

from __future__ import annotations

from typing import Any

from diptych.data.chat import ChatEncoder
from diptych.data.sample import Sample, Text, Turn
from diptych.errors import ConfigError

IMAGE_MARK = "<image>"

# The same joints as data/chat.py: one line break between a picture and its neighbours.
_TO_TEXT = (
    "{% set conversation = namespace(turns=[]) %}"
    "{% for message in messages %}"
    "{% if message['content'] is string %}"
    "{% set conversation.turns = conversation.turns + [message] %}"
    "{% else %}"
    "{% set turn = namespace(text='', seen_image=false) %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}"
    "{% set text = part['text'] %}"
    "{% if turn.seen_image %}{% set text = text.lstrip('\\n ') %}{% endif %}"
    "{% if loop.nextitem is defined and loop.nextitem['type'] != 'text' %}"
    "{% set text = text.rstrip('\\n ') %}{% endif %}"
    "{% if text and turn.seen_image %}{% set text = '\\n' + text %}{% endif %}"
    "{% set turn.text = turn.text + text %}"
    "{% set turn.seen_image = false %}"
    "{% else %}"
    "{% set turn.text = turn.text + ('' if loop.first else '\\n') + '" + IMAGE_MARK + "' %}"
    "{% set turn.seen_image = true %}"
    "{% endif %}"
    "{% endfor %}"
    "{% set conversation.turns = conversation.turns + "
    "[{'role': message['role'], 'content': turn.text}] %}"
    "{% endif %}"
    "{% endfor %}"
    "{% set messages = conversation.turns %}"
)
_TO_PARTS = (
    "{% set conversation = namespace(turns=[]) %}"
    "{% for message in messages %}"
    "{% set conversation.turns = conversation.turns + [{'role': message['role'], 'content': "
    "[{'type': 'text', 'text': message['content']}]}] %}"
    "{% endfor %}"
    "{% set messages = conversation.turns %}"
)


def for_parts(template: str) -> str:
    """A template for text content -> one that takes parts as well."""
    return _TO_TEXT + template


def for_text(template: str, tokenizer: Any) -> str:
    """A template of a processor -> one that takes text content.

    Raises:
        ConfigError: it renders a conversation in neither form.
    """
    if template.startswith(_TO_TEXT):
        return template.removeprefix(_TO_TEXT)
    try:
        _try(template, tokenizer)
    except ConfigError:
        template = _TO_PARTS + template
        _try(template, tokenizer)
    return template


def _try(template: str, tokenizer: Any) -> None:
    turn = Turn("user", (Text("a"),))
    ChatEncoder(tokenizer, template).encode(Sample("", (turn,)), generation=True)
