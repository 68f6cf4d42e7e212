"""A folder belongs to one run, and one process at a time works in it.

Training, caption filtering and the demonstration all ask here before they write anything.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from diptych.errors import RunTaken

log = logging.getLogger(__name__)

WAIT_SECONDS = 10.0
"""A killed run's decode workers hold its lock until they notice, which takes them five seconds."""

_locks: dict[Path, FileLock] = {}
"""One lock a folder, so that a run and the trainer inside it hold the same one."""


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Lock the folder (made when missing) while the block runs; a process may enter it twice.

    Raises:
        RunTaken: another process works in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = folder.resolve()
    lock = _locks.setdefault(place, FileLock(place / "lock"))
    try:
        lock.acquire(timeout=WAIT_SECONDS)
    except Timeout:
        raise RunTaken(
            "another process works in this folder",
            where=str(folder),
            fix="wait until it is done, or name another folder",
        ) from None
    try:
        yield
    finally:
        lock.release()


def hold(
    folder: Path,
    known: Any,
    wanted: Any,
    *,
    what: str = "settings",
    passes: Callable[[str], bool] = lambda key: False,
) -> list[str]:
    """Hold what is to be done in a folder to what the folder is for.

    Args:
        known, wanted: plain data that describe both.
        passes: whether a difference at this dotted key is no other run.

    Returns:
        Dotted keys of the differences that pass.

    Raises:
        RunTaken: other keys differ; names them, with both values where they are short.
    """
    found = differences(known, wanted)
    other = {key: pair for key, pair in found.items() if not passes(key)}
    if other:
        shown = [f"{key}{_shown(*pair)}" for key, pair in list(other.items())[:5]]
        more = f" and {len(other) - 5} more" if len(other) > 5 else ""
        raise RunTaken(
            f"the folder holds a run with other {what}: {', '.join(shown)}{more}",
            where=str(folder),
            fix="name a new folder, or repeat that run with its own settings",
        )
    return list(found)


def differences(known: Any, wanted: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted key -> both values, where two trees of plain data differ (None where one has none)."""
    if isinstance(known, list) and isinstance(wanted, list):
        known, wanted = _by_name(known), _by_name(wanted)
    if not (isinstance(known, dict) and isinstance(wanted, dict)):
        return {} if known == wanted else {path: (known, wanted)}
    found: dict[str, tuple[Any, Any]] = {}
    for key in dict.fromkeys((*known, *wanted)):
        inner = f"{path}.{key}" if path else str(key)
        found |= differences(known.get(key), wanted.get(key), inner)
    return found


def _by_name(items: list[Any]) -> dict[str, Any]:
    """Items of a list by their name, as overrides address them, or by number."""
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    return {str(number if name is None else name): item
            for number, (name, item) in enumerate(zip(names, items, strict=True))}  # fmt: skip


def _shown(known: Any, wanted: Any) -> str:
    short = [str(v) for v in (known, wanted) if not isinstance(v, dict | list)]
    if len(short) < 2 or max(map(len, short)) > 40:
        return ""
    return f" ({short[0]} there, {short[1]} here)"
