"""Chat template: from turns to one text, and where in it stands what was said.

A template is Jinja, as tokenizers carry it, and may look into what it is given: it may trim it, cut
it at `</think>`, or refuse roles that do not alternate. So the whole conversation is rendered as
a server would render it. To know which characters were said and which the template wrote, the
conversation is rendered a second time with every visible character of turn k replaced by one mark
of its own; both texts must agree everywhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from diptych.errors import ConfigError

Message = dict[str, str]


TEMPLATES = {
    "plain": "{% for m in messages %}{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}",
    "chatml": "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "vicuna": "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }} "
    "{% elif m['role'] == 'user' %}USER: {{ m['content'] }} "
    "{% else %}ASSISTANT: {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}",
    "mistral": "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
    " {{ m['content'] }}{{ eos_token }}{% else %}[INST] {{ m['content'] }} [/INST]{% endif %}"
    "{% endfor %}",
    "compact": "{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] }}"
    "<|im_end|>{% else %}{{ m['content'] }}<|im_start|>{% endif %}{% endfor %}",
    "qa": "{% for m in messages %}{% if m['role'] == 'user' %}Question: {{ m['content'] }} "
    "{% elif m['role'] == 'assistant' %}Answer: {{ m['content'] }}{{ eos_token }}"
    "{% else %}{{ m['content'] }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Answer:{% endif %}",
}
"""Templates by name; a recipe may also give a Jinja text, or take the tokenizer's own."""

JOINTS_OF_TEMPLATES = {TEMPLATES["vicuna"]: "front", TEMPLATES["mistral"]: "front"}
"""How a picture joins the text beside it (`text/joints.py`) where that is not `line`: as LLaVA-1.5
and LLaVA-NeXT do it (haotian-liu/LLaVA, llava/train/train.py, `preprocess_multimodal`)."""

_FIRST_MARK = 0xF0000
_MAX_TURNS = 0xFFFD
_MAX_FRAMES = 1_000
_VISIBLE = re.compile(r"\S+")
_KEYS = frozenset(
    {"role", "content", "user", "assistant", "system", "tool", "tools", "tool_calls", "name",
     "type", "text", "image", "images", "video", "function", "arguments", "model", "developer"}
)  # fmt: skip
"""What templates ask of messages, and no words of a conversation."""
# transformers' own tag around what the assistant says; plain Jinja does not know it.
_GENERATION_TAG = re.compile(r"{%-?\s*(?:end)?generation\s*-?%}")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text.

    Attributes:
        text: what a server would tokenise.
        spans: for each message, (start, end) of what it says in `text`, blanks around it
            included where they were kept; None where nothing of it is visible.
        starts: for each message of the assistant, the end of the text that invites it: what is
            asked ends there, what is learned begins there. -1 for other messages.
    """

    text: str
    spans: tuple[tuple[int, int] | None, ...]
    starts: tuple[int, ...]


class _Frame(NamedTuple):
    """What a template writes around messages of given roles when it leaves them as they are.

    `before` stands before each message; `leads` is how many of its last characters are learned
    with an answer, -1 for other messages.
    """

    before: tuple[str, ...]
    leads: tuple[int, ...]
    end: str


class ChatTemplate:
    """One tokenizer's way of rendering conversations.

    Args:
        tokenizer: a Hugging Face tokenizer.
        text: the Jinja text.
    """

    def __init__(self, tokenizer: Any, text: str):
        self.tokenizer = tokenizer
        self.text = text
        self._frames: dict[tuple[tuple[str, ...], bool], _Frame] = {}

    def render(self, messages: Sequence[Message], *, generation: bool) -> str:
        """The text of a conversation, with the invitation to answer where `generation` is set.

        Raises:
            ConfigError: the template refuses the roles or what they say.
        """
        try:
            return self.tokenizer.apply_chat_template(
                list(messages),
                chat_template=self.text,
                add_generation_prompt=generation,
                tokenize=False,
            )
        except Exception as error:  # Jinja and template authors raise what they like
            roles = " ".join(m["role"] for m in messages)
            raise ConfigError(
                f"the chat template cannot render the roles '{roles}': {error}",
                fix="choose another template (language_model.template) or change the turns",
            ) from error

    def layout(self, messages: Sequence[Message], *, generation: bool) -> Rendered:
        """The text of a conversation, and where each message stands in it.

        Raises:
            ConfigError: the template refuses the conversation, or drops, repeats, reorders or
                rewrites what is said.
        """
        text = self.render(messages, generation=generation)
        shape = (tuple(m["role"] for m in messages), generation)
        if (frame := self._frames.get(shape)) is not None:
            if (rendered := _in_frame(text, messages, frame)) is not None:
                return rendered
        rendered = self._searched(text, messages, generation)
        if self._is_blind and len(self._frames) < _MAX_FRAMES:
            if (frame := _frame_of(rendered, messages)) is not None:
                self._frames[shape] = frame
        return rendered

    def _searched(self, text: str, messages: Sequence[Message], generation: bool) -> Rendered:
        """What was said is looked for by a second rendering."""
        spans = self._spans(messages, text, generation, ())
        for words in (self.words, self._looked_for):
            if spans is None and words:
                spans = self._spans(messages, text, generation, words)
        if spans is None:
            raise ConfigError(
                "the chat template drops or reorders a part of the conversation, or rewrites it",
                fix="choose another template (language_model.template)",
            )
        starts = [-1] * len(messages)
        for number, message in enumerate(messages):
            span = spans[number]
            if message["role"] != "assistant" or span is None:
                continue
            # Nobody asks before the first turn: what the template writes there is not learned.
            asked = self.render(messages[:number], generation=True) if number else None
            blanks = len(text[span[0] : span[1]]) - len(text[span[0] : span[1]].lstrip())
            # A template that changes earlier turns later invites to nothing that stands here.
            fits = asked is not None and text.startswith(asked)
            if asked is not None and fits and len(asked) <= span[0] + blanks:
                starts[number] = len(asked)
                # A line break of the template's is not one that was trimmed from the answer.
                spans[number] = (max(span[0], len(asked)), span[1])
            else:
                starts[number] = _behind_blanks(text, span[0])
        return Rendered(text, tuple(spans), tuple(starts))

    @cached_property
    def _looked_for(self) -> tuple[str, ...]:
        """Words that the template compares with, or cuts at; keys of messages are among them."""
        from jinja2 import Environment, TemplateSyntaxError, nodes

        source = _GENERATION_TAG.sub("", self.text)
        try:
            tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(source)
        except TemplateSyntaxError as error:
            raise ConfigError(f"the chat template is no Jinja: {error}") from error
        found = set()
        for call in tree.find_all(nodes.Call):
            if isinstance(call.node, nodes.Getattr):
                found |= {a.value for a in call.args if isinstance(a, nodes.Const)}
        for test in tree.find_all(nodes.Compare):
            if isinstance(test.expr, nodes.Const) and test.ops[0].op in ("in", "notin"):
                found.add(test.expr.value)
        return _longest_first(w.strip() for w in found if isinstance(w, str) and w.strip())

    @cached_property
    def words(self) -> tuple[str, ...]:
        """Words with brackets that the template looks for in what is said, such as `</think>`."""
        return tuple(w for w in self._looked_for if not w.isalnum())

    @cached_property
    def _is_blind(self) -> bool:
        """Whether the template looks for nothing in what is said, so that its frame can be kept."""
        return not self.words and not set(self._looked_for) - _KEYS

    def _spans(
        self, messages: Sequence[Message], text: str, generation: bool, words: tuple[str, ...]
    ) -> list[tuple[int, int] | None] | None:
        """Where each message stands in `text`; None where that cannot be told.

        `words` stay as they are in the second rendering, so that the template finds them there.
        """
        if len(messages) > _MAX_TURNS:
            raise ConfigError(f"a conversation has {len(messages):,} turns")
        marked = [
            {**m, "content": _marked(m["content"], chr(_FIRST_MARK + n), words)}
            for n, m in enumerate(messages)
        ]
        shadow = self.render(marked, generation=generation)
        if len(shadow) != len(text):
            return None
        spans: list[tuple[int, int] | None] = []
        end = 0
        for number, message in enumerate(messages):
            mark = chr(_FIRST_MARK + number)
            said = message["content"]
            first, last = shadow.find(mark, end), shadow.rfind(mark) + 1
            if first < 0:
                # All of it may be words that the template looks for, and takes out.
                if _marked(said, mark, words).count(mark) or (said.strip() and not words):
                    return None
                spans.append(None)
                continue
            if text[end:first] != shadow[end:first]:
                return None
            core = text[first:last]
            if core != said.strip() and not (words and _comes_from(core, said, words)):
                return None
            left = said[: len(said) - len(said.lstrip())]
            right = said[len(said.rstrip()) :]
            start = first - len(left) if text[end:first].endswith(left) else first
            end = last + len(right) if text.startswith(right, last) else last
            spans.append((start, end))
        return spans if text[end:] == shadow[end:] else None


def _longest_first(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(words), key=lambda w: (-len(w), w)))


def _marked(said: str, mark: str, words: tuple[str, ...]) -> str:
    """The text with every visible character replaced, `words` left as they are."""
    if not words:
        return _VISIBLE.sub(lambda found: mark * len(found[0]), said)
    pieces = re.split("(" + "|".join(map(re.escape, words)) + ")", said)
    return "".join(p if n % 2 else _marked(p, mark, ()) for n, p in enumerate(pieces))


def _comes_from(core: str, said: str, words: tuple[str, ...]) -> bool:
    """Whether the characters that stand there were said in this order, `words` apart."""
    drop = re.compile("|".join(map(re.escape, words)) + r"|\s+")
    left = iter(drop.sub("", said))
    return all(character in left for character in drop.sub("", core))


def _frame_of(rendered: Rendered, messages: Sequence[Message]) -> _Frame | None:
    """The frame, where every message stands in the text just as it was said."""
    before, leads, end = [], [], 0
    for message, span, start in zip(messages, rendered.spans, rendered.starts, strict=True):
        if span is None or rendered.text[span[0] : span[1]] != message["content"]:
            return None
        before.append(rendered.text[end : span[0]])
        leads.append(-1 if start < 0 else span[0] - start)
        end = span[1]
    return _Frame(tuple(before), tuple(leads), rendered.text[end:])


def _in_frame(text: str, messages: Sequence[Message], frame: _Frame) -> Rendered | None:
    """Where the messages stand, if the text is the frame with what they say in it."""
    spans, starts, end = [], [], 0
    for message, before, lead in zip(messages, frame.before, frame.leads, strict=True):
        said = message["content"]
        start = end + len(before)
        if not said.strip() or not text.startswith(before, end) or not text.startswith(said, start):
            return None
        end = start + len(said)
        spans.append((start, end))
        starts.append(-1 if lead < 0 else start - lead)
    if text[end:] != frame.end:
        return None
    return Rendered(text, tuple(spans), tuple(starts))


def _behind_blanks(text: str, position: int) -> int:
    """A blank before an answer belongs to it: "ASSISTANT: yes" is learned behind "ASSISTANT:"."""
    return len(text[:position].rstrip(" "))
