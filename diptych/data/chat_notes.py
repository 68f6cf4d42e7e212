"""Where a chat template makes what is learned differ from what is asked, said in words.

The two renderings, of a whole conversation and of one that awaits its answer, are compared once
for each template, on small conversations, before anything is trained.
"""

from __future__ import annotations

from diptych.data.chat_template import ChatTemplate, Message
from diptych.errors import ConfigError


def probe(*answers: str) -> list[Message]:
    """A conversation with these answers."""
    return [
        {"role": role, "content": said}
        for answer in answers
        for role, said in (("user", "a"), ("assistant", answer))
    ]


def notes(template: ChatTemplate, lead: str, *, ends: bool) -> list[str]:
    """One sentence for every difference; mostly none.

    Args:
        lead: what stands between the invitation and the last answer.
        ends: whether an answer ends with a token at which generation stops.
    """
    found = []
    once = template.layout(probe("b"), generation=False)
    asked = template.render(probe("b")[:1], generation=True)
    if not once.text.startswith(asked):
        found.append(
            "a question that awaits its answer is rendered otherwise than one that has it: what is "
            "asked is not what was learned"
        )
    if lead.strip():
        found.append(
            f"the template writes {lead!r} between its invitation and the last answer: that is "
            "learned and generated, and taken off again in `eval` and `chat`"
        )
    if not ends:
        found.append(
            "the template ends an answer with no token at which generation stops: a model learns "
            "no end (write {{ eos_token }} behind the answer)"
        )
    try:
        twice = template.layout(probe("b", "c"), generation=False)
    except ConfigError as error:
        found.append(f"two turns cannot be rendered: {error.what}")
        return found
    first, last = twice.spans[1], once.spans[1]
    if first and last:
        earlier = twice.text[max(0, twice.starts[1]) : first[0]]
        if earlier != lead:
            found.append(
                f"earlier answers of a conversation stand behind {earlier!r}, the last one behind "
                f"{lead!r}: ask one question a row, or choose a template that treats them alike"
            )
        if not twice.text.startswith(once.text[: once.starts[1]]):
            found.append("the beginning of a conversation changes when it goes on")
    blanks = template.layout(probe(" b "), generation=False).text
    if " b " not in blanks:
        found.append("blanks at the ends of what is said are taken off")
    if "</think>" in template.words:
        told = probe("<think>x</think>b", "c")
        if "x" not in template.layout(told, generation=False).text.split("b")[0].split("a")[-1]:
            found.append(
                "reasoning in earlier answers is taken out: that of the last one is learned"
            )
    return found
