"""The convolutional encoder, with and without attention behind it."""

from __future__ import annotations

import torch

from diptych.model.conv_encoder import ConvEncoderConfig, ConvEncoderModel

SMALL = {"hidden_sizes": [8, 12], "depths": [1, 1], "num_attention_heads": 3}


def seen_from_afar(model) -> bool:
    """Does a change in one corner reach the other one?"""
    one = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    two = one.clone()
    two[..., :8, :8] = 1 - two[..., :8, :8]
    with torch.no_grad():
        a, b = (model(pixels).last_hidden_state for pixels in (one, two))
    assert not torch.equal(a[..., 0, 0], b[..., 0, 0])
    return not torch.allclose(a[..., -1, -1], b[..., -1, -1], atol=1e-6)


def new(**more) -> ConvEncoderModel:
    torch.manual_seed(0)
    return ConvEncoderModel(ConvEncoderConfig(**SMALL, **more)).eval()


def test_attention_sees_the_whole_picture_once_it_has_learned():
    assert not seen_from_afar(new())
    model = new(attention_layers=1)
    assert not seen_from_afar(model), "it begins by adding nothing"
    torch.nn.init.normal_(model.context.layers[0].out.weight)
    assert seen_from_afar(model)


def test_attention_tells_places_apart():
    """A picture of one colour has other features at every place, since places are told."""
    states = new(attention_layers=1)(torch.zeros(1, 3, 64, 64)).last_hidden_state[0].flatten(1)
    apart = torch.cdist(states.T, states.T) + torch.eye(states.shape[1])
    assert apart.min() > 1e-3
    flat = new()(torch.zeros(1, 3, 64, 64)).last_hidden_state[0]
    assert torch.allclose(flat[:, 4, 4], flat[:, 5, 4], atol=1e-6)


def test_stages_end_with_what_attention_makes_of_the_last():
    model = new(attention_layers=2)
    out = model(torch.rand(2, 3, 64, 64), output_hidden_states=True)
    assert [s.shape[1] for s in out.hidden_states] == [8, 12]
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)


def test_saved_and_loaded_it_says_the_same(tmp_path):
    model = new(attention_layers=2)
    with torch.no_grad():
        for weight in model.context.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(tmp_path)
    pixels = torch.rand(1, 3, 48, 64)
    loaded = ConvEncoderModel.from_pretrained(tmp_path).eval()
    assert torch.equal(model(pixels).last_hidden_state, loaded(pixels).last_hidden_state)
