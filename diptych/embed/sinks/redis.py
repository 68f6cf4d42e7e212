"""Redis: the online half of a feature store.

One hash an entity, `diptych:GROUP:VERSION:ID`, with the vector as raw little-endian float32
(`vector`), its event time in nanoseconds (`event_time`) and the kept fields. A write carries its
event time and is decided inside the server: an older one never replaces a newer one, whoever comes
first. Readers go by `diptych:GROUP:live`, which names the version in use and changes in one step.

With `?search=yes` the same step puts the vector into a vector set, `diptych:GROUP:near:VERSION`,
which finds neighbours without comparing all (Redis 8 and newer). Without it, searching reads every
hash of the version.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import numpy as np

from diptych.data.batching.chunks import in_chunks
from diptych.embed.sink import About, Shard, as_text, without_secrets
from diptych.embed.vector_index import Hit, Nearest, in_order
from diptych.errors import ConfigError, DataError, MissingExtra, SinkAway

PREFIX = "diptych"
PIPELINE = 256
"""Entities of one round trip."""
# Event times are compared as text: in Lua a number of nanoseconds would lose its last digits.
_NEWER = """
local old = redis.call('HGET', KEYS[1], 'event_time')
local new = ARGV[1]
if old and (#old > #new or (#old == #new and old > new)) then return 0 end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'event_time', new, unpack(ARGV, 5))
if ARGV[2] ~= '0' then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
if ARGV[3] ~= '' then
  redis.call('VADD', ARGV[3], 'FP32', ARGV[6], ARGV[4], 'NOQUANT')
end
return 1
"""


OWN = ("ttl_seconds", "search")
"""Settings in a URL's query that are the sink's; those that begin with ssl_ are the client's."""


def connect(url: str) -> tuple[Any, str]:
    """(client, group) of `redis[s]://[user:password@]HOST[:PORT][/DATABASE]/GROUP[?SETTINGS]`.

    Raises:
        MissingExtra: the client library is not installed.
        ConfigError: the URL names no group, or has an unknown setting.
    """
    try:
        import redis
    except ImportError:
        raise MissingExtra(
            "Redis needs its client library", fix="pip install 'diptych[redis]'"
        ) from None
    where = without_secrets(url.partition("?")[0])
    parts = urlsplit(url)
    path = [p for p in parts.path.split("/") if p]
    is_group = 1 <= len(path) <= 2 and (len(path) == 1 or path[0].isdigit())
    if parts.scheme not in ("redis", "rediss") or not parts.netloc or not is_group:
        raise ConfigError(
            "the URL names no group of vectors",
            where=where,
            fix="write redis://HOST/GROUP, or redis://HOST/DATABASE/GROUP",
        )
    group, database = path[-1], path[0] if len(path) == 2 else "0"
    if ":" in group or any(c.isspace() for c in group):
        raise ConfigError("a group's name has neither colons nor blanks", where=group)
    settings = parse_qsl(parts.query, keep_blank_values=True)
    for name, _ in settings:
        if name not in OWN and not name.startswith("ssl_"):
            raise ConfigError(
                f"'{name}' is no setting of Redis here",
                where=where,
                fix="ttl_seconds=N, search=yes, or the client's ssl_ca_certs and the like",
            )
    query = urlencode([(name, value) for name, value in settings if name not in OWN])
    server = urlunsplit((parts.scheme, parts.netloc, f"/{database}", query, ""))
    return redis.Redis.from_url(server, socket_timeout=30, socket_connect_timeout=5), group


def open(target: str, about: About) -> Redis:
    """`redis://HOST/GROUP`, with `?ttl_seconds=N` for entities that expire, or `?search=yes`.

    Raises:
        ConfigError: the settings do not go together, or the server cannot do them.
        SinkAway: the server does not answer.
    """
    client, group = connect(target)
    where = without_secrets(target.partition("?")[0])
    settings = dict(parse_qsl(urlsplit(target).query, keep_blank_values=True))
    seconds, near = settings.get("ttl_seconds", "0"), settings.get("search", "no")
    if not seconds.isdigit() or near not in ("yes", "no"):
        raise ConfigError(
            "a setting has no such value", where=where, fix="ttl_seconds=N or search=yes"
        )
    ttl = int(seconds) * 1000
    if ttl and near == "yes":
        raise ConfigError(
            "what expires cannot be in a vector set, which keeps its members",
            where=where,
            fix="leave out ttl_seconds or search",
        )
    with errors_named(client):
        # A set that is there is kept whole, whoever writes.
        is_near = near == "yes" or bool(client.exists(f"{PREFIX}:{group}:near:{about.version}"))
        if is_near and not client.command_list(pattern="vadd"):
            raise ConfigError(
                "this server has no vector sets",
                where=where,
                fix="use Redis 8 or newer, or search without: leave out search=yes",
            )
        if is_near and ttl:
            raise ConfigError(
                "these vectors are in a vector set, which keeps its members",
                where=where,
                fix="leave out ttl_seconds",
            )
    return Redis(client, group, about, ttl, is_near)


def index(target: str, version: str | None = None) -> Stored:
    """`redis://HOST/GROUP` for searching; without a version the live one.

    Raises:
        DataError: there are no vectors, or not of that version.
        SinkAway: the server does not answer.
    """
    client, group = connect(target)
    with errors_named(client):
        live = client.get(f"{PREFIX}:{group}:live")
        version = version or (live.decode() if live else None)
        found = {k.decode(): v.decode() for k, v in client.hgetall(
            f"{PREFIX}:{group}:about:{version}").items()}  # fmt: skip
    if not found:
        there = "no vectors" if version is None else f"no version '{version}'"
        raise DataError(
            f"the group '{group}' has {there}",
            where=without_secrets(target.partition("?")[0]),
            fix="write some with `diptych embed ... --to redis://HOST/GROUP`",
        )
    about = About.from_dict(json.loads(found["embedder"]))
    roots = {k.removeprefix("root:"): v for k, v in found.items() if k.startswith("root:")}
    return Stored(client, group, about, roots)


class Redis:
    """One version of one group."""

    def __init__(
        self, client: Any, group: str, about: About, ttl_milliseconds: int, near: bool = False
    ):
        self.client = client
        self.about = about
        self.group = group
        self.ttl = ttl_milliseconds
        self.near = f"{PREFIX}:{group}:near:{about.version}" if near else ""
        self.version = about.version

    def key(self, entity: str) -> str:
        """Name of an entity's hash."""
        return f"{PREFIX}:{self.group}:{self.version}:{entity}"

    def write(self, shard: Shard) -> list[dict[str, Any]]:
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
                        args=[
                            str(shard.event_time_ns), str(self.ttl), self.near, shard.keys[i],
                            *fields,
                        ],
                        client=pipeline,
                    )  # fmt: skip
                pipeline.execute()
            about = {
                "what": self.about.what, "fingerprint": self.about.fingerprint,
                "dim": str(vectors.shape[1]), "embedder": json.dumps(self.about.to_dict()),
                f"root:{self.about.data}": self.about.root,
            }  # fmt: skip
            self.client.hset(f"{PREFIX}:{self.group}:about:{self.version}", mapping=about)
            self.client.sadd(f"{PREFIX}:{self.group}:versions", self.version)
            self.client.set(f"{PREFIX}:{self.group}:live", self.version, nx=True)
        return []

    def _fields(self, vector: np.ndarray, row: dict[str, Any]) -> list[Any]:
        # The script takes the vector for its set from this place.
        found: list[Any] = ["vector", vector.tobytes(), "data", self.about.data]
        for name in ("image", "text", *self.about.fields):
            value = as_text(row.get(name))
            if value is not None:
                found += [name, value]
        return found

    def intact(self, number: int) -> bool:
        """Whether the version is there at all: Redis keeps no shards, and `diptych store check`
        compares entity by entity."""
        with errors_named(self.client):
            return bool(self.client.exists(f"{PREFIX}:{self.group}:about:{self.version}"))

    def finish(self) -> None:
        """Put into the vector set what was written before there was one."""
        if not self.near:
            return
        with errors_named(self.client):
            members = self.client.execute_command("VCARD", self.near) or 0
        every = sum(len(keys) for keys, _ in entities(self.client, self.group, self.version, []))
        if int(members) >= every:
            return
        for keys, values in entities(self.client, self.group, self.version, ["vector"]):
            with errors_named(self.client):
                pipeline = self.client.pipeline(transaction=False)
                for key, (vector,) in zip(keys, values, strict=True):
                    if vector:
                        pipeline.execute_command("VADD", self.near, "FP32", vector, key, "NOQUANT")
                pipeline.execute()

    def close(self) -> None:
        """Give the connections back."""
        self.client.close()


class Stored:
    """One version of a group for searching; see `diptych.embed.vector_index.VectorIndex`."""

    def __init__(self, client: Any, group: str, about: About, roots: dict[str, str]):
        self.client = client
        self.about = about
        self.roots = roots
        self.group = group
        self.start = f"{PREFIX}:{group}:{about.version}:"
        self.near = f"{PREFIX}:{group}:near:{about.version}"
        with errors_named(client):
            self.approximate = bool(client.exists(self.near))

    def __len__(self) -> int:
        return sum(
            len(keys) for keys, _ in entities(self.client, self.group, self.about.version, [])
        )

    def search(self, vectors: np.ndarray, k: int, *, exact: bool = False) -> list[list[Hit]]:
        """See `VectorIndex`."""
        vectors = np.asarray(vectors, np.float32)
        if self.approximate:
            with errors_named(self.client):
                found = [self._near(v, k, exact) for v in vectors]
        else:
            nearest = Nearest(vectors, k)
            for keys, values in entities(self.client, self.group, self.about.version, ["vector"]):
                there = [(key, v[0]) for key, v in zip(keys, values, strict=True) if v[0]]
                rows = [np.frombuffer(value, "<f4") for _, value in there]
                if rows:
                    nearest.add(np.stack(rows), [key for key, _ in there].__getitem__)
            found = nearest.found()
        return [[Hit(key, score, self._row(key)) for score, key in hits] for hits in found]

    def _near(self, vector: np.ndarray, k: int, exact: bool) -> list[tuple[float, str]]:
        blob = np.ascontiguousarray(vector, "<f4").tobytes()
        found = self.client.execute_command(
            "VSIM", self.near, "FP32", blob, "WITHSCORES", "COUNT", k, *(["TRUTH"] if exact else [])
        )
        pairs = (
            found.items() if isinstance(found, dict) else zip(found[::2], found[1::2], strict=True)
        )
        # Its score is (1 + cosine) / 2.
        return [(2 * float(score) - 1, key.decode()) for key, score in pairs]

    def _row(self, key: str) -> dict[str, Any]:
        with errors_named(self.client):
            found = self.client.hgetall(self.start + key)
        left_out = (b"vector", b"event_time")
        return {k.decode(): v.decode() for k, v in found.items() if k not in left_out}

    def ids(self) -> list[str]:
        """See `VectorIndex`."""
        every = entities(self.client, self.group, self.about.version, [])
        return [key for keys, _ in every for key in keys]

    def take(self, ids: Sequence[str]) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """See `VectorIndex`."""
        found = {}
        with errors_named(self.client):
            for chunk in in_chunks(ids, PIPELINE):
                pipeline = self.client.pipeline(transaction=False)
                for key in chunk:
                    pipeline.hget(self.start + key, "vector")
                for key, value in zip(chunk, pipeline.execute(), strict=True):
                    if value is not None:
                        found[key] = np.frombuffer(value, "<f4"), self._row(key)
        return in_order(ids, found)

    def some(self, count: int) -> np.ndarray:
        """See `VectorIndex`: the first ones of a scan."""
        rows: list[np.ndarray] = []
        for _, values in entities(self.client, self.group, self.about.version, ["vector"]):
            rows += [np.frombuffer(v[0], "<f4") for v in values if v[0]]
            if len(rows) >= count:
                break
        return np.stack(rows[:count])

    def close(self) -> None:
        """Give the connections back."""
        self.client.close()


def entities(
    client: Any, group: str, version: str, fields: list[str]
) -> Iterator[tuple[list[str], list[list[bytes | None]]]]:
    """(ids, values of the fields) of all entities of a version, a thousand at once, each once."""
    start = f"{PREFIX}:{group}:{version}:"
    seen: set[int] = set()
    with errors_named(client):
        for chunk in in_chunks(client.scan_iter(f"{escaped(start)}*", 1000), 1000):
            # A scan may give a key twice while the server rearranges its table.
            keys = [k for k in dict.fromkeys(chunk) if hash(k) not in seen]
            seen.update(map(hash, keys))
            found: list[Any] = [[] for _ in keys]
            if fields:
                pipeline = client.pipeline(transaction=False)
                for key in keys:
                    pipeline.hmget(key, fields)
                found = pipeline.execute()
            yield [k.decode().removeprefix(start) for k in keys], found


def escaped(text: str) -> str:
    """Text as a pattern of Redis that matches only itself."""
    return "".join(f"\\{c}" if c in "\\*?[]^-" else c for c in text)


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
        if isinstance(error, redis.AuthenticationError | redis.exceptions.NoPermissionError):
            raise ConfigError(
                f"the server refuses this user or password: {error}", where=where
            ) from error
        if isinstance(error, redis.BusyLoadingError | redis.ReadOnlyError):
            raise SinkAway(f"the server is not ready: {error}", where=where) from error
        if isinstance(error, redis.ConnectionError | redis.TimeoutError):
            raise SinkAway(f"the server does not answer: {error}", where=where) from error
        if isinstance(error, redis.ResponseError):
            is_full = isinstance(error, redis.exceptions.OutOfMemoryError)
            if is_full or any(word in str(error) for word in ("OOM", "MISCONF")):
                raise SinkAway(f"the server has no room: {error}", where=where) from error
            raise ConfigError(f"the server refuses: {error}", where=where) from error
