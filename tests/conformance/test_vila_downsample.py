"""The downsample connector merges patches exactly as VILA's does."""

from __future__ import annotations

import re

import torch
from safetensors.torch import load_file

from diptych.model.connectors.downsample import Config, merge_patches


def test_square_grids(conformance):
    tensors = load_file(conformance("vila_downsample") / "tensors.safetensors")
    factors = {"DownSampleBlock": 2, "DownSample2x2BlockFix": 2, "DownSample3x3BlockFix": 3}
    checked = 0
    for name, expected in tensors.items():
        if match := re.fullmatch(r"out\.(\w+)\.(\d+)", name):
            side, factor = int(match[2]), factors[match[1]]
            merged = merge_patches(tensors[f"in.{side}"], (side, side), factor)
            assert torch.equal(merged, expected), name
            assert Config(factor=factor).num_tokens((side, side)) == merged.shape[1]
            checked += 1
    assert checked == sum(n.startswith("out.") for n in tensors) > 0


def test_rectangular_grids(conformance):
    tensors = load_file(conformance("vila_downsample") / "tensors.safetensors")
    checked = 0
    for name, expected in tensors.items():
        match = re.fullmatch(r"rect_out\.(flat_square_2x2|flat_square_3x3)\.(\d+)x(\d+)", name)
        if not match:
            continue
        rows, columns = int(match[2]), int(match[3])
        factor = int(match[1][-1])
        grid = tensors[f"rect_in.{rows}x{columns}"]
        merged = merge_patches(grid.flatten(1, 2), (rows, columns), factor)
        assert torch.equal(merged.reshape(expected.shape), expected), name
        assert Config(factor=factor).num_tokens((rows, columns)) == merged.shape[1]
        checked += 1
    assert checked > 0
