"""Every connector: the number of tokens it announces is the number it makes."""

from __future__ import annotations

import pytest
import torch

from diptych import parts
from diptych.errors import ConfigError
from diptych.model.connector import Connector, ConnectorConfig

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


def run(connector, features, grid, dim):
    """Its tokens; one that tells words is given some."""
    words = torch.randn(11, dim, generator=torch.Generator().manual_seed(0))
    return connector(features, grid, *([words] if connector.tells_words else []))


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
    connector = config.build(vision_dim=12, text_dim=20)
    assert isinstance(connector, Connector)
    features = torch.randn(2, grid[0] * grid[1], 12, requires_grad=True)
    tokens = run(connector, features, grid, 20)
    assert tokens.shape == (2, expected, 20)
    loss = tokens.square().sum()
    if connector.tells_words:  # what is told is taught by itself
        told, scores = connector.told(features, grid)
        assert told.shape == (2, grid[0] * grid[1], 12) and scores.shape == told.shape[:2]
        loss = loss + told.square().sum() + scores.square().sum()
    loss.backward()
    assert features.grad is not None and features.grad.abs().sum() > 0
    assert all(p.grad is not None for p in connector.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_one_image_does_not_depend_on_another(name):
    torch.manual_seed(0)
    connector = small(name).build(8, 16).eval()
    features = torch.randn(3, 16, 8)
    together = run(connector, features, (4, 4), 16)
    alone = torch.cat([run(connector, f[None], (4, 4), 16) for f in features])
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
            tokens = run(config.build(8, 16), torch.randn(1, 17, 8), (4, 4), 16)
            assert tokens.shape[1] == config.num_tokens((4, 4), num_prefix=1)
