"""Blip2QFormerModel: what leaves is what the class computes; what comes in starts a part."""

from __future__ import annotations

import pytest
import torch
import transformers

from diptych.convert import layout
from diptych.errors import ConfigError
from diptych.model.architecture import config_from_dict
from diptych.model.connectors.qformer import Config as Connector
from diptych.model.folder import build
from tests.parity.test_dual_encoder import spread

NAME = "hf-blip2-qformer"


@pytest.fixture
def model(tiny_query):
    return spread(build(config_from_dict(tiny_query()), seed=1))


@pytest.fixture
def folder(model, tmp_path):
    report = layout.export(model, NAME, tmp_path / "out")
    assert report.class_name == "Blip2QFormerModel" and not report.problems
    return tmp_path / "out"


def test_a_folder_starts_a_connector(model, folder):
    former = model.query_former
    dim = former.hf_config.encoder_hidden_size
    connector = Connector(weights=str(folder), num_queries=former.num_queries).build(dim, 8)
    features = torch.randn(2, 5, dim, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = former.read_image(former.image_states(features))
        given = (
            connector.eval()
            .module(
                query_embeds=connector.queries.expand(2, -1, -1),
                encoder_hidden_states=connector.image_norm(features),
            )
            .last_hidden_state
        )
    torch.testing.assert_close(given, expected)


def test_a_folder_starts_a_query_former(model, folder, tiny_query):
    values = tiny_query(weights=str(folder), config=None)
    values["query_former"]["tokenizer"] = tiny_query()["query_former"]["tokenizer"]
    again = build(config_from_dict(values), seed=5).query_former
    features = torch.randn(2, 5, model.query_former.hf_config.encoder_hidden_size)
    with torch.no_grad():
        given = again.eval().read_image(again.image_states(features))
        expected = model.query_former.read_image(model.query_former.image_states(features))
    torch.testing.assert_close(given, expected)


def test_a_folder_of_transformers_starts_a_connector(tmp_path):
    config = transformers.Blip2QFormerConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        encoder_hidden_size=12,
    )  # fmt: skip
    torch.manual_seed(2)
    theirs = transformers.Blip2QFormerModel(config).eval()
    theirs.save_pretrained(tmp_path)
    connector = Connector(weights=str(tmp_path), num_queries=3).build(12, 8)
    states, queries = torch.randn(2, 5, 12), torch.randn(2, 3, 16)
    with torch.no_grad():
        expected = theirs(query_embeds=queries, encoder_hidden_states=states).last_hidden_state
        given = connector.eval().module(query_embeds=queries, encoder_hidden_states=states)
    torch.testing.assert_close(given.last_hidden_state, expected)


def test_what_does_not_fit_is_named(folder):
    with pytest.raises(ConfigError, match="queries"):
        Connector(weights=str(folder), num_queries=9).build(16, 8)
    with pytest.raises(ConfigError, match="image features"):
        Connector(weights=str(folder), num_queries=4).build(99, 8)


def test_as_a_whole_model_it_says_what_it_is_good_for(folder):
    with pytest.raises(ConfigError, match="connector.weights"):
        layout.load(folder, NAME)
