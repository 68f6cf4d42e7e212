"""Redis: the online half of a feature store.

One hash an entity, `diptych:GROUP:VERSION:ID`, with the vector as raw little-endian float32
(`vector`), its event time in nanoseconds (`event_time`) and the kept fields. A write carries its
event time and is decided inside the server: an older one never replaces a newer one, whoever comes
first. Readers go by `diptych:GROUP:live`, which names the version in use and changes in one step.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np

from diptych.embed.sink import About, Shard
from diptych.errors import ConfigError, MissingExtra, SinkAway

PREFIX = "diptych"
PIPELINE = 256
"""Entities of one round trip."""
# Event times are compared as text: in Lua a number of nanoseconds would lose its last digits.
_NEWER = """
local old = redis.call('HGET', KEYS[1], 'event_time')
local new = ARGV[1]
if old and (#old > #new or (#old == #new and old > new)) then return 0 end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'event_time', new, unpack(ARGV, 3))
if ARGV[2] ~= '0' then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 1
"""


def connect(url: str) -> tuple[Any, str]:
    """(client, group) of `redis://[user:password@]HOST[:PORT][/DATABASE]/GROUP`.

    Raises:
        MissingExtra: the client library is not installed.
        ConfigError: the URL names no group.
    """
    try:
        import redis
    except ImportError:
        raise MissingExtra(
            "Redis needs its client library", fix="pip install 'diptych[redis]'"
        ) from None
    parts = urlsplit(url)
    path = [p for p in parts.path.split("/") if p]
    if not path or len(path) > 2 or (len(path) == 2 and not path[0].isdigit()):
        raise ConfigError(
            "the URL names no group of vectors",
            where=f"{parts.scheme}://{parts.hostname or ''}{parts.path}",
            fix="write redis://HOST/GROUP, or redis://HOST/DATABASE/GROUP",
        )
    group, database = path[-1], path[0] if len(path) == 2 else "0"
    if ":" in group or any(c.isspace() for c in group):
        raise ConfigError("a group's name has neither colons nor blanks", where=group)
    server = urlunsplit((parts.scheme, parts.netloc, f"/{database}", parts.query, ""))
    return redis.Redis.from_url(server, socket_timeout=30, socket_connect_timeout=5), group


def open(target: str, about: About) -> Redis:
    """`redis://HOST/GROUP`, with `?ttl_seconds=N` for entities that expire."""
    url, _, query = target.partition("?")
    ttl = 0
    for setting in filter(None, query.split("&")):
        name, _, value = setting.partition("=")
        if name != "ttl_seconds" or not value.isdigit():
            raise ConfigError(
                f"'{setting}' is no setting of a Redis sink", where=url, fix="ttl_seconds=N"
            )
        ttl = int(value) * 1000
    client, group = connect(url)
    return Redis(client, group, about, ttl)


class Redis:
    """One version of one group."""

    def __init__(self, client: Any, group: str, about: About, ttl_milliseconds: int):
        self.client = client
        self.about = about
        self.group = group
        self.ttl = ttl_milliseconds
        self.version = f"{about.what}-{about.fingerprint}"
        self._script: Any = None

    def key(self, entity: str) -> str:
        """Name of an entity's hash."""
        return f"{PREFIX}:{self.group}:{self.version}:{entity}"

    def write(self, shard: Shard) -> None:
        """See `Sink`; the version becomes the live one of a group that has none."""
        vectors = np.ascontiguousarray(shard.numbers(), dtype="<f4")
        if vectors.ndim != 2:
            raise ConfigError(
                "a matrix a row has no place in Redis", where="pool", fix="pool to one vector"
            )
        with errors_named(self.client):
            script = self.client.register_script(_NEWER)
            for start in range(0, len(shard.keys), PIPELINE):
                pipeline = self.client.pipeline(transaction=False)
                for i in range(start, min(start + PIPELINE, len(shard.keys))):
                    fields = self._fields(vectors[i], shard.rows[i])
                    script(
                        keys=[self.key(shard.keys[i])],
                        args=[str(shard.event_time_ns), str(self.ttl), *fields],
                        client=pipeline,
                    )
                pipeline.execute()
            about = {"what": self.about.what, "fingerprint": self.about.fingerprint,
                     "dim": str(vectors.shape[1])}  # fmt: skip
            self.client.hset(f"{PREFIX}:{self.group}:about:{self.version}", mapping=about)
            self.client.set(f"{PREFIX}:{self.group}:live", self.version, nx=True)

    def _fields(self, vector: np.ndarray, row: dict[str, Any]) -> list[Any]:
        found: list[Any] = ["vector", vector.tobytes()]
        for name in ("image", "text", *self.about.fields):
            value = row.get(name)
            if value is not None:
                text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                found += [name, text]
        return found

    def intact(self, number: int) -> bool:
        """Redis keeps no shards; `diptych store check` compares entity by entity."""
        return True

    def close(self) -> None:
        """Give the connections back."""
        self.client.close()


class errors_named:
    """Turns the client's errors into Diptych's."""

    def __init__(self, client: Any):
        self.client = client

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        import redis

        settings = self.client.connection_pool.connection_kwargs
        where = f"redis at {settings.get('host')}:{settings.get('port')}"
        if isinstance(error, redis.BusyLoadingError | redis.ReadOnlyError):
            raise SinkAway(f"the server is not ready: {error}", where=where) from error
        if isinstance(error, redis.ConnectionError | redis.TimeoutError):
            raise SinkAway(f"the server does not answer: {error}", where=where) from error
