"""A cache that several stages fill, and that a killed one leaves whole."""

from __future__ import annotations

import numpy as np
import pytest

from diptych.data.sample import Image
from diptych.train import feature_cache


@pytest.fixture
def pictures(squares):
    """(picture, how it is read, no hash, no budget) of the squares, in order."""
    found = sorted((squares / "images").iterdir())
    return [(Image(p.name), lambda image: (squares / "images" / image.path).read_bytes(), None, None)
            for p in found]  # fmt: skip


def prepare(model, pictures, root, mode="on", visits=9.0, max_bytes=2**30):
    return feature_cache.prepare(
        model, pictures, root, mode=mode, num_visits=visits, max_bytes=max_bytes,
        precision="float32",
    )  # fmt: skip


def rows(cache):
    return {key: cache.get(key).array for key in cache.keys}


def test_pictures_are_added_and_the_others_stay_as_they_were(tiny_model, pictures, tmp_path):
    model = tiny_model()
    first = rows(prepare(model, pictures[:5], tmp_path))
    both = rows(prepare(model, pictures[3:9], tmp_path))
    assert list(both)[:5] == list(first) and len(both) == 9
    for key, features in first.items():
        assert np.array_equal(both[key], features)
    alone = rows(prepare(model, pictures[5:9], tmp_path / "alone"))
    for key, features in alone.items():
        assert np.array_equal(both[key], features)
    assert len(prepare(model, pictures[2:4], tmp_path)) == 9, "nothing is missing"


def test_what_does_not_fit_or_does_not_pay_leaves_the_rest(
    tiny_model, pictures, tmp_path, monkeypatch
):
    model = tiny_model()
    first = rows(prepare(model, pictures[:5], tmp_path))
    file = next(tmp_path.glob("*/features.bin"))
    size = file.stat().st_size
    assert prepare(model, pictures[:6], tmp_path, max_bytes=size) is None
    monkeypatch.setattr(feature_cache, "encode_seconds", lambda *a: 0.0)
    assert prepare(model, pictures[:6], tmp_path, mode="auto") is None
    assert file.stat().st_size == size
    assert rows(prepare(model, pictures[:5], tmp_path)).keys() == first.keys()
    assert prepare(model, pictures[:6], tmp_path, mode="decided", visits=0.5) is not None


def test_a_killed_addition_counts_for_nothing(tiny_model, pictures, tmp_path, monkeypatch):
    model = tiny_model()
    first = rows(prepare(model, pictures[:5], tmp_path))

    encode, calls = feature_cache._encode, []

    def dies(*args):
        calls.append(args)
        if len(calls) == 3:  # after the first picture, and a part of the others
            raise KeyboardInterrupt
        return encode(*args)

    with monkeypatch.context() as patch:
        patch.setattr(feature_cache, "_encode", dies)
        patch.setattr(feature_cache, "_AT_ONCE", 8)
        with pytest.raises(KeyboardInterrupt):
            prepare(model, pictures[:20], tmp_path)
    again = rows(prepare(model, pictures[:5], tmp_path))
    assert again.keys() == first.keys()
    whole = rows(prepare(model, pictures[:20], tmp_path))
    expected = rows(prepare(model, pictures[5:20], tmp_path / "alone"))
    assert len(whole) == 20
    for key, features in {**first, **expected}.items():
        np.testing.assert_allclose(whole[key], features, atol=1e-6)


def test_a_stage_without_pictures_has_no_cache(tiny_model, pictures, tmp_path):
    assert prepare(tiny_model(), [], tmp_path) is None
    prepare(tiny_model(), pictures[:2], tmp_path)
    assert prepare(tiny_model(), [], tmp_path) is None


def test_auto_reckons_and_takes_no_time(tiny_model, pictures):
    """Two runs of a recipe compute alike, on a quiet machine as on a busy one."""
    model = tiny_model(vision="clip_vision_model")
    # 16 patches and a class token, 24 wide, 48 within; three layers; attention is not counted.
    patches = 2 * 16 * 24 * 3 * 7 * 7
    layer = 2 * 17 * (4 * 24 * 24 + 2 * 24 * 48)
    counted = feature_cache.encode_seconds(model, (*pictures[0][:2], None), "float32")
    assert counted == pytest.approx(5e-3 + (patches + 3 * layer) / 5e10, rel=1e-9)
    assert counted == feature_cache.encode_seconds(model, (*pictures[5][:2], None), "float32")
