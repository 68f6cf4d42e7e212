"""Tiles, pixels and token counts are those of transformers' processors, for any size."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from tokenizers import Tokenizer, models
from transformers import (
    GotOcr2ImageProcessorPil,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
)

from diptych.data.batching.picture_loader import shown
from diptych.data.pixels.preprocessing import Preprocessing
from diptych.data.pixels.tilings import anyres, dynamic
from diptych.model.arrangement import Arrangement

NEXT_GRIDS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
EXTREME = [(1, 1), (1, 4000), (4000, 1), (336, 336), (448, 448), (1000, 500), (335, 337)]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def sizes(count: int) -> list[tuple[int, int]]:
    """(width, height) of all shapes and orders of magnitude."""
    chance = random.Random(0)
    drawn = [
        (int(2 ** chance.uniform(3, 12)), int(2 ** chance.uniform(3, 12))) for _ in range(count)
    ]
    return [*EXTREME, *drawn]


def tokenizer(**named: str) -> PreTrainedTokenizerFast:
    plain = Tokenizer(models.WordLevel({"[UNK]": 0, "<image>": 1}, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, unk_token="[UNK]", extra_special_tokens=named
    )


def next_processor(side: int = 336) -> LlavaNextProcessor:
    pixels = LlavaNextImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_grid_pinpoints=[[h * side // 336, w * side // 336] for h, w in NEXT_GRIDS],
    )
    return LlavaNextProcessor(
        pixels, tokenizer(image_token="<image>"), patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip


def test_anyres_counts_tokens_as_llava_next():
    processor, tiling = next_processor(), anyres.Config()
    arranged = Arrangement(576, tiling, (24, 24))
    asked = sizes(1000)
    theirs = processor._get_num_multimodal_tokens(image_sizes=[(h, w) for w, h in asked])
    for size, count in zip(asked, theirs["num_image_tokens"], strict=True):
        assert arranged.num_tokens(tiling.plan(*size)) == count, size


@pytest.mark.parametrize("most", [1, 6, 12])
def test_dynamic_counts_tiles_as_internvl(most):
    pixels = GotOcr2ImageProcessorPil(
        size={"height": 448, "width": 448}, min_patches=1, max_patches=most, crop_to_patches=True
    )
    tiling = dynamic.Config(max_tiles=most)
    arranged = Arrangement(256, tiling)
    settings = {"crop_to_patches": True, "max_patches": most}
    for width, height in sizes(1000):
        count = 256 * pixels.get_number_of_image_patches(height, width, settings)
        assert arranged.num_tokens(tiling.plan(width, height)) == count, (width, height)


def picture(width: int, height: int) -> Pillow.Image:
    noise = np.random.default_rng(width * height).integers(0, 256, (height, width, 3))
    coarse = Pillow.fromarray(noise.astype(np.uint8))
    return coarse.resize((width, height), Pillow.Resampling.BILINEAR)


@pytest.mark.parametrize("size", [(70, 50), (31, 200), (300, 40), (84, 84), (500, 333), (57, 58)])
def test_anyres_gives_the_pixels_of_llava_next(size):
    processor = next_processor(84).image_processor
    seen = picture(*size)
    theirs = processor(seen, return_tensors="pt")["pixel_values"][0]
    preprocessing = Preprocessing.from_dict(
        {
            "resize": "shortest_edge", "size": [84, 84], "crop": [84, 84],
            "mean": processor.image_mean, "std": processor.image_std,
            "tiling": {"name": "anyres", "tile": 84},
        }
    )  # fmt: skip
    ours = torch.from_numpy(shown(seen, preprocessing, scaled=True).array)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 1e-3


@pytest.mark.parametrize("size", [(70, 50), (31, 200), (300, 40), (112, 112), (500, 333)])
def test_dynamic_gives_the_pixels_of_internvl(size):
    processor = GotOcr2ImageProcessorPil(
        size={"height": 112, "width": 112}, min_patches=1, max_patches=12, crop_to_patches=True,
        image_mean=MEAN, image_std=STD, resample=3,
    )  # fmt: skip
    seen = picture(*size)
    theirs = processor(seen, return_tensors="pt")["pixel_values"]
    preprocessing = Preprocessing.from_dict(
        {
            "size": [112, 112], "mean": MEAN, "std": STD,
            "tiling": {"name": "dynamic", "tile": 112},
        }
    )  # fmt: skip
    ours = torch.from_numpy(shown(seen, preprocessing, scaled=True).array)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 1e-3
