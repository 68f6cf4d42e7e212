"""Every connector: the number of tokens it announces is the number it makes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diptych import parts
from diptych.errors import ConfigError
from diptych.model.connector import Connector, ConnectorConfig
from diptych.model.connectors.words import Words

NAMES = parts.names("model.connectors")
SMALL = {
    "qformer": {
        "config": {
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "hidden_dropout_prob": 0.0,
        },
    },
    "words": {"vocab_size": 11},
}  # fmt: skip
GRIDS = [(1, 1), (2, 2), (4, 6), (5, 7), (3, 8), (24, 24)]


def small(name):
    """A config of the part that builds in a moment."""
    return parts.find("model.connectors", name).Config(**SMALL.get(name, {}))


def built(config, vision_dim, text_dim):
    """The connector, in front of some words."""
    return config.build(vision_dim, text_dim, nn.Embedding(11, text_dim).requires_grad_(False))


@pytest.mark.parametrize("name", NAMES)
def test_config_names_its_file(name):
    config = parts.find("model.connectors", name).Config()
    assert isinstance(config, ConnectorConfig)
    assert config.name == name
    assert type(config).from_dict(config.to_dict()) == config
    assert parts.describe("model.connectors")[name].endswith(("tokens", ".", ")"))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", NAMES)
def test_announced_tokens_are_made(name, grid):
    config = small(name)
    try:
        expected = config.num_tokens(grid)
    except ConfigError as error:
        assert name == "pixel_shuffle" and (grid[0] % 2 or grid[1] % 2), error
        return
    connector = built(config, 12, 20)
    assert isinstance(connector, Connector)
    features = torch.randn(2, grid[0] * grid[1], 12, requires_grad=True)
    tokens = connector(features, grid)
    assert tokens.shape == (2, expected, 20)
    loss = tokens.square().sum()
    if isinstance(connector, Words):  # what is told is taught by itself
        told, scores = connector.told(features, grid)
        assert told.shape == (2, grid[0] * grid[1], 12) and scores.shape == told.shape[:2]
        loss = loss + told.square().sum() + scores.square().sum()
    loss.backward()
    assert features.grad is not None and features.grad.abs().sum() > 0
    assert all(p.grad is not None for p in connector.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_one_image_does_not_depend_on_another(name):
    torch.manual_seed(0)
    connector = built(small(name), 8, 16).eval()
    features = torch.randn(3, 16, 8)
    together = connector(features, (4, 4))
    alone = torch.cat([connector(f[None], (4, 4)) for f in features])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_class_tokens_are_counted_or_refused():
    for name in NAMES:
        config = parts.find("model.connectors", name).Config()
        if name == "words":
            config = small(name)
        if name in ("downsample", "pixel_shuffle"):
            with pytest.raises(ConfigError):
                config.num_tokens((4, 4), num_prefix=1)
        else:
            tokens = built(config, 8, 16)(torch.randn(1, 17, 8), (4, 4))
            assert tokens.shape[1] == config.num_tokens((4, 4), num_prefix=1)
