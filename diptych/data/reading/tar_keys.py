"""Which members of a tar shard are one row, told by their names alone.

In the WebDataset convention they share a key, the name up to the first dot of its last part. Names
with more dots (`IMG.1.jpg`, `v1.0_7.jpg`) melt into one row by that rule, up to a whole shard.
Where each has a text of its own name, the names up to their last dot are told apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from diptych.data.sample import Image
from diptych.errors import DataError

JSON = ".json"
TEXTS = (".txt", ".text", ".caption")
"""Endings of a caption; the first that a row has is read."""


@dataclass(eq=False)
class Member:
    """A member's name, and what was read of it: a picture, the bytes of a text, or nothing.

    Attributes:
        key: the name up to the first dot of its last part; `stem`: up to the last dot.
        ending: from the last dot on, in small letters.
    """

    name: str
    key: str
    stem: str
    ending: str
    picture: Image | None = None
    text: bytes | None = None

    @classmethod
    def named(cls, name: str) -> Member:
        """The member of that name, nothing read."""
        folder, slash, base = name.rpartition("/")
        first, dot, _ = base.partition(".")
        last, _, ending = base.rpartition(".") if dot else (base, "", "")
        start = folder + slash
        return cls(name, start + first, start + last, f".{ending.lower()}" if ending else "")

    @property
    def is_text(self) -> bool:
        """Whether it is a row's `.json` or its caption."""
        return self.ending == JSON or self.ending in TEXTS


def is_hidden(name: str) -> bool:
    """Whether a member is a hidden file, which is no row's; `./` and `../` hide nothing."""
    return any(part.startswith(".") and part.strip(".") for part in name.split("/"))


@dataclass(eq=False)
class Group:
    """Members that follow each other and share a key; mostly one row.

    Attributes:
        names: how often each name occurs.
        num_bytes: of what was read of them.
        fault: the first among them.
    """

    key: str
    members: list[Member] = field(default_factory=list)
    names: Counter[str] = field(default_factory=Counter)
    num_bytes: int = 0
    fault: DataError | None = None
    # Stems of texts; stems of the others with all that stand above them (a.b.c: a.b and a).
    _texts: set[str] = field(default_factory=set)
    _others: set[str] = field(default_factory=set)

    def add(self, member: Member) -> None:
        """Take a member in."""
        self.members.append(member)
        self.names[member.name] += 1
        if member.is_text:
            self._texts.add(member.stem)
        else:
            self._others.update(_above(member.stem, self.key))

    def takes(self, member: Member) -> bool:
        """Whether a member belongs to this group: it has the key, and no row here is whole yet."""
        if member.key != self.key:
            return False
        if member.stem == self.key or member.stem in self._others:
            return True
        return self._whole() <= set(_above(member.stem, self.key))

    def rows(self) -> list[tuple[str, list[Member]]]:
        """(key, members) of each row."""
        if not self._whole():
            return [(self.key, self.members)]
        rows: dict[str, list[Member]] = {}
        for member in self.members:
            above = _above(member.stem, self.key)
            key = next((stem for stem in above if stem in self._texts), member.stem)
            rows.setdefault(key, []).append(member)
        return list(rows.items())

    def _whole(self) -> set[str]:
        """Rows by their full names: stems, the key apart, of a text with something besides."""
        return (self._texts & self._others) - {self.key}


def _above(stem: str, key: str) -> Iterator[str]:
    """The stem and what stands above it, longest first: a.b.c, a.b, and the key a."""
    while len(stem) > len(key):
        yield stem
        stem = stem.rpartition(".")[0]
    yield key
