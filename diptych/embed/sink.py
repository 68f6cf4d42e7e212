"""Contract of a sink: a place that vectors go to.

A part in `sinks/` has `open(target, about) -> Sink`. A shard is the unit: `write` returns when all
of it is there for good, and writing it again changes nothing. So a job that was killed anywhere
writes the shard that it was at once more, and every key is there exactly once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from dataclasses import fields as dataclass_fields
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, cast

import numpy as np

from diptych import parts
from diptych.data.reading.files import is_url
from diptych.embed.vectors import Vectors
from diptych.errors import ConfigError

FOLDER = "embed.sinks"
RESERVED = ("id", "event_time", "vector", "scale", "image", "text", "data", "fingerprint", "what",
            "score")  # fmt: skip
"""Names that cannot be kept fields."""


@dataclass(frozen=True)
class About:
    """What all shards of a job have in common.

    Attributes:
        fingerprint: of model, preprocessing and settings.
        what: image, text or multimodal.
        dtype: of the stored numbers.
        fields: fields of the rows that are kept beside the vector.
        data: name of the data set, the same for the same place; two data sets may share a place.
        root: folder that paths of pictures are relative to.
        model: where the model was loaded from.
        settings: of the embedder; with the model they can embed a question for these vectors.
        owner: id of the state folder whose job writes them.
    """

    fingerprint: str
    what: str
    dtype: str
    fields: tuple[str, ...] = ()
    data: str = "data"
    root: str = ""
    model: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    owner: str = ""

    @property
    def version(self) -> str:
        """Names these vectors where several models' lie side by side."""
        return f"{self.what}-{self.fingerprint}"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "fields": list(self.fields)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> About:
        """What `to_dict` gave; what a later version added is left out."""
        known = {f.name for f in dataclass_fields(cls)}
        kept = {k: v for k, v in values.items() if k in known}
        return cls(**{**kept, "fields": tuple(kept.get("fields", ()))})


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

    def write(self, shard: Shard) -> list[dict[str, Any]]:
        """Put a shard there for good; doing it again changes nothing.

        Returns:
            Rows that the place cannot take (`id`, `error`, `message`, `where`, `fix`); all
            others are there.

        Raises:
            SinkAway: it cannot be reached now and may be later.
            DiptychError: it cannot be written.
        """
        ...

    def intact(self, number: int) -> bool:
        """Whether a shard that was written is still there and whole, as far as the place can tell;
        of a place without shards, whether it still has anything of the job."""
        ...

    def finish(self) -> None:
        """All shards of a run are there."""
        ...

    def close(self) -> None: ...


def without_secrets(target: str) -> str:
    """A target as it may be written down: no user, no password."""
    # To the last @: a password may hold one, or a slash.
    return re.sub(r"//.*@", "//", target)


def settled(target: str) -> str:
    """A target under its full name, so that one place has one name."""
    scheme, _, rest = target.partition(":")
    if scheme not in ("parquet", "lance"):
        return target
    if is_url(rest):
        raise ConfigError(
            "files of vectors are written to local folders only",
            where=target,
            fix="write to a local folder and copy it",
        )
    return f"{scheme}:{Path(rest).expanduser().resolve()}"


def refuse_fields(names: Sequence[str]) -> None:
    """Refuse kept fields whose names stand for something else beside a vector.

    Raises:
        ConfigError: there is such a name.
    """
    if taken := sorted(set(names) & set(RESERVED)):
        raise ConfigError(
            f"'{taken[0]}' cannot be kept as a field: the name has a meaning beside a vector",
            where="--field",
            fix="rename it in the data; text, image and id are kept anyway",
        )


def open_sink(target: str, about: About) -> Sink:
    """The sink that a target such as `parquet:OUT` or `redis://localhost/group` names.

    Raises:
        ConfigError: no sink of that name.
    """
    return cast(Sink, part_of(target).open(target, about))


def part_of(target: str) -> ModuleType:
    """The part in `sinks/` that a target names.

    Raises:
        ConfigError: no sink of that name.
    """
    scheme, colon, rest = target.partition(":")
    known = parts.names(FOLDER)
    name = {"rediss": "redis"}.get(scheme, scheme)
    if not colon or name not in known or not rest:
        raise ConfigError(
            f"'{without_secrets(target)}' names no place for vectors",
            fix="write parquet:FOLDER, lance:FOLDER, redis://HOST/GROUP or sagemaker:GROUP",
        )
    return parts.find(FOLDER, name)


def as_text(value: Any) -> str | None:
    """A kept field as text; what is not text as JSON."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
