"""A packed row gives each sample what it has alone: losses, gradients, and no neighbour."""

from __future__ import annotations

import pytest
import torch

from diptych.data.batching.budget import Budget
from diptych.data.batching.picture_loader import Item
from diptych.data.sample import IMAGE_TOKEN, Image, Sample, Text, Turn
from tests.conftest import square


def conversation(name, image, *turns, seed=1):
    parts = [Image(f"{image}.png", square(image, seed=seed))] if image else []
    built = []
    for number, text in enumerate(turns):
        role = ["user", "assistant"][number % 2]
        built.append(Turn(role, (*(parts if number == 0 else []), Text(text))))
    return Sample(name, tuple(built))


SAMPLES = [
    conversation("a", "red", "What colour is the square?", "red"),
    conversation("b", "red", "how many", "one"),
    conversation("c", "blue", "What colour?", "blue", "Is it large?", "no it is small"),
    conversation("d", None, "yes or no?", "yes"),
    conversation("e", "green", "Describe the picture.", "a green square in the picture"),
    conversation("f", "red", "What?", "a large red square and one small one"),
]


def items(samples):
    return [Item(s, lambda image: image.data) for s in samples]


def losses_by_sample(model, samples, **settings):
    """Loss sum by sample id, and gradients of the total."""
    model.zero_grad(set_to_none=True)
    model.requires_grad_(True)
    sums = {}
    prepared = model.collator(Budget(**settings))(items(samples))
    assert not prepared.rejected
    for batch in prepared.batches:
        values = -model.target_log_probs(batch)
        values.sum().backward()
        for index, name in enumerate(batch.sample_ids):
            mine = values.detach()[batch.target_samples == index]
            sums[name] = (float(mine.sum()), len(mine))
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return sums, gradients, prepared


@pytest.mark.parametrize("text", ["llama", "qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize("share", [True, False])
def test_packed_equals_unpacked(tiny_model, text, share):
    model = tiny_model(text=text).eval()
    alone, gradients, _ = losses_by_sample(model, SAMPLES, packed=False, rows_per_batch=1)
    packed, packed_gradients, prepared = losses_by_sample(
        model, SAMPLES, packed=True, share_images=share, tokens_per_row=400, rows_per_batch=4
    )
    assert len(prepared.batches) == 1 and prepared.batches[0].input_ids.shape[0] == 1
    assert alone.keys() == packed.keys() == {s.id for s in SAMPLES}
    for name, (loss, count) in alone.items():
        assert packed[name][1] == count
        assert packed[name][0] == pytest.approx(loss, abs=1e-5)
    assert gradients.keys() == packed_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(packed_gradients[name], gradient, atol=1e-5, rtol=1e-5)


def test_shared_pictures_use_fewer_tokens(tiny_model):
    model = tiny_model()
    count = {}
    for share in (True, False):
        collator = model.collator(Budget(share_images=share, tokens_per_row=400))
        batch = collator(items(SAMPLES)).batches[0]
        count[share] = (batch.num_real_tokens, int((batch.input_ids == IMAGE_TOKEN).sum()))
        assert batch.num_targets == sum(collator.encoder.encode(s).num_targets for s in SAMPLES)
    # "a", "b" and "f" show the same picture.
    assert count[True][1] == 3 * model.tokens_per_image
    assert count[False][1] == 5 * model.tokens_per_image
    assert count[True][0] < count[False][0]


def test_changing_a_neighbour_changes_nothing(tiny_model):
    model = tiny_model().eval()

    def loss_of_first(neighbour):
        samples = [SAMPLES[0], neighbour]
        sums, _, prepared = losses_by_sample(model, samples, tokens_per_row=400)
        assert prepared.batches[0].input_ids.shape[0] == 1, "both must be in one row"
        return sums["a"][0]

    first = loss_of_first(conversation("x", "blue", "What colour is the square?", "blue"))
    second = loss_of_first(conversation("x", "blue", "how many are left and right", "four"))
    longer = loss_of_first(conversation("x", None, "a " * 60, "three"))
    assert second == pytest.approx(first, abs=1e-6)
    assert longer == pytest.approx(first, abs=1e-6)


def test_a_neighbour_would_change_things_without_the_mask(tiny_model, monkeypatch):
    """The test above can fail: with plain causal attention the neighbour does leak."""
    model = tiny_model().eval()
    collator = model.collator(Budget(tokens_per_row=400))
    batch = collator(items([SAMPLES[0], SAMPLES[4]])).batches[0]
    right = model.target_log_probs(batch)
    length = batch.input_ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    monkeypatch.setattr(type(batch), "attention_mask", lambda self: causal)
    wrong = model.target_log_probs(batch)
    assert (right - wrong).abs().max() > 1e-3


def test_padding_share_is_small_when_rows_are_full(tiny_model):
    model = tiny_model()
    many = [
        conversation(f"{n}", "red", "how many " * (n % 7 + 1), "one", seed=n // 5)
        for n in range(120)
    ]
    prepared = model.collator(Budget(tokens_per_row=512, rows_per_batch=64))(items(many))
    area = sum(b.segment_ids.numel() for b in prepared.batches)
    real = sum(b.num_real_tokens for b in prepared.batches)
    assert len(prepared.used) == 120
    assert 1 - real / area < 0.05
