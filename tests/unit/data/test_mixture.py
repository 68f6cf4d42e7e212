"""The order of samples is a pure function of the seed, whoever asks in whatever order."""

from __future__ import annotations

import pickle
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.data.batching.mixture import Mixture
from diptych.errors import ConfigError

GROUPS = [["a", "b", "a", None, None, "b", "a"], ["x", "x", None, "y"]]
keys = st.lists(st.one_of(st.none(), st.sampled_from("abc")), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(groups=st.lists(keys, min_size=1, max_size=3), seed=st.integers(0, 2**40))
def test_every_sample_once_an_epoch_and_pictures_together(groups, seed):
    mixture = Mixture(groups, seed=seed)
    size = sum(map(len, groups))
    everything = {(s, r) for s, g in enumerate(groups) for r in range(len(g))}
    for epoch in range(3):
        order = [mixture.at(epoch * size + i) for i in range(size)]
        assert set(order) == everything and len(order) == size
        named = [(s, groups[s][r]) for s, r in order]
        for key in {k for k in named if k[1] is not None}:
            places = [i for i, k in enumerate(named) if k == key]
            assert places == list(range(places[0], places[0] + len(places))), key


@pytest.mark.parametrize("weights", [None, [1.0, 3.0]])
def test_visiting_order_and_pickling_change_nothing(weights):
    mixture = Mixture(GROUPS, weights=weights, seed=5)
    forward = [mixture.step(i, 7) for i in range(2000)]
    other = pickle.loads(pickle.dumps(mixture))
    assert [other.step(i, 7) for i in reversed(range(2000))] == forward[::-1]
    fresh = Mixture(GROUPS, weights=weights, seed=5)
    assert fresh.step(1999, 7) == forward[1999]
    assert Mixture(GROUPS, weights=weights, seed=6).step(0, 7) != forward[0]


def test_epochs_differ():
    mixture = Mixture([[None] * 50], seed=1)
    epochs = [tuple(mixture.at(e * 50 + i) for i in range(50)) for e in range(4)]
    assert len(set(epochs)) == 4


def test_weights_are_respected():
    mixture = Mixture([[None] * 10, [None] * 1000, [None] * 3], weights=[5, 3, 2], seed=0)
    draws = [mixture.at(i) for i in range(20_000)]
    counts = Counter(s for s, _ in draws)
    for source, share in enumerate((0.5, 0.3, 0.2)):
        assert counts[source] / len(draws) == pytest.approx(share, abs=0.015)
    small = [r for s, r in draws if s == 2]
    for start in range(0, len(small) - 3, 3):
        assert sorted(small[start : start + 3]) == [0, 1, 2], "each set in its own epochs"


def test_file_order():
    mixture = Mixture(GROUPS, shuffle=False)
    assert [r for _, r in mixture.step(0, 11)] == [*range(7), *range(4)]


@pytest.mark.parametrize(
    ("groups", "weights"), [([[]], None), ([], None), (GROUPS, [1]), (GROUPS, [1, 0])]
)
def test_refusals(groups, weights):
    with pytest.raises(ConfigError):
        Mixture(groups, weights=weights)
