"""Every architecture says what it can do, and can do what it says."""

from __future__ import annotations

import pytest

from diptych import parts
from diptych.model.architecture import METHODS, Model

NAMES = parts.names("model.architectures")


def model_of(name):
    module = parts.find("model.architectures", name)
    found = [
        kind for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Model) and kind.__module__ == module.__name__
    ]  # fmt: skip
    assert len(found) == 1, name
    return found[0]


@pytest.mark.parametrize("name", NAMES)
def test_abilities_are_declared_and_there(name):
    kind = model_of(name)
    for ability, methods in METHODS.items():
        there = [method for method in methods if hasattr(kind, method)]
        assert (ability in kind.can) == (len(there) == len(methods)), (name, ability, there)
    assert set(kind.represents) <= {"image", "text", "multimodal"}
