"""Reading vectors of a Redis group by id, and choosing which version is read.

Shapes: n ids, D width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from diptych.embed.sinks.redis import PIPELINE, PREFIX, connect, errors_named
from diptych.errors import DataError

# The version and its vectors in one step, so that one answer never mixes two versions.
_READ = """
local version = ARGV[1]
if version == '' then version = redis.call('GET', KEYS[1] .. 'live') end
if not version then return false end
local found = {version}
for i = 2, #ARGV do
  found[i] = redis.call('HGET', KEYS[1] .. version .. ':' .. ARGV[i], 'vector')
end
return found
"""


class FeatureStore:
    """Vectors by id, from the version that is live.

    Args:
        url: `redis://HOST/GROUP`, as `diptych embed --to` takes it.
        version: read this one instead, for example the one before.
        fresh_seconds: for how long the name of the live version is remembered, so that a read is
            one round trip; another process's `switch` is seen that much later at most. 0 asks
            every time.

    Raises:
        ConfigError: the URL names no group.
        DataError: the group has no such version.
        SinkAway: the server does not answer.
    """

    def __init__(self, url: str, version: str | None = None, *, fresh_seconds: float = 1.0):
        self.client, self.group = connect(url)
        self._read = self.client.register_script(_READ)
        self._version = version
        self._fresh_seconds = fresh_seconds
        self._known: tuple[str, float] = ("", -math.inf)
        if version is not None:
            self._hold_to(version)

    @property
    def version(self) -> str:
        """The version that is read: the one given, or the live one at this moment."""
        if self._version is not None:
            return self._version
        with errors_named(self.client):
            live = self.client.get(f"{PREFIX}:{self.group}:live")
        if live is None:
            raise self._empty()
        self._known = (live.decode(), time.monotonic() + self._fresh_seconds)
        return self._known[0]

    def versions(self) -> dict[str, dict[str, str]]:
        """Every version of the group, with what it holds, its fingerprint and width."""
        start = f"{PREFIX}:{self.group}:"
        with errors_named(self.client):
            names = sorted(name.decode() for name in self.client.smembers(f"{start}versions"))
            return {
                name: {
                    k.decode(): v.decode()
                    for k, v in self.client.hgetall(f"{start}about:{name}").items()
                }
                for name in names
            }

    def switch(self, version: str) -> str:
        """Make another version the live one, in one step; returns the one that was."""
        self._hold_to(version)
        with errors_named(self.client):
            before = self.client.set(f"{PREFIX}:{self.group}:live", version, get=True)
        self._known = ("", -math.inf)
        return before.decode() if before else ""

    def get(self, ids: Sequence[str]) -> tuple[np.ndarray, list[str]]:
        """Vectors float32 [n, D] of those that are there, and the ids that are not.

        A missing id's row is NaN, so that a forgotten check does not go unnoticed.
        """
        version, is_fresh = self._remembered()
        if version and not is_fresh and len(ids) == 1:
            found, version = self._checked(ids[0], version)
        else:
            found = self._vectors(ids, version if is_fresh else self.version)
        if self._version is None and version and None in found:
            # Perhaps another version is live by now, and this one is being removed.
            self._known = ("", -math.inf)
            found = self._vectors(ids, "")
        missing = [i for i, value in zip(ids, found, strict=True) if value is None]
        width = next((len(v) // 4 for v in found if v is not None), None)
        width = self._width(version) if width is None else width
        vectors = np.full((len(ids), width), np.nan, np.float32)
        for row, value in zip(vectors, found, strict=True):
            if value is not None:
                row[:] = np.frombuffer(value, "<f4")
        return vectors, missing

    def _remembered(self) -> tuple[str, bool]:
        """The version to read, and whether that is still sure; empty leaves it to the server."""
        if self._version is not None:
            return self._version, True
        if not self._fresh_seconds:
            return "", True
        version, until = self._known
        return version, time.monotonic() < until

    def _checked(self, id: str, version: str) -> tuple[list[bytes | None], str]:
        """One vector of this version and, in the same round trip, which version is live."""
        start = f"{PREFIX}:{self.group}:"
        with errors_named(self.client), self.client.pipeline(transaction=False) as pipeline:
            pipeline.get(f"{start}live")
            pipeline.hget(f"{start}{version}:{id}", "vector")
            live, found = pipeline.execute()
        if live is None:
            raise self._empty()
        self._known = (live.decode(), time.monotonic() + self._fresh_seconds)
        if self._known[0] == version:
            return [found], version
        return self._vectors([id], self._known[0]), self._known[0]

    def _vectors(self, ids: Sequence[str], version: str) -> list[bytes | None]:
        start = f"{PREFIX}:{self.group}:"
        with errors_named(self.client):
            if version and len(ids) == 1:
                return [self.client.hget(f"{start}{version}:{ids[0]}", "vector")]
            found: list[bytes | None] = []
            for first in range(0, len(ids), PIPELINE):
                args = [version, *ids[first : first + PIPELINE]]
                answer = self._read(keys=[start], args=args)
                if answer is None:
                    raise self._empty()
                # What the server found live for the first ids holds for all of them.
                version = answer[0].decode()
                found += answer[1:]
        return found

    def _width(self, version: str) -> int:
        """Of vectors of which none was found."""
        name = version or self.version
        with errors_named(self.client):
            found = self.client.hget(f"{PREFIX}:{self.group}:about:{name}", "dim")
        return int(found or 0)

    def _hold_to(self, version: str) -> None:
        """Raises DataError when there is no such version."""
        with errors_named(self.client):
            is_there = self.client.exists(f"{PREFIX}:{self.group}:about:{version}")
        if not is_there:
            raise self._unknown(version)

    def fields(self, entity: str) -> dict[str, Any] | None:
        """Everything that is kept of one id, or None."""
        with errors_named(self.client):
            found = self.client.hgetall(f"{PREFIX}:{self.group}:{self.version}:{entity}")
        if not found:
            return None
        values: dict[str, Any] = {
            k.decode(): v.decode() for k, v in found.items() if k != b"vector"
        }
        values["vector"] = np.frombuffer(found[b"vector"], "<f4").copy()
        values["event_time"] = int(values["event_time"])
        return values

    @property
    def _where(self) -> str:
        settings = self.client.connection_pool.connection_kwargs
        return f"redis at {settings.get('host')}:{settings.get('port')}"

    def _empty(self) -> DataError:
        return DataError(
            f"the group '{self.group}' is empty",
            where=self._where,
            fix="write to it with `diptych embed ... --to redis://HOST/GROUP`",
        )

    def _unknown(self, version: str) -> DataError:
        return DataError(
            f"the group '{self.group}' has no version '{version}'",
            where=self._where,
            fix=f"it has: {', '.join(self.versions()) or 'none'}",
        )
