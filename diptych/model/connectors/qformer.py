"""Learned queries that read the picture through a transformer (BLIP-2, stage 2).

Starts from a stage-1 run, where the queries have learned to take from the picture what texts are
about; its text side is left behind.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.errors import CheckpointError, ConfigError
from diptych.model import lavis_qformer
from diptych.model.connector import Connector, ConnectorConfig, Grid
from diptych.model.pickles import read_tensors
from diptych.model.query_former import is_qformer, read_qformer, take_queries
from diptych.model.weights import FromHub, of_another_model

WHERE = "model.connector.weights"


class Config(ConnectorConfig, FromHub):
    """A querying transformer and a linear layer to the language model's width."""

    name: str = "qformer"
    """File stem of the part."""
    weights: str | None = None
    """Model or run folder of a query_transformer (stage 1), `recipe:NAME`, which is run first, a
    folder or hub name of transformers' Blip2QFormerModel, or a .pth file of LAVIS (stage 1 or 2);
    null starts with random queries and layers."""
    config: dict[str, Any] = {}
    """Sizes of a Blip2QFormerConfig, BERT-base's when left out; taken from the weights where there
    are some."""
    num_queries: int = Field(default=32, ge=1)
    """Queries, each of which becomes one token."""
    norm_eps: float = Field(default=1e-5, gt=0)
    """Epsilon of the norm of image features (LAVIS: 1e-5); taken from a stage-1 run."""

    def build(
        self, vision_dim: int, text_dim: int, embeddings: nn.Module | None = None
    ) -> Connector:
        connector = self._built(vision_dim, text_dim)
        if embeddings is not None and not connector.has_projection:
            _as_large_as(connector.projection, embeddings.weight)
        return connector

    def _built(self, vision_dim: int, text_dim: int) -> QFormer:
        if self.weights is not None:
            if is_qformer(self.weights, self.revision):
                return _from_qformer(self, vision_dim, text_dim)
            if self.weights.endswith(".pth"):
                return _from_lavis(self, vision_dim, text_dim)
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
        self.config = config
        from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel

        self.hf_config = hf_config
        self.image_norm = nn.LayerNorm(hf_config.encoder_hidden_size, eps=config.norm_eps)
        self.queries = nn.Parameter(torch.empty(config.num_queries, hf_config.hidden_size))
        nn.init.normal_(self.queries, std=hf_config.initializer_range)
        self.module = Blip2QFormerModel._from_config(hf_config)
        self.projection = nn.Linear(hf_config.hidden_size, text_dim)
        self.has_projection = False

    def forward(self, features_BNC: Tensor, grid: Grid) -> Tensor:  # noqa: N803
        states = self.module(
            query_embeds=self.queries.expand(len(features_BNC), -1, -1),
            encoder_hidden_states=self.image_norm(features_BNC),
        ).last_hidden_state
        return self.projection(states)


@torch.no_grad()
def _as_large_as(projection: nn.Linear, words: Any) -> None:
    """Let a new layer make tokens as large as the language model's own.

    Queries end in a norm; a new linear layer would make tokens several times as large as those
    of a small language model, which then takes long to listen.
    """
    if not words.is_meta:
        projection.weight.mul_(float(words.detach().float().std()) * math.sqrt(3))
        projection.bias.zero_()


def _from_stage_1(config: Config, vision_dim: int, text_dim: int) -> QFormer:
    """The connector with norm, queries and layers of a stage-1 model.

    Raises:
        ConfigError: no such model, or one for another encoder or number of queries.
    """
    from transformers import Blip2QFormerConfig

    kind, values, tensors = of_another_model(
        str(config.weights), config.revision, "query_former", WHERE
    )
    if values is None:
        raise ConfigError(
            f"'{config.weights}' holds a {kind}, not a query_transformer",
            where=WHERE,
            fix="name the run of a stage 1",
        )
    sizes = {**values["config"], "use_qformer_text_input": False}
    sizes.pop("model_type", None)
    _agree(config, vision_dim, sizes["encoder_hidden_size"], len(tensors["queries"]))
    settled = config.model_copy(update={"norm_eps": values["norm_eps"]})
    connector = QFormer(settled, Blip2QFormerConfig(**sizes), text_dim)
    own = connector.state_dict()
    # What reads texts stays behind; the layer to the language model is new.
    taken = {n: t for n, t in tensors.items() if n in own and not n.startswith("projection.")}
    wrong = [
        n for n in own
        if not n.startswith("projection.") and (n not in taken or taken[n].shape != own[n].shape)
    ]  # fmt: skip
    if wrong:
        raise CheckpointError(f"{wrong[0]} is missing or of another shape", where=WHERE)
    connector.load_state_dict({**own, **taken})
    return connector


def _from_qformer(config: Config, vision_dim: int, text_dim: int) -> QFormer:
    """The connector with the layers of a Blip2QFormerModel; queries too, where its folder has them.

    Raises:
        ConfigError: it was made for another encoder or number of queries.
    """
    module, queries = read_qformer(str(config.weights), WHERE, config.revision)
    num_queries = config.num_queries if queries is None else len(queries["queries"])
    _agree(config, vision_dim, module.config.encoder_hidden_size, num_queries)
    sizes = {**module.config.to_dict(), "use_qformer_text_input": False}
    connector = QFormer(config, type(module.config).from_dict(sizes), text_dim)
    kept = connector.module.state_dict().keys()
    connector.module.load_state_dict({n: t for n, t in module.state_dict().items() if n in kept})
    if queries is not None:
        take_queries(connector, queries)
    return connector


def _from_lavis(config: Config, vision_dim: int, text_dim: int) -> QFormer:
    """The connector of a LAVIS checkpoint; of stage 2 with its layer to the language model.

    Raises:
        UnsafeFile: the file wants to run code.
        CheckpointError: it holds no Q-Former, or one for another language model.
        ConfigError: it was made for another encoder or number of queries.
    """
    from transformers import Blip2QFormerConfig

    file = Path(str(config.weights)).expanduser()
    found = lavis_qformer.read(read_tensors(file))
    sizes = lavis_qformer.sizes(found, file)
    _agree(config, vision_dim, sizes["encoder_hidden_size"], len(found["queries"]))
    connector = QFormer(config, Blip2QFormerConfig(**sizes), text_dim)
    own = connector.state_dict()
    taken = {n: t for n, t in found.items() if n in own}  # what reads texts stays behind
    fresh = {"projection.weight", "projection.bias"} if "projection.weight" not in taken else set()
    wrong = sorted(
        n for n in own.keys() - fresh if n not in taken or taken[n].shape != own[n].shape
    )
    if wrong:
        raise CheckpointError(
            f"{wrong[0]} is missing there or made for another language model", where=str(file)
        )
    connector.load_state_dict({**own, **taken})
    connector.has_projection = not fresh
    return connector


def _agree(config: Config, vision_dim: int, its_dim: int, its_queries: int) -> None:
    for what, own, its in (
        ("image features", vision_dim, its_dim),
        ("queries", config.num_queries, its_queries),
    ):
        if own != its:
            raise ConfigError(
                f"the model has {own} {what}, the weights were learned with {its}",
                where=WHERE,
                fix="use the encoder and the number of queries of that run",
            )
