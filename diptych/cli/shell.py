"""How every command behaves: streams, exit codes, errors.

With `--json`, standard output is exactly one JSON object; logs and progress always go to
standard error. A number that is not finite is null there, and `not_finite` names it. Exit 0 done,
1 failed, 2 bad input or usage, 75 stopped and resumable. A user's mistake never shows a traceback
unless `--debug` asks for it.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Any

import typer
from rich.console import Console

from diptych import json_text
from diptych.errors import DiptychError

_NO_ROOM = "make room, then give the same command: it goes on where it was"
_NOT_ALLOWED = "write elsewhere, or ask for the permission"
# What an operating system refuses to write; nothing that a report would mend.
_REFUSALS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _NO_ROOM),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _NOT_ALLOWED),
}

Format = Annotated[str | None, typer.Option(help="Format by name; detected when left out.")]
Images = Annotated[
    str | None, typer.Option(help="Folder that image paths are relative to; default: the data's.")
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Device = Annotated[
    str | None,
    typer.Option(
        help="auto (a GPU where there is one), cpu, cuda, cuda:1, mps.", show_default="auto"
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        help="The model computes in fp32, bf16 or fp16; auto: bf16 on a GPU that does, else fp32.",
        show_default="auto",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PATH=VALUE", help="Change a value of the recipe; may be repeated."
    ),
]

err = Console(stderr=True)
out = Console()


@dataclass
class Failed:
    """What a command returns when it did its work and the finding is bad: exit 1."""

    result: dict[str, Any]


@contextlib.contextmanager
def explain_usage(as_json: bool) -> Iterator[None]:
    """A command that was called wrongly also answers with a JSON object, when asked for one."""
    if not as_json:
        yield
        return
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(_Tee(sys.stderr, said)):
            yield
    except SystemExit as stop:
        if stop.code == 2 and not _answered:
            lines = [line.strip(" │") for line in said.getvalue().splitlines()]
            words = " ".join(w for w in lines if w and not w.startswith(("╭", "╰")))
            _answer({"error": "UsageError", "message": words, "where": None, "fix": None})
        raise


class _Tee(io.TextIOBase):
    def __init__(self, *streams: Any):
        self.streams = streams

    def write(self, text: str) -> int:
        for stream in self.streams:
            stream.write(text)
        return len(text)

    def flush(self) -> None:
        for stream in self.streams:
            stream.flush()

    def isatty(self) -> bool:
        return bool(self.streams[0].isatty())


_answered: list[bool] = []


def another_answers() -> None:
    """Of several processes another one prints the JSON object, whatever this one ends with."""
    _answered.append(True)


def _answer(result: Any) -> None:
    _answered.append(True)
    sys.stdout.write(json_text.dumps(result, default=str) + "\n")
    sys.stdout.flush()


def command(function: Callable[..., Any]) -> Callable[..., None]:
    """Wrap a command: its return value is the JSON object; errors become exit codes.

    The function prints for people itself (to `out`) unless `json` is set.
    """

    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        as_json, debug = kwargs.get("json", False), kwargs.get("debug", False)
        quiet_libraries()
        code, result = 0, None
        # Whatever a library prints must not end up beside the JSON object.
        keep = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
        try:
            with keep:
                result = function(*args, **kwargs)
            if isinstance(result, Failed):
                code, result = 1, result.result
        except DiptychError as error:
            code, result = error.exit_code, error.to_dict()
            show_error(error)
            if debug:
                traceback.print_exc()
        except KeyboardInterrupt:
            code, result = 130, {"error": "KeyboardInterrupt", "message": "stopped"}
            err.print("stopped")
        except typer.Exit:
            raise
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            code = 0
        except Exception as error:
            if debug:
                raise
            code = 1
            result = {"error": type(error).__name__, "message": str(error)}
            advice = _REFUSALS.get(getattr(error, "errno", None) or 0)
            foreseen = "" if advice else ": an error that Diptych did not foresee"
            err.print(f"[bold red]{type(error).__name__}[/]{foreseen}")
            err.print(str(error), markup=False, highlight=False)
            err.print(f"what to do: {advice or 'run again with --debug and report the traceback'}")
        if as_json and result is not None:
            _answer(result)
        if code:
            raise typer.Exit(code)

    return wrapped


def show_error(error: DiptychError) -> None:
    """Name, fact, place and way out, on standard error."""
    err.print(f"[bold red]{type(error).__name__}[/]: ", end="")
    err.print(error.what, markup=False, highlight=False, soft_wrap=True)
    if error.where:
        err.print(f"  where: {error.where}", markup=False, highlight=False, soft_wrap=True)
    if error.fix:
        err.print(f"  what to do: {error.fix}", markup=False, highlight=False, soft_wrap=True)


def quiet_libraries() -> None:
    """Log lines of Diptych on standard error; libraries only when something is wrong."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    logging.getLogger("diptych").setLevel(logging.INFO)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1" if not err.is_terminal else "0")
