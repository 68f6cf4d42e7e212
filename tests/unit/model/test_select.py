"""The connector that passes on only the places with the highest scores."""

from __future__ import annotations

import torch

from diptych.model.connectors.select import Config


def chosen(features, grid, **fields):
    """The connector with a score of the first channel alone, and what it passes on."""
    torch.manual_seed(0)
    connector = Config(**fields).build(features.shape[2], 5).eval()
    with torch.no_grad():
        connector.score.weight.zero_()
        connector.score.weight[0, 0] = 1.0
        connector.score.bias.zero_()
        return connector, connector(features, grid)


def test_the_highest_scores_are_passed_on_in_reading_order():
    features = torch.randn(2, 6, 4)
    features[0, :, 0] = torch.tensor([0.0, 3.0, -1.0, 1.0, 2.0, -2.0])
    features[1, :, 0] = torch.tensor([9.0, 0.0, 0.0, 0.0, 5.0, 7.0])
    connector, tokens = chosen(features, (2, 3), num_kept=3)
    with torch.no_grad():
        every = connector.projection(features) * features[..., :1].sigmoid()
    torch.testing.assert_close(tokens[0], every[0, [1, 3, 4]])
    torch.testing.assert_close(tokens[1], every[1, [0, 4, 5]])


def test_class_tokens_are_left_out_and_small_grids_kept_whole():
    features = torch.randn(1, 1 + 4, 4)
    features[0, 0, 0] = 100.0  # the class token
    connector, tokens = chosen(features, (2, 2), num_kept=48)
    assert tokens.shape == (1, 4, 5) and Config().num_tokens((2, 2), num_prefix=1) == 4
    every, scores = connector.places(features, (2, 2))
    torch.testing.assert_close(scores, features[:, 1:, 0])
    torch.testing.assert_close(tokens, every * scores.sigmoid()[..., None])
