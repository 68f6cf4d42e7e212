"""Gradient caching: chunks of a batch give the loss and the gradients of the whole."""

from __future__ import annotations

import pytest
import torch

from diptych.data.batching.collate_pairs import PairCollator
from diptych.data.batching.picture_loader import Item, PictureLoader
from diptych.data.sample import Image, Sample, Text, Turn
from diptych.errors import ConfigError
from diptych.model.architecture import config_from_dict
from diptych.model.folder import build
from diptych.train.objectives import contrastive, sigmoid

TEXTS = ("a red square", "two blue", "the large green one on the left", "yes", "no yellow")


@pytest.fixture
def batch(squares):
    """Five pairs; texts of several lengths."""
    folder = squares / "images"
    paths = sorted(folder.iterdir())[: len(TEXTS)]
    items = [
        Item(
            Sample(
                str(i),
                (Turn("user", (Image(str(p)),)), Turn("assistant", (Text(t),))),
                source="",
            ),
            lambda image: open(image.path, "rb").read(),
        )
        for i, (p, t) in enumerate(zip(paths, TEXTS, strict=True))
    ]

    def make(model):
        prepared = PairCollator(PictureLoader(model.preprocessing), model.text_tokens)(items)
        assert not prepared.rejected
        return prepared.batches[0]

    return make


def gradients(model, objective, batch):
    torch.manual_seed(7)  # dropout
    loss = sum(objective(model, batch).values())
    model.zero_grad()
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_chunks_give_the_gradients_of_the_whole(kind, size, tiny_dual, batch):
    model = build(config_from_dict(tiny_dual(kind)), seed=1).train()
    config = contrastive.Config if kind == "clip" else sigmoid.Config
    pairs = batch(model)
    whole, expected = gradients(model, config().build(model), pairs)
    cached, found = gradients(model, config(chunk_size=size).build(model), pairs)
    torch.testing.assert_close(cached, whole)
    assert any(g.abs().max() > 1e-3 for g in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_chunks_keep_few_activations(tiny_dual, batch):
    """What is kept for the backward pass does not grow with the batch."""
    model = build(config_from_dict(tiny_dual("clip")), seed=1).train()
    pairs = batch(model)

    def kept(chunk_size):
        total = 0

        def pack(tensor):
            nonlocal total
            total += tensor.numel()
            return tensor

        objective = contrastive.Config(chunk_size=chunk_size).build(model)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            objective(model, pairs)
        return total

    assert kept(1) < kept(None) / 5


def test_batch_norm_is_refused(tiny_dual, batch):
    values = tiny_dual("clip", image_pool="mean")
    values["vision_encoder"] = {
        "config": {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8], "depths": [1]},
        "image": {"resize": "exact", "size": [28, 28]},
    }
    model = build(config_from_dict(values), seed=1).train()
    pairs = batch(model)
    with pytest.raises(ConfigError, match="normalises over the batch"):
        contrastive.Config(chunk_size=2).build(model)(model, pairs)


def test_sigmoid_needs_a_bias(tiny_dual):
    model = build(config_from_dict(tiny_dual("clip")), seed=1)
    with pytest.raises(ConfigError, match="needs a dual encoder with a bias"):
        sigmoid.Config().build(model)
