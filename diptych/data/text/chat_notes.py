"""Where a chat template makes what is learned differ from what is asked, said in words.

The two renderings, of a whole conversation and of one that awaits its answer, are compared once
for each template, on small conversations, before anything is trained.
"""

from __future__ import annotations

from diptych.data.text.chat_template import ChatTemplate, Message
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
        behind = once.text[last[1] :]
        if behind.strip() and not twice.text[first[1] :].startswith(behind.rstrip()):
            found.append(
                "an earlier answer ends otherwise than the last one: only the last one's end may "
                "be learned"
            )
    if "\tb\t" not in template.layout(probe("\tb\t"), generation=False).text:
        found.append("blanks at the ends of what is said are taken off")
    if "</think>" in template.words:
        found += _of_reasoning(template)
    if "strftime_now" in template.text:
        found.append(
            "the template writes today's date: asked on another day, the model reads other ids"
        )
    return found


def _of_reasoning(template: ChatTemplate) -> list[str]:
    thought = "<think>reason</think>b"
    if "reason" not in template.layout(probe(thought), generation=False).text:
        return ["reasoning (`<think>...</think>`) is taken out of every answer: it is not learned"]
    if "reason" not in template.layout(probe(thought, "c"), generation=False).text:
        return ["reasoning in earlier answers is taken out: that of the last one is learned"]
    return []
