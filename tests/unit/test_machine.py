"""Memory that is kept and given back."""

from __future__ import annotations

import pytest
import torch

from diptych.errors import ConfigError
from diptych.machine import KeptMemory, chosen_device, common_size


def test_free_memory_goes_back_when_it_piles_up(monkeypatch):
    sizes, trims = iter([100, 140, 160, 110, 150, 170]), []
    kept = KeptMemory()
    if not kept.is_kept:
        pytest.skip("not glibc")
    monkeypatch.setattr("diptych.machine.resident_bytes", lambda: next(sizes))
    monkeypatch.setattr("diptych.machine.trim", lambda: trims.append(len(trims)))
    counts = []
    for _ in range(6):
        kept.after_step()
        counts.append(len(trims))
    # 160 is more than 1.5 times 100; then 110 is the usual, and 170 is more than 1.5 times that.
    assert counts == [0, 0, 1, 1, 1, 2]


def test_a_device_that_is_not_there_is_named():
    assert chosen_device("cpu") == chosen_device("cpu:0") == "cpu"
    assert chosen_device(None) == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ConfigError, match="no device 'tpu'"):
        chosen_device("tpu")


def test_sizes_that_come_up_again_are_little_larger_and_few():
    sizes = range(1, 5000)
    rounded = [common_size(size) for size in sizes]
    assert all(s <= r <= s * 25 / 24 for s, r in zip(sizes, rounded, strict=True))
    assert rounded == sorted(rounded) and all(common_size(r) == r for r in rounded)
    assert len(set(rounded)) < 250
