"""Reading vectors of a Redis group by id, and choosing which version is read.

Shapes: n ids, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from diptych.embed.sinks.redis import PIPELINE, PREFIX, connect, errors_named, escaped
from diptych.errors import DataError


class FeatureStore:
    """Vectors by id, from the version that is live.

    Args:
        url: `redis://HOST/GROUP`, as `diptych embed --to` takes it.
        version: read this one instead, for example the one before.

    Raises:
        ConfigError: the URL names no group.
        DataError: the group has no such version.
        SinkAway: the server does not answer.
    """

    def __init__(self, url: str, version: str | None = None):
        self.client, self.group = connect(url)
        self._version = version
        if version is not None and version not in self.versions():
            raise self._unknown(version)

    @property
    def version(self) -> str:
        """The version that is read: the one given, or the live one at this moment."""
        if self._version is not None:
            return self._version
        with errors_named(self.client):
            live = self.client.get(f"{PREFIX}:{self.group}:live")
        if live is None:
            raise DataError(
                f"the group '{self.group}' is empty",
                where=self._where,
                fix="write to it with `diptych embed ... --to redis://HOST/GROUP`",
            )
        return live.decode()

    def versions(self) -> dict[str, dict[str, str]]:
        """Every version of the group, with what it holds, its fingerprint and width."""
        start = f"{PREFIX}:{self.group}:about:"
        with errors_named(self.client):
            names = sorted(self.client.scan_iter(f"{escaped(start)}*"))
            return {
                name.decode().removeprefix(start): {
                    k.decode(): v.decode() for k, v in self.client.hgetall(name).items()
                }
                for name in names
            }

    def switch(self, version: str) -> str:
        """Make another version the live one, in one step; returns the one that was."""
        if version not in self.versions():
            raise self._unknown(version)
        with errors_named(self.client):
            before = self.client.set(f"{PREFIX}:{self.group}:live", version, get=True)
        return before.decode() if before else ""

    def get(self, ids: Sequence[str]) -> tuple[np.ndarray, list[str]]:
        """Vectors float32 [n, D] of those that are there, and the ids that are not.

        A missing id's row is NaN, so that a forgotten check does not go unnoticed.
        """
        prefix = f"{PREFIX}:{self.group}:{self.version}:"
        found: list[bytes | None] = []
        with errors_named(self.client):
            for start in range(0, len(ids), PIPELINE):
                pipeline = self.client.pipeline(transaction=False)
                for entity in ids[start : start + PIPELINE]:
                    pipeline.hget(prefix + entity, "vector")
                found += pipeline.execute()
        missing = [i for i, value in zip(ids, found, strict=True) if value is None]
        width = next((len(v) // 4 for v in found if v is not None), 0)
        vectors = np.full((len(ids), width), np.nan, np.float32)
        for row, value in zip(vectors, found, strict=True):
            if value is not None:
                row[:] = np.frombuffer(value, "<f4")
        return vectors, missing

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

    def _unknown(self, version: str) -> DataError:
        return DataError(
            f"the group '{self.group}' has no version '{version}'",
            where=self._where,
            fix=f"it has: {', '.join(self.versions()) or 'none'}",
        )
