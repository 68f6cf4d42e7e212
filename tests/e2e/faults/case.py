"""What a case of the corpus is. The modules beside this one add theirs when they are imported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diptych import errors


@dataclass
class Case:
    name: str
    build: Callable[[Path], Any]
    good: int = 0
    rejects: dict[str, int] = field(default_factory=dict)
    raises: type[errors.DiptychError] | None = None
    says: str = ""
    options: dict[str, Any] = field(default_factory=dict)


CASES: list[Case] = []


def case(name: str, **expected: Any) -> Callable[[Callable[[Path], Any]], Any]:
    def add(build: Callable[[Path], Any]) -> Callable[[Path], Any]:
        CASES.append(Case(name, build, **expected))
        return build

    return add
