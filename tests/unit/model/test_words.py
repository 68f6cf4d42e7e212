"""The connector that tells in words what stands at the places that show something."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diptych.errors import ConfigError
from diptych.model.connectors.words import HALF, Config

TABLE = torch.randn(7, 5, generator=torch.Generator().manual_seed(3))


def chosen(features, grid, **fields):
    """The connector with a score of the first channel alone, and what it passes on."""
    torch.manual_seed(0)
    words = nn.Embedding.from_pretrained(TABLE)
    connector = Config(vocab_size=7, **fields).build(features.shape[2], 5, words).eval()
    with torch.no_grad():
        connector.word_embeds.normal_()
        connector.score.weight.zero_()
        connector.score.weight[0, 0] = 1.0
        connector.score.bias.zero_()
        return connector, connector(features, grid)


def by_hand(connector, feature):
    """A place's token, word by word."""
    told, table = connector.word_embeds, TABLE - TABLE.mean(0)
    told = [row - told[:7].mean(0) for row in told[:7]] + [told[7]]
    scores = [connector.projection(feature) @ row * connector.scale for row in told]
    share = (torch.stack(scores) + connector.bias).softmax(0)
    return sum(share[w] ** 2 / (share[w] ** 2 + HALF**2) * table[w] for w in range(7))


def test_places_with_the_highest_scores_are_told_in_words_in_reading_order():
    features = torch.randn(2, 6, 4)
    features[0, :, 0] = torch.tensor([0.0, 3.0, -1.0, 1.0, 2.0, -2.0])
    features[1, :, 0] = torch.tensor([9.0, 0.0, 0.0, 0.0, 5.0, 7.0])
    connector, tokens = chosen(features, (2, 3), num_kept=3)
    assert tokens.shape == (2, 1 + 3, 5)
    with torch.no_grad():
        for picture, places in enumerate(([1, 3, 4], [0, 4, 5])):
            expected = torch.stack([by_hand(connector, features[picture, p]) for p in places])
            torch.testing.assert_close(tokens[picture, 1:], expected, rtol=1e-4, atol=1e-5)
            whole = connector.overview(features[picture, places].mean(0))
            torch.testing.assert_close(tokens[picture, 0], whole)


def test_class_tokens_are_left_out_and_small_grids_kept_whole():
    features = torch.randn(1, 1 + 4, 4)
    features[0, 0, 0] = 100.0  # the class token
    connector, tokens = chosen(features, (2, 2), num_kept=48)
    assert tokens.shape == (1, 5, 5)
    assert Config(vocab_size=7).num_tokens((2, 2), num_prefix=1) == 5
    told, scores = connector.told(features, (2, 2))
    assert told.shape == (1, 4, 8)
    torch.testing.assert_close(scores, features[:, 1:, 0])


def test_answers_teach_the_language_models_words_and_not_what_is_read():
    words = nn.Embedding(7, 5)
    connector = Config(vocab_size=7).build(4, 5, words)
    connector(torch.randn(1, 4, 4), (2, 2)).square().sum().backward()
    taught = {name for name, p in connector.named_parameters() if p.grad is not None}
    assert taught == {"overview.weight", "overview.bias"}
    assert words.weight.grad.abs().sum() > 0


def test_another_vocabulary_is_refused():
    with pytest.raises(ConfigError, match="7 words.*9"):
        Config(vocab_size=7).build(4, 5, nn.Embedding(9, 5))(torch.randn(1, 4, 4), (2, 2))
    with pytest.raises(ConfigError, match="needs a language model's embeddings"):
        Config(vocab_size=7).build(4, 5)
