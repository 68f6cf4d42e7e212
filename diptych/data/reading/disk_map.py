"""DiskMap: a mapping that lives on disk, for what must be looked up while a file streams by.

Joining COCO's images to their annotations, or finding a repeated id, needs a mapping as
long as the data set. SQLite's unnamed database spills to a temporary file that the system
removes, so memory stays flat.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator


class DiskMap:
    """Text keys to text values, on disk, private to this object."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute("CREATE TABLE t (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")
        self._database.execute("BEGIN")

    def add(self, key: str, value: str = "") -> str | None:
        """Store a value under a new key; the value already there when the key is not new."""
        try:
            self._database.execute("INSERT INTO t VALUES (?, ?)", (key, value))
        except sqlite3.IntegrityError:
            return self.get(key)
        return None

    def get(self, key: str) -> str | None:
        """The value of a key, or None."""
        found = self._database.execute("SELECT value FROM t WHERE key = ?", (key,)).fetchone()
        return found[0] if found else None

    def pop(self, key: str) -> str | None:
        """Like `get`, and forgets the key."""
        value = self.get(key)
        if value is not None:
            self._database.execute("DELETE FROM t WHERE key = ?", (key,))
        return value

    def items(self) -> Iterator[tuple[str, str]]:
        """All that is stored, ordered by key."""
        yield from self._database.execute("SELECT key, value FROM t ORDER BY key")

    def __len__(self) -> int:
        return self._database.execute("SELECT COUNT(*) FROM t").fetchone()[0]

    def close(self) -> None:
        """Free the temporary file."""
        self._database.close()
