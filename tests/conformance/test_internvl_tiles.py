"""Pixel shuffle exactly as InternVL's (the tiling belongs to a later test)."""

from __future__ import annotations

import re

import torch
from safetensors.torch import load_file

from diptych.model.connectors.pixel_shuffle import Config, pixel_shuffle


def test_pixel_shuffle(conformance):
    tensors = load_file(conformance("internvl_tiles") / "tensors.safetensors")
    checked = 0
    for name, expected in tensors.items():
        match = re.fullmatch(r"ps\.(\d+)\.(out_v1|out_v2|tokens_v2)", name)
        if not match:
            continue
        images = tensors[f"ps.{match[1]}.in"]
        order = match[2][-2:]
        shuffled = pixel_shuffle(images, 2, order)
        if match[2].startswith("tokens"):
            shuffled = shuffled.flatten(1, 2)
            grid = images.shape[1:3]
            assert Config().num_tokens(tuple(grid)) == shuffled.shape[1]
        assert torch.equal(shuffled, expected), name
        checked += 1
    assert checked == sum(".out_" in n or ".tokens_" in n for n in tensors) > 0
