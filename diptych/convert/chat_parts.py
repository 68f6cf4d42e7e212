"""Chat templates in the two forms: content as text, and content as a list of parts.

Diptych renders templates with plain text for content. Processors and servers hand over a
list of parts ({"type": "image"}, {"type": "text", "text": ...}). A short prelude in Jinja
turns one into the other, so that the template itself stays as it was trained with. The prelude
joins pictures and text by the same rule as training does (`diptych.data.text.joints`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diptych.convert.probes import read_json
from diptych.data.sample import Image, Sample, Text, Turn
from diptych.data.text.chat import ChatEncoder
from diptych.data.text.joints import JOINTS, Joint, joined
from diptych.errors import CheckpointError, ConfigError

IMAGE_MARK = "<image>"

_HEAD = (
    "{% set conversation = namespace(turns=[]) %}"
    "{% for message in messages %}"
    "{% if message['content'] is string %}"
    "{% set conversation.turns = conversation.turns + [message] %}"
    "{% else %}"
    "{% set turn = namespace(text='', all='', first=-1, last=-1, images=0, tail=0) %}"
)
_TAIL = (
    "{% set conversation.turns = conversation.turns + "
    "[{'role': message['role'], 'content': turn.text}] %}"
    "{% endif %}"
    "{% endfor %}"
    "{% set messages = conversation.turns %}"
)
# Which parts say something, and how many pictures there are, also behind the last of those.
_COUNT = (
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}"
    "{% set turn.all = turn.all + part['text'] %}"
    "{% if part['text'].strip() %}"
    "{% if turn.first < 0 %}{% set turn.first = loop.index0 %}{% endif %}"
    "{% set turn.last = loop.index0 %}{% set turn.tail = 0 %}"
    "{% endif %}"
    "{% else %}"
    "{% set turn.images = turn.images + 1 %}{% set turn.tail = turn.tail + 1 %}"
    "{% endif %}"
    "{% endfor %}"
)
_AS_IT_IS = (
    "{% for part in message['content'] %}"
    "{% set turn.text = turn.text + (part['text'] if part['type'] == 'text' else '"
    + IMAGE_MARK
    + "') %}{% endfor %}"
)
_LINES = (
    "{% for part in message['content'] %}"
    "{% if part['type'] != 'text' %}"
    "{% if turn.first < 0 %}"
    "{% set turn.text = turn.text + ('\\n' if turn.text else '') + '" + IMAGE_MARK + "' %}"
    "{% else %}"
    "{% set turn.text = turn.text + ('\\n' if loop.index0 > turn.last else '') + '"
    + IMAGE_MARK
    + "' + ('\\n' if loop.index0 < turn.first else '') %}"
    "{% endif %}"
    "{% elif turn.images == 0 %}"
    "{% set turn.text = turn.text + part['text'] %}"
    "{% elif turn.first <= loop.index0 and loop.index0 <= turn.last %}"
    "{% set text = part['text'] %}"
    "{% if loop.index0 == turn.first and turn.text %}{% set text = text.lstrip() %}{% endif %}"
    "{% if loop.index0 == turn.last and turn.tail %}{% set text = text.rstrip() %}{% endif %}"
    "{% set turn.text = turn.text + text %}"
    "{% endif %}"
    "{% endfor %}"
)
_FRONT = (
    "{% if turn.images == 1 %}"
    "{% set turn.text = '" + IMAGE_MARK + "' + ('\\n' + turn.all.strip() if turn.all.strip() "
    "else '') %}{% else %}" + _LINES + "{% endif %}"
)
_PRELUDES = {
    "none": _HEAD + _AS_IT_IS + _TAIL,
    "begin": "{# pictures before the beginning #}" + _HEAD + _AS_IT_IS + _TAIL,
    "line": _HEAD + _COUNT + _LINES + _TAIL,
    "front": _HEAD + _COUNT + _FRONT + _TAIL,
}
_TO_PARTS = (
    "{% set conversation = namespace(turns=[]) %}"
    "{% for message in messages %}"
    "{% set conversation.turns = conversation.turns + [{'role': message['role'], 'content': "
    "[{'type': 'text', 'text': message['content']}]}] %}"
    "{% endfor %}"
    "{% set messages = conversation.turns %}"
)
_BEGIN = "{{ bos_token }}"


def for_parts(
    template: str, joint: str = "line", *, begin: bool = False, mark: str = IMAGE_MARK
) -> str:
    """A template for text content -> one that takes parts as well.

    Args:
        joint: how a picture joins its neighbours (`diptych.data.text.joints`).
        begin: write the beginning token, which the tokenizer itself puts before a text, where
            that gives the same ids. Servers tokenise a rendered chat without special tokens
            (vLLM), processors with them unless it begins with that token.
        mark: what stands for a picture.
    """
    return (_BEGIN if begin else "") + _prelude(joint, mark) + template


def _prelude(joint: str, mark: str) -> str:
    return _PRELUDES[joint].replace(IMAGE_MARK, mark)


def for_text(template: str, tokenizer: Any, mark: str = IMAGE_MARK) -> tuple[str, Joint]:
    """A template of a processor -> one that takes text content, and its joint.

    The joint of a template from elsewhere is the one that renders pictures and text alike in most
    of some small conversations.

    Raises:
        ConfigError: it renders a conversation in neither form.
    """
    begin = template.startswith(_BEGIN)
    own = template.removeprefix(_BEGIN)
    for joint in JOINTS:
        if own.startswith(prelude := _prelude(joint, mark)):
            return (_BEGIN if begin else "") + own.removeprefix(prelude), joint
    joint = _joint_of(template, tokenizer, mark)
    try:
        _try(template, tokenizer)
    except ConfigError:
        template = _TO_PARTS + template
        _try(template, tokenizer)
    return template, joint


def read_template(path: Path, mark: str = IMAGE_MARK) -> tuple[str | None, Joint | None, Any]:
    """The template of a folder's tokenizer or processor for text content, its joint, and the
    tokenizer.

    Raises:
        CheckpointError: transformers cannot read the tokenizer, or the template is no JSON.
        ConfigError: see `for_text`.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:  # transformers raises many kinds
        raise CheckpointError(
            f"transformers cannot read the tokenizer: {error}", where=str(path)
        ) from error
    template = tokenizer.chat_template
    if (path / "chat_template.json").is_file():
        template = read_json(path / "chat_template.json").get("chat_template")
    if not isinstance(template, str):
        return None, None, tokenizer
    return *for_text(template, tokenizer, mark), tokenizer


def _try(template: str, tokenizer: Any) -> None:
    turn = Turn("user", (Text("a"),))
    ChatEncoder(tokenizer, template).encode(Sample("", (turn,)), generation=True)


_SHOWN = Image("")
_PROBES = (
    (_SHOWN, Text("one")),
    (Text("one"), _SHOWN),
    (Text("one "), _SHOWN, Text(" two")),
    (_SHOWN, _SHOWN, Text("one")),
)


def _joint_of(template: str, tokenizer: Any, mark: str) -> Joint:
    """The joint by which a template for parts joins pictures and text."""

    def rendered(parts: list[dict[str, str]]) -> str:
        return tokenizer.apply_chat_template(
            [{"role": "user", "content": parts}], chat_template=template, tokenize=False
        )

    def agrees(joint: Joint, parts: tuple[Image | Text, ...]) -> bool:
        try:
            theirs = rendered([_part(p) for p in parts])
        except Exception:  # Jinja raises what it likes: the template takes no parts
            return False
        text = "".join(p.text if isinstance(p, Text) else mark for p in joined(parts, joint))
        return text in theirs

    candidates: tuple[Joint, ...] = ("line", "front", "none")
    return max(candidates, key=lambda joint: sum(agrees(joint, p) for p in _PROBES))


def _part(part: Image | Text) -> dict[str, str]:
    return {"type": "text", "text": part.text} if isinstance(part, Text) else {"type": "image"}
