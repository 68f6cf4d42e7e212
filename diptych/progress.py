"""Progress on standard error: bars for people, plain lines for logs.

One fixed-format line a step goes to standard error when that is not a terminal (a log
collector can match it with a regular expression), and always to the run's `train.log`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeVar

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

T = TypeVar("T")


class Progress:
    """Shows what runs and how long it still takes.

    Args:
        log: file that receives every line and table.
        console: where to show; standard error by default.
        quiet: show nothing (the log file is still written).
    """

    def __init__(
        self, log: Path | None = None, console: Console | None = None, quiet: bool = False
    ):
        self.console = console or Console(stderr=True)
        self.quiet = quiet
        self._log: TextIO | None = None
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            self._log = log.open("a", encoding="utf-8")

    @contextmanager
    def task(self, title: str, total: int, completed: int = 0) -> Iterator[_Task]:
        """A bar with remaining time over `total` steps."""
        bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=self.quiet or not self.console.is_terminal,
            transient=True,
        )
        with bars:
            yield _Task(bars, bars.add_task(title, total=total, completed=completed, note=""))

    def track(self, items: Iterable[T], title: str) -> Iterator[T]:
        """Iterate with a bar."""
        known = list(items)
        with self.task(title, len(known)) as task:
            for item in known:
                yield item
                task.advance()

    def line(self, text: str) -> None:
        """A log line of one step."""
        if self._log is not None:
            self._log.write(text + "\n")
            self._log.flush()
        if not self.quiet and not self.console.is_terminal:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def note(self, renderable: RenderableType) -> None:
        """Something to read: a table, a sentence."""
        if self._log is not None:
            Console(file=self._log, width=100).print(renderable)
            self._log.flush()
        if not self.quiet:
            self.console.print(renderable)


class _Task:
    def __init__(self, bars: Bars, number: Any):
        self._bars = bars
        self._number = number

    def advance(self, note: str = "", *, count: int = 1) -> None:
        """One step done, or several."""
        self._bars.update(self._number, advance=count, note=note)
