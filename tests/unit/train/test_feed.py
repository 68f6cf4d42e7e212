"""Where a stage's samples come from."""

from __future__ import annotations

import pickle

import pytest

from diptych.data.sample import Image
from diptych.errors import ModelError
from diptych.train.feed import open_index, sharing_keys
from diptych.train.stage import DataConfig, Stage


def opened(squares, tmp_path, tiny_model, pictures):
    config = DataConfig(
        path=str(squares / "train.json"), images=str(squares / "images"), pictures=pictures
    )
    stage = Stage(name="one", data=(config,), learn={"connector": {}})
    return open_index(config, stage, tmp_path, tiny_model())


def test_withheld_pictures_are_the_same_rows_without_them(squares, tmp_path, tiny_model):
    shown = opened(squares, tmp_path, tiny_model, "shown")
    blind = opened(squares, tmp_path, tiny_model, "withheld")
    assert len(blind) == len(shown) and blind.ledger.num_read == shown.ledger.num_read
    assert any(key is not None for key in sharing_keys(shown))
    assert sharing_keys(blind) == [None] * len(blind)
    for number in (0, len(blind) - 1):
        assert blind[number].answer == shown[number].answer
        assert not list(blind[number].images())
    again = pickle.loads(pickle.dumps(blind))
    assert again[0] == blind[0]
    with pytest.raises(ModelError, match="withheld"):
        blind.image_bytes(Image("a.png"))
