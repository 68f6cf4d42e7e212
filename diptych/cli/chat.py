"""`diptych chat`: a conversation in the terminal."""

from __future__ import annotations

import sys
from typing import Any

from diptych.cli.shell import err, out, show_error
from diptych.convert.published import ready
from diptych.data.pixels.image import given
from diptych.errors import ConfigError, DiptychError
from diptych.model.opened import open_model

_HELP = "/image PATH shows a picture, /reset starts over, /quit leaves"


def talk(
    name: str,
    image: str | None,
    question: str | None,
    as_json: bool,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    device: str | None = None,
    precision: str | None = None,
) -> dict[str, Any] | None:
    """One question, or turns until the user leaves."""
    shown = None if image is None else given(image)  # before the model, which takes longer
    model = open_model(ready(name), device, precision)
    if "chat" not in model.can:
        raise ConfigError(
            f"a {model.config.name} does not chat",
            where=name,
            fix=f"ask it with `{(model.command or 'diptych eval {} DATA').format(name)}`",
        )
    session = model.chat(shown, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
    if question is not None:
        answer = session.ask(question)
        if not as_json:
            out.print(answer, markup=False, highlight=False)
            _show_working(session.working)
        return {"question": question, **_said(answer, session.working)}
    interactive = sys.stdin.isatty()
    if interactive:
        err.print(f"[dim]{_HELP}[/]")
    turns = []
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except EOFError:
            break
        if not line:
            continue
        if line in ("/quit", "/exit"):
            break
        try:
            if line == "/reset":
                session.reset()
                err.print("[dim]forgotten[/]")
            elif line.startswith("/image"):
                session.show(line.removeprefix("/image").strip())
                err.print("[dim]picture added to the next question[/]")
            elif line.startswith("/"):
                err.print(f"[dim]unknown command; {_HELP}[/]")
            else:
                pieces = []
                for piece in session.stream(line):
                    pieces.append(piece)
                    if not as_json:
                        sys.stdout.write(piece)
                        sys.stdout.flush()
                if not as_json:
                    sys.stdout.write("\n")
                    _show_working(session.working)
                turns.append({"question": line, **_said("".join(pieces), session.working)})
        except DiptychError as error:
            # One bad picture or an overlong question must not end the conversation.
            show_error(error)
    return {"turns": turns} if as_json else None


def _said(answer: str, working: str) -> dict[str, str]:
    return {"answer": answer, "working": working} if working else {"answer": answer}


def _show_working(working: str) -> None:
    """Below the answer, for people who look at a terminal."""
    if working and sys.stdout.isatty():
        err.print(f"(worked out: {working})", style="dim", markup=False, highlight=False)
