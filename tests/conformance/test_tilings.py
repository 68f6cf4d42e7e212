"""Tilings and the order of tokens are exactly those of LLaVA-NeXT's and InternVL's own code."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from diptych.data.pixels.tilings import anyres, dynamic
from diptych.model.arrangement import Arrangement

END = -1


def of_pinpoints(pinpoints, tile, **settings):
    """The fixture's pinpoints are (width, height)."""
    grids = [[height // tile, width // tile] for width, height in pinpoints]
    return anyres.Config.from_dict({"tile": tile, "grids": grids, "rounded": False, **settings})


def test_anyres_cuts_and_counts_as_llava_next(conformance):
    meta = json.loads((conformance("anyres") / "meta.json").read_text())
    config = meta["config"]
    tiling = of_pinpoints(config["grid_pinpoints"], config["tile"])
    side = config["patches_per_side"]
    arranged = Arrangement(side * side, tiling, (side, side))
    nine = of_pinpoints(
        [(w, h) for w in range(384, 2305, 384) for h in range(384, 2305, 384)], 384, max_map_tiles=9
    )
    counted = Arrangement(27 * 27, nine, (27, 27))
    orders = load_file(conformance("anyres") / "tensors.safetensors")
    assert len(meta["cases"]) >= 60
    for number, case in enumerate(meta["cases"]):
        tiles = tiling.plan(*case["size"])
        found = (tiles.columns, tiles.rows, len(tiles), arranged.num_tokens(tiles))
        assert found == tuple(case[k] for k in ("grid_w", "grid_h", "tiles", "tokens")), case
        order = order_of(arranged, tiles)
        digest = hashlib.sha256(order.numpy().astype("<i4").tobytes()).hexdigest()
        assert digest == case["order_sha256"], case["size"]
        if (known := orders.get(f"order.{number}")) is not None:
            assert torch.equal(order, known)
        other, more = nine.plan(*case["size"]), case["anyres_max_9_384"]
        found = (other.columns, other.rows, len(other), counted.num_tokens(other))
        assert found == tuple(more[k] for k in ("grid_w", "grid_h", "tiles", "tokens")), case


def order_of(arranged, tiles):
    """Which token of which tile stands where; every tile's tokens carry their own number."""
    numbers = torch.arange(len(tiles) * arranged.tokens_per_tile, dtype=torch.float64)
    tokens = numbers.view(len(tiles), arranged.tokens_per_tile, 1)
    end = torch.full((1,), float(END), dtype=torch.float64)
    laid = arranged.laid_out(tokens, [tiles], end)
    assert len(laid) == arranged.num_tokens(tiles)
    return laid[:, 0].to(torch.int32)


def test_a_map_that_is_too_large_is_scaled_down_to_what_was_announced(conformance):
    meta = json.loads((conformance("anyres") / "meta.json").read_text())
    tiling = of_pinpoints([(768, 768)], 384, max_map_tiles=2)
    arranged = Arrangement(16, tiling, (4, 4))
    for case in meta["cases"][:20]:
        tiles = tiling.plan(*case["size"])
        tokens = torch.randn(len(tiles), 16, 3)
        laid = arranged.laid_out(tokens, [tiles], torch.zeros(3))
        assert len(laid) == arranged.num_tokens(tiles) <= 16 + 2 * 1.1**2 * 16 + 8
        assert torch.equal(laid[:16], tokens[0])


def test_dynamic_cuts_and_counts_as_internvl(conformance):
    meta = json.loads((conformance("internvl_tiles") / "meta.json").read_text())
    config = meta["config"]
    checked = 0
    for case in meta["cases"]:
        for wanted in case["results"]:
            tiling = dynamic.Config(
                tile=config["tile"],
                min_tiles=config["min_num"],
                max_tiles=wanted["max_num"],
                thumbnail=wanted["thumbnail"],
            )
            tiles = tiling.plan(*case["size"])
            tokens = Arrangement(config["tokens_per_tile"], tiling).num_tokens(tiles)
            found = {"grid_w": tiles.columns, "grid_h": tiles.rows, "tiles": len(tiles)}
            assert {**wanted, **found, "tokens": tokens} == wanted, case["size"]
            checked += 1
    assert checked >= 360
    calls = meta["example_1300x900_max6_thumb_calls"]
    tiles = dynamic.Config(max_tiles=6).plan(1300, 900)
    assert [list(tiles.size), *map(list, tiles.boxes), [tiles.side, tiles.side]] == calls


@pytest.mark.parametrize("size", [(1, 4000), (20000, 1), (1, 1), (3000, 2000), (448, 449)])
@pytest.mark.parametrize("most", [1, 2, 3, 5, 8])
def test_under_a_budget_a_picture_is_seen_more_coarsely(size, most):
    for tiling in (dynamic.Config(), anyres.Config()):
        free, held = tiling.plan(*size), tiling.plan(*size, most)
        assert 1 <= len(held) <= most
        assert len(held) <= len(free)
        if len(free) <= most:
            assert held == free
        assert replace(held, boxes=()).of == size
