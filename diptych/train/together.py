"""The processes of one run end together, and know of one another while they wait.

A collective has no way out: a process that waits in one for another that failed waits for ever.
So every process looks twice a second into the store that PyTorch's processes share. The one that
fails writes its error there and leaves; the others are woken and raise the same error. One that
waits for the first process looks there, too, instead of waiting in a collective: reading data,
encoding pictures and measuring have no time limit, and a sign of life.
"""

from __future__ import annotations

import builtins
import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from diptych import errors
from diptych.errors import DiptychError, ProcessLost

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
"""How often a process looks whether another one failed."""
NOTICE_SECONDS = 5.0
"""How long one that failed waits until the others know; a launcher ends them when it leaves."""
LEAVE_SECONDS = 15.0
"""A process that does not come to its end by then, as it hangs in a device or a disk, is ended."""
TELL_SECONDS = 60.0
"""How often a process says that it waits for the first one."""
LOST_SECONDS = 120.0
"""The first process gives a sign of life twice a second; without one for so long it is gone."""

_GONE = ("gloo", "nccl", "connection closed by peer", "connection reset by peer")
"""What messages of collectives say when another process has left."""

_active: list[Together] = []
_numbers = iter(range(2**31))


class _Ended(BaseException):
    """Another process failed; no error, so that nobody takes it for a bad row."""


class Together:
    """What one process knows of the others while they work on one run.

    Args:
        rank, num: this process and how many there are.
        number: how many times this process has joined others before, the same in all of them.
    """

    def __init__(self, rank: int, num: int, number: int):
        self.rank = rank
        self.num = num
        self.failure: dict[str, Any] | None = None
        self.settling = False
        self._ends = 0.0
        self._prefix = f"diptych/{number}/"
        # A store answers one thread at a time.
        shared = dist.distributed_c10d._get_default_store()
        self._store, self._watched = (shared.clone() for _ in range(2))  # type: ignore[attr-defined]
        self._left = threading.Event()
        self._lock = threading.Lock()
        self._num_said = 0
        self._handler: Any = None
        self._watcher = threading.Thread(target=self._watch, name="watch processes", daemon=True)

    def enter(self) -> None:
        """Begin to watch."""
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGTERM, self._stop)
        self._watcher.start()

    def leave(self) -> None:
        """Stop watching; the first process stays until the others have left, whose store it may
        keep."""
        self._left.set()
        self._watcher.join(LOOK_SECONDS * 4)
        if self._handler is not None and self.failure is None:
            signal.signal(signal.SIGTERM, self._handler)
        with contextlib.suppress(Exception):
            self._count("left", 1)
            if self.rank == 0 and self.failure is None:
                self._until("left", NOTICE_SECONDS)

    # -- waiting for the first process ------------------------------------------------------

    def said(self, value: Any) -> Any:
        """The first process's value (plain data), for all; it does not wait, the others do.

        Raises:
            ProcessLost: it gives no sign of life any more.
        """
        key = f"{self._prefix}said/{self._num_said}"
        self._num_said += 1
        if self.rank == 0:
            self._store.set(key, json.dumps(value))
            return value
        begun = told = alive = time.monotonic()
        beat, pause = -1, 0.01
        while not self._store.check([key]):
            self.raise_if_failed()
            time.sleep(pause)
            pause = min(2 * pause, LOOK_SECONDS)
            now = time.monotonic()
            if (newest := self._count("beat", 0)) != beat:
                beat, alive = newest, now
            elif now - alive > LOST_SECONDS:
                raise ProcessLost(
                    f"the first process has given no sign of life for {now - alive:.0f} s",
                    fix="see what it printed last, then give the same command: it goes on",
                )
            if now - told > TELL_SECONDS:
                told = now
                log.info(
                    "process %d has waited %.0f min for the first one, which is at work",
                    self.rank, (now - begun) / 60,
                )  # fmt: skip
        return json.loads(self._store.get(key))

    # -- ending together --------------------------------------------------------------------

    def raise_if_failed(self) -> None:
        """Begin to end where another process has failed."""
        if self.failure is not None and not self.settling:
            raise _Ended

    def begin_to_end(self) -> None:
        """From here on neither a launcher nor the others interrupt this process for a while."""
        self._ends = time.monotonic() + LEAVE_SECONDS
        self.settling = True

    def settle(self, error: BaseException) -> BaseException:
        """The error that all processes end with, where this one ends with `error`."""
        self.begin_to_end()
        if gone := _is_gone(error):
            error = ProcessLost(
                "another process of this run ended without a word",
                where=f"process {self.rank} of {self.num} waited for it",
                fix="see whether it ran out of memory (the kernel's log says so), then give "
                "the same command: it goes on",
            )
        try:
            if gone:  # the one that left may have said why
                self._until_told(4 * LOOK_SECONDS)
            if self.failure is None and not isinstance(error, _Ended):
                told = json.dumps({"rank": self.rank, **_packed(error)})
                self._learn(json.loads(self._store.compare_set(self._key, "", told)))
            self._until("seen", NOTICE_SECONDS)
        except RuntimeError:  # the store left with the process that kept it
            log.debug("the processes' store is gone", exc_info=True)
        if self.failure is None or self.failure["rank"] == self.rank:
            return error
        log.error(
            "process %d of %d failed with %s, and so all end",
            self.failure["rank"], self.num, self.failure["name"],
        )  # fmt: skip
        return _unpacked(self.failure)

    @property
    def _key(self) -> str:
        return f"{self._prefix}failed"

    def _watch(self) -> None:
        store = self._watched
        while not self._left.wait(LOOK_SECONDS):
            try:
                if self.rank == 0:
                    store.add(f"{self._prefix}beat", 1)
                if not store.check([self._key]):
                    continue
                self._learn(json.loads(store.get(self._key)), store)
            except RuntimeError:
                return  # the process that kept the store has left; so do the connections to it
            self._wake()
            return

    def _wake(self) -> None:
        """End this process's work, wherever its main thread is."""
        assert self.failure is not None
        if self.failure["rank"] != self.rank:
            if self._handler is not None and callable(signal.getsignal(signal.SIGTERM)):
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
            with contextlib.suppress(Exception):  # NCCL; gloo ends when the connection does
                dist.distributed_c10d._get_default_group().abort()
        if not self._left.wait(LEAVE_SECONDS):
            error = _unpacked(self.failure)
            print(f"{self.failure['name']}: {error}", file=sys.stderr, flush=True)
            os._exit(getattr(error, "exit_code", 1))

    def _learn(self, failure: dict[str, Any], store: Any = None) -> None:
        with self._lock:
            if self.failure is None:
                self.failure = failure
                (store or self._store).add(f"{self._prefix}seen", 1)

    def _count(self, what: str, more: int) -> int:
        return int(self._store.add(f"{self._prefix}{what}", more))

    def _until(self, what: str, seconds: float) -> None:
        """Wait until all processes have counted themselves there, or have left."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            gone = self._count("left", 0) if what != "left" else 0
            if self._count(what, 0) + gone >= self.num:
                return
            time.sleep(0.05)

    def _until_told(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self.failure is None and time.monotonic() < end:
            if self._store.check([self._key]):
                self._learn(json.loads(self._store.get(self._key)))
            time.sleep(0.05)

    def _stop(self, signum: int, frame: Any) -> None:
        """SIGTERM: from `_wake`, from a launcher that saw the other one leave, or from a person."""
        if self.settling and time.monotonic() < self._ends:
            return  # this one ends already, and has an error to tell
        self.raise_if_failed()
        if callable(self._handler):
            self._handler(signum, frame)
        else:
            signal.signal(signum, self._handler or signal.SIG_DFL)
            os.kill(os.getpid(), signum)


@contextmanager
def joined(rank: int, num: int) -> Iterator[Together]:
    """Work with the other processes; an error of one is the error of all. May be entered twice.

    Raises:
        ProcessLost: another process ended without a word.
    """
    if _active:
        yield _active[0]
        return
    ours = Together(rank, num, next(_numbers))
    _active.append(ours)
    try:
        ours.enter()
        try:
            yield ours
        except BaseException:
            ours.begin_to_end()
            raise
    except BaseException as error:
        ended = ours.settle(error)
        if ended is error:
            raise
        raise ended from None
    finally:
        _active.clear()
        ours.leave()


def raise_if_failed() -> None:
    """For handlers of signals: begin to end where another process has failed."""
    if _active:
        _active[0].raise_if_failed()


def _is_gone(error: BaseException) -> bool:
    said = str(error).lower()
    return (
        isinstance(error, RuntimeError)
        and not isinstance(error, DiptychError)
        and any(word in said for word in _GONE)
    )


def _packed(error: BaseException) -> dict[str, Any]:
    """An error as plain data that another process reads: nothing in it is executed there."""
    own = error.to_dict() if isinstance(error, DiptychError) else None
    words: list[Any] = [str(error)]
    if isinstance(error, SystemExit):
        words = [error.code]
    elif isinstance(error, OSError):
        words = list(error.__reduce__()[1])
    if not all(isinstance(word, str | int | None) for word in words):
        words = [str(error)]
    return {"name": type(error).__name__, "text": str(error), "words": words, "own": own}


def _unpacked(failure: dict[str, Any]) -> BaseException:
    """The error that `_packed` described; one that is not ours by its name and words."""
    name, text, own = failure["name"], failure["text"], failure["own"]
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, DiptychError) and own is not None:
        return kind(own["message"], where=own["where"], fix=own["fix"])
    kind = _KNOWN.get(name) or getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, _KINDS):
        return kind(*failure["words"])
    return ProcessLost(f"process {failure['rank']} failed with {name}: {text}")


_KNOWN = {"OutOfMemoryError": torch.OutOfMemoryError}
_KINDS = (OSError, MemoryError, KeyboardInterrupt, SystemExit, torch.OutOfMemoryError)
"""Errors that are not ours and that the one who reads them tells apart: disk, memory, a stop."""
