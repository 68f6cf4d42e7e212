"""What a CPU step may choose: kernels for short rows, memory that stays."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends

from diptych.data.batching.batch import Batch
from diptych.machine import keep_freed_memory
from diptych.model import tuning
from diptych.model.architecture import config_from_dict
from diptych.model.folder import build


def batch_of(length, pixels=None, encoder=None):
    ids = torch.zeros(2, length, dtype=torch.int64)
    none = torch.zeros(0, dtype=torch.int64)
    return Batch(ids, ids, ids, ids, none, none, none, pixel_values=pixels, encoder_ids=encoder)


@pytest.fixture(scope="module")
def model(tiny_dual):
    return build(config_from_dict(tiny_dual("clip")), seed=1)


def plain(model, batch, precision="bf16"):
    with tuning.tuned(model.device).attention(model, batch, precision):
        return _cur_sdpa_kernel_backends() == [SDPBackend.MATH]


def test_short_rows_take_plain_products_in_bfloat16_only(model):
    assert plain(model, batch_of(tuning.LONGEST))
    assert not plain(model, batch_of(tuning.LONGEST + 1))
    assert not plain(model, batch_of(8), "float32")
    assert not plain(model, batch_of(8, encoder=torch.zeros(2, 500, dtype=torch.int64)))


def test_the_encoders_own_tokens_count(model):
    own = model.vision_encoder.grid[0] * model.vision_encoder.grid[1]
    shown = batch_of(4, pixels=torch.zeros(2, 3, 28, 28))
    assert tuning.longest(model, shown) == own + model.vision_encoder.num_prefix > 4


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_memory_stays():
    assert keep_freed_memory()
