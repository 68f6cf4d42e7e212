"""Learned queries that read the picture through a transformer (BLIP-2, stage 2).

Starts from a stage-1 run, where the queries have learned to take from the picture what texts are
about; its text side is left behind.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.errors import ConfigError
from diptych.model.connector import Connector, ConnectorConfig, Grid


class Config(ConnectorConfig):
    """A querying transformer and a linear layer to the language model's width."""

    name: str = "qformer"
    """File stem of the part."""
    weights: str | None = None
    """Model or run folder of a query_transformer (stage 1), or `recipe:NAME`, which is run first;
    null starts with random queries and layers."""
    config: dict[str, Any] = {}
    """Sizes of a Blip2QFormerConfig, BERT-base's when left out; taken from the weights where there
    are some."""
    num_queries: int = Field(default=32, ge=1)
    """Queries, each of which becomes one token."""

    def build(self, vision_dim: int, text_dim: int) -> Connector:
        if self.weights is not None:
            return _from_stage_1(self, vision_dim, text_dim)
        from transformers import Blip2QFormerConfig

        given = {k: v for k, v in self.config.items() if k != "model_type"}
        sizes = {**given, "encoder_hidden_size": vision_dim, "use_qformer_text_input": False}
        try:
            hf_config = Blip2QFormerConfig(**sizes)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"the config is not valid: {error}", where="model.connector"
            ) from None
        return QFormer(self, hf_config, text_dim)

    def num_tokens(self, grid: Grid, num_prefix: int = 0) -> int:
        return self.num_queries


class QFormer(Connector):
    """features [B, N, C] -> norm -> queries read them [B, Q, D] -> linear -> tokens [B, Q, text].

    Source: BLIP-2, section 3.2 (arXiv:2301.12597).
    Parity: tests/parity/test_hf_blip2.py.
    """

    module: Any

    def __init__(self, config: Config, hf_config: Any, text_dim: int):
        super().__init__()
        from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel

        self.hf_config = hf_config
        self.image_norm = nn.LayerNorm(hf_config.encoder_hidden_size)
        self.queries = nn.Parameter(torch.empty(config.num_queries, hf_config.hidden_size))
        nn.init.normal_(self.queries, std=hf_config.initializer_range)
        self.module = Blip2QFormerModel._from_config(hf_config)
        self.projection = nn.Linear(hf_config.hidden_size, text_dim)

    def forward(self, features_BNC: Tensor, grid: Grid) -> Tensor:  # noqa: N803
        states = self.module(
            query_embeds=self.queries.expand(len(features_BNC), -1, -1),
            encoder_hidden_states=self.image_norm(features_BNC),
        ).last_hidden_state
        return self.projection(states)


def _from_stage_1(config: Config, vision_dim: int, text_dim: int) -> QFormer:
    """The connector with norm, queries and layers of a stage-1 model.

    Raises:
        ConfigError: no such model, or one for another encoder or number of queries.
    """
    from diptych.model.checkpoint import load_model

    where = "model.connector.weights"
    stage_1 = load_model(str(config.weights))
    former = getattr(stage_1, "query_former", None)
    if former is None:
        raise ConfigError(
            f"'{config.weights}' holds a {stage_1.config.name}, not a query_transformer",
            where=where,
            fix="name the run of a stage 1",
        )
    found = former.hf_config
    for what, own, its in (
        ("image features", vision_dim, found.encoder_hidden_size),
        ("queries", config.num_queries, former.num_queries),
    ):
        if own != its:
            raise ConfigError(
                f"the model has {own} {what}, the stage-1 run {its}",
                where=where,
                fix="use the encoder and the number of queries of that run",
            )
    sizes = {**found.to_dict(), "use_qformer_text_input": False}
    connector = QFormer(config, type(found).from_dict(sizes), text_dim)
    kept = connector.module.state_dict().keys()
    weights = {n: t for n, t in former.module.state_dict().items() if n in kept}
    connector.module.load_state_dict(weights)
    connector.image_norm.load_state_dict(former.image_norm.state_dict())
    with torch.no_grad():
        connector.queries.copy_(former.queries)
    return connector
