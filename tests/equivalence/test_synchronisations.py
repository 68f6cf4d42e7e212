"""How often the host waits for the device: what the collator knows is not asked of it again."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diptych.data.batching.batch import Batch
from diptych.model.architecture import config_from_dict
from diptych.model.folder import build
from diptych.progress import Progress
from diptych.train.stage import Stage
from diptych.train.step_losses import StepLosses
from diptych.train.trainer import Learner, Trainer
from tests.equivalence import tiny_run

WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2"}
"""Operators whose result the host needs, or whose shape. On a GPU,
`torch.cuda.set_sync_debug_mode` names the same places."""


class Counting(TorchDispatchMode):
    """Counts operators that wait."""

    def __init__(self, waits):
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split("::")[1].split(".")[0]
        given = args[1] if name == "index" else []
        masks = [a for a in given if a is not None and a.dtype in (torch.bool, torch.uint8)]
        if name in WAITS or masks:
            self.waits[name] += 1
        return func(*args, **(kwargs or {}))


def counted(monkeypatch, model, stage, run):
    """(micro-batches, waits in their forward and backward passes, fetches) of a run."""
    waits, batches, fetches = Counter(), [], []
    forward, backward, fetch = Learner.forward, torch.Tensor.backward, StepLosses.fetch

    def counting_forward(self, batch):
        batches.append(batch)
        with Counting(waits):
            return forward(self, batch)

    def counting_backward(*args, **settings):
        with Counting(waits):
            return backward(*args, **settings)

    monkeypatch.setattr(Learner, "forward", counting_forward)
    monkeypatch.setattr(torch.Tensor, "backward", counting_backward)
    monkeypatch.setattr(
        StepLosses, "fetch", lambda self, *a: (fetches.append(1), fetch(self, *a))[1]
    )
    Trainer(
        model, [Stage.from_dict(stage)], run, trackers=(),
        progress=Progress(run / "train.log", quiet=True),
    ).train()  # fmt: skip
    assert all(batch.known is not None for batch in batches)
    return len(batches), sum(waits.values()), len(fetches)


@pytest.mark.parametrize(
    ("text", "packed", "left"),
    [
        # What is left is transformers': it looks for packed rows where it is given no mask, and for
        # padding in T5's two masks (masking_utils.py, 5.23).
        *[(text, True, 0) for text in ("llama", "qwen2", "mistral")],
        *[(text, False, 1) for text in ("llama", "qwen2", "mistral")],
        ("t5", False, 2),
    ],
)
def test_waits_of_a_micro_batch(text, packed, left, tiny_config, squares, tmp_path, monkeypatch):
    stage = tiny_run.stage(
        squares, num_steps=3, rows_per_batch=1, packed=packed, cache_features="off",
        tokens_per_row=110 if packed else None,
    )  # fmt: skip
    model = build(config_from_dict(tiny_config(text=text)), seed=0)
    num, waits, fetches = counted(monkeypatch, model, stage, tmp_path)
    assert num >= 6 and fetches == 3, "several micro-batches, one look at their losses a step"
    assert waits <= left * num


@pytest.mark.parametrize(("objective", "left"), [("contrastive", 1), ("sigmoid", 0)])
def test_waits_of_a_dual_encoder(objective, left, tiny_dual, squares, tmp_path, monkeypatch):
    data = {"path": str(squares / "captions.json"), "images": str(squares / "images")}
    kind = "clip" if objective == "contrastive" else "siglip"
    stage = {
        "name": "pairs", "data": [data], "objective": objective, "num_steps": 2,
        "learn": {"vision_encoder": {}, "text_encoder": {}, "space": {}},
        "global_batch_size": 8, "num_workers": 0,
    }  # fmt: skip
    model = build(config_from_dict(tiny_dual(kind)), seed=0)
    num, waits, fetches = counted(monkeypatch, model, stage, tmp_path)
    assert (num, fetches) == (2, 2)
    assert waits <= left * num, "transformers looks for padding in the text that CLIP reads"


def test_a_batch_on_its_way_says_what_it_knows(monkeypatch):
    ids = torch.tensor([[5, -200, 6, 0]])
    none = torch.zeros(0, dtype=torch.int64)
    batch = Batch(ids, torch.arange(4)[None], torch.tensor([[1, 1, 1, 0]]), ids * 0, *[none] * 3)
    for segments, packed in (([1, 1, 1, 0], False), ([1, 1, 2, 0], True)):
        batch.segment_ids = torch.tensor([segments])
        known = batch.to("cpu").known
        assert (known.num_placeholders, known.is_packed, known.last_position) == (1, packed, 3)
        assert (batch.to("meta").attention_mask() is not None) is packed
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self + 0)  # there may be no GPU
    pinned = batch.pin_memory()
    assert pinned.known == known and torch.equal(pinned.input_ids, ids)
