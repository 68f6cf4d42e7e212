"""Progress on standard error: one bar for people, a plain line now and then for logs.

A bar with the remaining time is shown on a terminal, for work that takes longer than two seconds.
Where standard error is no terminal, and in the run's log file, there is one line in ten seconds, in
a fixed format that a log collector can match with a regular expression.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeVar

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

T = TypeVar("T")
SHOWN_AFTER_SECONDS = 2.0
"""Shorter work shows no bar."""
LINE_SECONDS = 10.0
"""Between two lines of a log."""


class Progress:
    """Shows what runs and how long it still takes.

    Args:
        log: file that receives every line and table.
        console: where to show; standard error by default.
        quiet: show nothing (the log file is still written).
        every_seconds: least time between two lines.
    """

    def __init__(
        self,
        log: Path | None = None,
        console: Console | None = None,
        quiet: bool = False,
        every_seconds: float = LINE_SECONDS,
    ):
        self.console = console or Console(stderr=True)
        self.quiet = quiet
        self.every_seconds = every_seconds
        self._said_at: float | None = None
        self._log: TextIO | None = None
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            self._log = log.open("a", encoding="utf-8")

    @contextmanager
    def task(self, title: str, total: int | None, completed: int = 0) -> Iterator[Task]:
        """A bar with remaining time over `total` steps; None where nobody knows how many."""
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
        number = bars.add_task(title, total=total, completed=completed, note="")
        try:
            yield Task(bars, number)
        finally:
            bars.stop()

    def track(self, items: Iterable[T], title: str) -> Iterator[T]:
        """Iterate with a bar."""
        total = len(items) if isinstance(items, Sized) else None
        with self.task(title, total) as task:
            for item in items:
                yield item
                task.advance()

    def line(self, text: str, *, last: bool = False) -> None:
        """A log line of one step; left out where the one before is not old enough, unless it is
        the last."""
        now = time.monotonic()
        if not last and self._said_at is not None and now - self._said_at < self.every_seconds:
            return
        self._said_at = now
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


class Task:
    """Work that is shown as a bar once it has taken a while."""

    def __init__(self, bars: Bars, number: Any):
        self._bars = bars
        self._number = number
        self._shown_at = time.monotonic() + SHOWN_AFTER_SECONDS

    def advance(self, note: str = "", *, count: int = 1) -> None:
        """One step done, or several."""
        self._bars.update(self._number, advance=count, note=note)
        if not self._bars.live.is_started and time.monotonic() >= self._shown_at:
            self._bars.start()
