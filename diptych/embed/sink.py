"""Contract of a sink: a place that vectors go to.

A part in `sinks/` has `open(target, about) -> Sink`. A shard is the unit: `write` returns when all
of it is there for good, and writing it again changes nothing. So a job that was killed anywhere
writes the shard that it was at once more, and every key is there exactly once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np

from diptych import parts
from diptych.embed.embedder import Vectors
from diptych.errors import ConfigError

FOLDER = "embed.sinks"


@dataclass(frozen=True)
class About:
    """What all shards of a job have in common.

    Attributes:
        fingerprint: of model, preprocessing and settings.
        what: image, text or multimodal.
        dtype: of the stored numbers.
        fields: fields of the rows that are kept beside the vector.
    """

    fingerprint: str
    what: str
    dtype: str
    fields: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shard:
    """Some rows' vectors.

    Attributes:
        number: of the shard, from 0.
        keys: ids of the rows.
        vectors: one for each key.
        rows: of each key its text, picture and kept fields.
        event_time_ns: when these vectors are true, in nanoseconds since 1970, UTC.
    """

    number: int
    keys: Sequence[str]
    vectors: Vectors
    rows: Sequence[dict[str, Any]]
    event_time_ns: int

    def numbers(self) -> np.ndarray:
        """The vectors as float32, whatever is stored."""
        return self.vectors.numbers()


class Sink(Protocol):
    """An open place."""

    def write(self, shard: Shard) -> None:
        """Put a shard there for good; doing it again changes nothing.

        Raises:
            SinkAway: it cannot be reached now and may be later.
            DiptychError: it cannot be written.
        """
        ...

    def intact(self, number: int) -> bool:
        """Whether a shard that was written is still whole, as far as that is quick to tell."""
        ...

    def close(self) -> None: ...


def without_secrets(target: str) -> str:
    """A target as it may be written down: no user, no password."""
    return re.sub(r"//[^/@]*@", "//", target)


def open_sink(target: str, about: About) -> Sink:
    """The sink that a target such as `parquet:OUT` or `redis://localhost/group` names.

    Raises:
        ConfigError: no sink of that name.
    """
    scheme, colon, rest = target.partition(":")
    known = parts.names(FOLDER)
    name = {"rediss": "redis"}.get(scheme, scheme)
    if not colon or name not in known or not rest:
        raise ConfigError(
            f"'{without_secrets(target)}' names no place for vectors",
            where="--to",
            fix=f"write it as one of {', '.join(f'{n}:...' for n in known)}",
        )
    return cast(Sink, parts.find(FOLDER, name).open(target, about))
