"""The precision that a model is asked in."""

from __future__ import annotations

import pytest
import torch

from diptych.data.sample import Sample, Text, Turn
from diptych.model import opened
from diptych.model.precision import computing, settled


def test_auto_is_bf16_only_where_it_is_native(monkeypatch):
    assert settled(None, "cpu") == settled("auto", "mps") == "fp32"
    for native in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda n=native, **_: n)
        assert settled("auto", "cuda:1") == ("bf16" if native else "fp32")
        assert settled("fp32", "cuda") == "fp32" and settled("fp16", "cpu") == "fp16"


def question(text="What colour is the square?"):
    return Sample("a", (Turn("user", (Text(text),)),), "", {})


@pytest.mark.parametrize("chat", [True, False])
def test_candidates_do_not_tie_by_rounding(tiny_model, chat):
    """Of 64 candidates of one token some would have the same bfloat16 logit."""
    model = tiny_model()
    tokens = [model.tokenizer.decode([n]) for n in range(60, 250)]
    names = list(dict.fromkeys(t for t in tokens if t.isascii() and t.isalpha()))[:64]
    names = names if chat else [f" {n}" for n in names]
    exact = model.log_likelihoods([question()], [names], chat=chat)[0]
    assert len(set(exact)) == len(names) > 20
    opened.place(model, "cpu", "bf16")
    rounded = model.log_likelihoods([question()], [names], chat=chat)[0]
    assert len(set(rounded)) == len(names) and rounded != exact
    assert rounded == pytest.approx(exact, abs=0.1)
    logits = model.language_model.logits(
        torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    )
    assert len(set(logits.bfloat16()[0].tolist())) < logits.shape[1], "eight bits would tie"


def test_a_chat_that_is_left_leaves_no_autocast_on(tiny_model):
    model = opened.place(tiny_model(), "cpu", "bf16")
    pieces = model.chat(max_new_tokens=5).stream("What colour is the square?")
    next(pieces, None)
    assert not torch.is_autocast_enabled("cpu")
    with computing(model):
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
