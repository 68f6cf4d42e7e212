"""Every error says what, where and what to do, and survives the way between processes."""

from __future__ import annotations

import pickle

import pytest

from diptych import errors

CLASSES = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, Exception)]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_places_and_pickling(cls):
    error = pickle.loads(pickle.dumps(cls("it broke", where="a:1", fix="mend it")))
    assert type(error) is cls
    assert str(error) == "it broke\n  where: a:1\n  what to do: mend it"
    assert error.to_dict() == {
        "error": cls.__name__, "message": "it broke", "where": "a:1", "fix": "mend it",
    }  # fmt: skip
    expected = 2 if issubclass(cls, errors.InputError) else 75 if cls is errors.Interrupted else 1
    assert error.exit_code == expected
    assert cls.__name__ in (errors.__doc__ or ""), "the tree at the top shows it"
    assert cls.__doc__
