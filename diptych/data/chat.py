"""Chat template -> token ids, with every token's fate known.

A template (Jinja, as tokenizers carry them) is rendered with one placeholder for each piece
of text or picture, then cut at the placeholders. What the template wrote may become special
tokens; what a person wrote is encoded as plain text, always. So `<image>` or `<|im_end|>`
typed by a user is just characters, and no counting of tokens is needed to know which ones
are supervised: the assistant's text and the mark that ends its turn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache
from typing import Any

from diptych.data.batch import IMAGE_TOKEN
from diptych.data.plain_text import PlainText
from diptych.data.sample import Image, Sample, Text, Turn, Video
from diptych.errors import ConfigError, EmptyConversation, ModelError

TEMPLATES = {
    "plain": "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}",
    "chatml": "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "vicuna": "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }} "
    "{% elif m['role'] == 'user' %}USER: {{ m['content'] }} "
    "{% else %}ASSISTANT: {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}",
    "compact": "{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] }}"
    "<|im_end|>{% else %}{{ m['content'] }}<|im_start|>{% endif %}{% endfor %}",
    "qa": "{% for m in messages %}{% if m['role'] == 'user' %}Question: {{ m['content'] }} "
    "{% elif m['role'] == 'assistant' %}Answer: {{ m['content'] }}{{ eos_token }}"
    "{% else %}{{ m['content'] }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Answer:{% endif %}",
}
"""Templates by name; a recipe may also give a Jinja text, or take the tokenizer's own."""

_PLACEHOLDER = re.compile("\ue000(\\d+)\ue001")


class Fate(IntEnum):
    """What becomes of a token."""

    TEMPLATE = 0
    PROMPT = 1
    IMAGE = 2
    TARGET = 3


@dataclass(frozen=True, slots=True)
class Encoded:
    """A sample as token ids.

    Attributes:
        ids: token ids, `IMAGE_TOKEN` for each image position.
        fates: one `Fate` per token; `TARGET` tokens are supervised.
        images: the pictures whose tokens stand in `ids`, in reading order.
        num_cut_tokens: tokens that truncation removed.
    """

    ids: tuple[int, ...]
    fates: tuple[Fate, ...]
    images: tuple[Image, ...]
    num_cut_tokens: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_targets(self) -> int:
        """Supervised tokens; the first token has nothing before it to be predicted from."""
        return sum(1 for f in self.fates[1:] if f is Fate.TARGET)

    def prefix_length(self) -> int:
        """Number of tokens up to and including the last image token; 0 without a picture."""
        for index in range(len(self.ids) - 1, -1, -1):
            if self.ids[index] == IMAGE_TOKEN:
                return index + 1
        return 0


@dataclass
class ChatEncoder:
    """Encodes Samples with one tokenizer and one template.

    Args:
        tokenizer: a Hugging Face tokenizer.
        template: a name of `TEMPLATES`, a Jinja text, or None for the tokenizer's own
            (`chatml`-like models bring one; without one, `plain` is used).
        tokens_per_image: number of language-model tokens of one picture, known in advance.

    Raises:
        ConfigError: the template cannot be rendered or drops a part of the conversation.
    """

    tokenizer: Any
    template: str | None = None
    tokens_per_image: int = 0
    _fragments: dict[str, tuple[int, ...]] = field(default_factory=dict, repr=False)
    _texts: Callable[[str], tuple[int, ...]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.template is None:
            self.template = getattr(self.tokenizer, "chat_template", None) or TEMPLATES["plain"]
        self.template = TEMPLATES.get(self.template, self.template)
        if "{" not in self.template:
            raise ConfigError(
                f"there is no chat template '{self.template}'",
                fix=f"available: {', '.join(TEMPLATES)}, a Jinja text, or null for the "
                "tokenizer's own",
            )
        plain = PlainText(self.tokenizer)
        self._reserved_ids = plain.reserved_ids
        self._texts = lru_cache(maxsize=50_000)(plain)
        self._rendered = lru_cache(maxsize=1_000)(self._render)

    def __getstate__(self) -> dict[str, Any]:
        # Sent to decode workers; the caches are rebuilt there.
        return {k: getattr(self, k) for k in ("tokenizer", "template", "tokens_per_image")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def encode(self, sample: Sample, *, generation: bool = False) -> Encoded:
        """Token ids and fates of a sample.

        Args:
            sample: turns in order. With `generation`, the last turn is the user's and the
                template's invitation to answer is added.

        Raises:
            EmptyConversation: the sample has no turns.
            ConfigError: the template refuses these roles or drops a part.
        """
        if not sample.turns:
            raise EmptyConversation("the sample has no turns", where=sample.source or sample.id)
        pieces: list[tuple[Text | Image, bool]] = []
        shape: list[tuple[str, int]] = []
        for turn in sample.turns:
            parts = _joined(turn)
            shape.append((turn.role, len(parts)))
            pieces += [(p, turn.role == "assistant") for p in parts]
        ids: list[int] = []
        fates: list[Fate] = []
        images: list[Image] = []

        def add(tokens: Iterable[int], fate: Fate) -> None:
            before = len(ids)
            ids.extend(tokens)
            fates.extend([fate] * (len(ids) - before))

        answering = False
        for fragment, number in self._rendered(tuple(shape), generation):
            if number is None:
                tokens = self._fragment(fragment)
                if answering:
                    end = self._end_of_turn(tokens)
                    add(tokens[:end], Fate.TARGET)
                    tokens = tokens[end:]
                    answering = False
                add(tokens, Fate.TEMPLATE)
                continue
            piece, answering = pieces[number]
            if isinstance(piece, Image):
                add(self._fragment(fragment), Fate.TEMPLATE)
                add([IMAGE_TOKEN] * self.tokens_per_image, Fate.IMAGE)
                images.append(piece)
            else:
                add(self._texts(fragment + piece.text), Fate.TARGET if answering else Fate.PROMPT)
        return Encoded(tuple(ids), tuple(fates), tuple(images))

    def stop_ids(self) -> frozenset[int]:
        """Ids that end an answer: the end-of-turn mark of the template and the tokenizer's end."""
        asked = Sample("", (Turn("user", (Text("a"),)), Turn("assistant", (Text("b"),))))
        encoded = self.encode(asked)
        targets = [i for i, f in zip(encoded.ids, encoded.fates, strict=True) if f is Fate.TARGET]
        ends = {i for i in targets[-1:] if i in self._reserved_ids}
        if self.tokenizer.eos_token_id is not None:
            ends.add(self.tokenizer.eos_token_id)
        return frozenset(ends)

    def _render(
        self, shape: tuple[tuple[str, int], ...], generation: bool
    ) -> list[tuple[str, int | None]]:
        messages, count = [], 0
        for role, num_parts in shape:
            marks = [f"\ue000{count + i}\ue001" for i in range(num_parts)]
            messages.append({"role": role, "content": "".join(marks)})
            count += num_parts
        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                chat_template=self.template,
                add_generation_prompt=generation,
                tokenize=False,
            )
        except Exception as error:  # Jinja and template authors raise what they like
            roles = " ".join(role for role, _ in shape)
            raise ConfigError(
                f"the chat template cannot render the roles '{roles}': {error}",
                fix="choose another template (language_model.template) or change the turns",
            ) from error
        pieces: list[tuple[str, int | None]] = []
        end = 0
        for match in _PLACEHOLDER.finditer(text):
            if match.start() > end:
                pieces.append((text[end : match.start()], None))
            lead = ""
            if pieces and pieces[-1][1] is None:
                # A blank before a piece belongs to it: "ASSISTANT: yes" is learned as " yes"
                # after "ASSISTANT:", which is where generation starts.
                fragment = pieces[-1][0]
                lead = fragment[len(fragment.rstrip(" ")) :]
                pieces[-1] = (fragment.removesuffix(lead), None)
            pieces.append((lead, int(match[1])))
            end = match.end()
        if end < len(text):
            pieces.append((text[end:], None))
        if [n for _, n in pieces if n is not None] != list(range(count)):
            raise ConfigError(
                "the chat template drops or reorders a part of the conversation",
                fix="choose another template (language_model.template)",
            )
        return pieces

    def _fragment(self, text: str) -> tuple[int, ...]:
        if text not in self._fragments:
            self._fragments[text] = tuple(self.tokenizer.encode(text, add_special_tokens=False))
        return self._fragments[text]

    def _end_of_turn(self, tokens: tuple[int, ...]) -> int:
        for index, token in enumerate(tokens):
            if token in self._reserved_ids:
                return index + 1
        return 0


def _joined(turn: Turn) -> list[Text | Image]:
    """Parts of a turn with one line break between a picture and its neighbours.

    Files differ in whether the break after a picture is written out; what the model sees
    must not.
    """
    parts: list[Text | Image] = []
    for index, part in enumerate(turn.parts):
        before = turn.parts[index - 1] if index else None
        after = turn.parts[index + 1] if index + 1 < len(turn.parts) else None
        if isinstance(part, Video):
            raise ModelError(f"the model reads no videos, and this turn shows '{part.path}'")
        if isinstance(part, Image):
            if parts:
                parts.append(Text("\n"))
            parts.append(part)
            continue
        text = part.text
        if isinstance(before, Image):
            text = text.lstrip("\n ")
        if isinstance(after, Image):
            text = text.rstrip("\n ")
        if text:
            if isinstance(before, Image):
                # Merged with the text: the picture is the last token that samples can share.
                text = "\n" + text
            parts.append(Text(text))
    return parts


def truncate(encoded: Encoded, limit: int) -> Encoded:
    """Cut the end so that at most `limit` tokens stay; never through a picture's tokens.

    Raises:
        ModelError: even the part up to the last picture is longer than `limit`.
    """
    if len(encoded) <= limit:
        return encoded
    if encoded.prefix_length() > limit:
        raise ModelError(
            f"the pictures alone need {encoded.prefix_length()} tokens, the context has {limit}"
        )
    return Encoded(encoded.ids[:limit], encoded.fates[:limit], encoded.images, len(encoded) - limit)
