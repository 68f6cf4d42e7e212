"""The querying transformer: learned queries that read a picture, in one body with a text encoder.

The layers are transformers' `Blip2QFormerModel`, which is BERT with a second feed-forward for
queries and cross-attention in every second layer; what text it may see is a matter of the mask.

Shapes: B pictures, N image tokens, C their width, Q queries, T text tokens, D width.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor, nn

from diptych.data.text.plain_text import TextTokens
from diptych.errors import CheckpointError, ConfigError
from diptych.model.text_config import load_tokenizer
from diptych.model.weights import FromHub, load_pretrained, locate, reading

WHERE = "model.query_former"
DEC = "[DEC]"
"""Starts a text that is to be written, where another token starts one that is to be read."""


class QueryFormerConfig(FromHub):
    """Queries, layers and tokenizer."""

    weights: str | None = None
    """Local folder or hub name of a BERT whose weights it starts from (MiniLM, bert-base-uncased),
    where cross-attention and queries are new; or a folder of transformers' Blip2QFormerModel, which
    has no word embeddings; null builds from `config`."""
    config: dict[str, Any] | None = None
    """Sizes of a Blip2QFormerConfig for layers that learn from scratch."""
    tokenizer: str | None = None
    """Local folder or hub name of the tokenizer; null takes the one beside the weights; `data`
    trains a small one on the run's training data, with `vocab_size` of `config` tokens."""
    num_layers: int | None = Field(default=None, ge=1)
    """Only the first so many layers of the weights, for a smaller model; null takes all."""
    num_queries: int = Field(default=32, ge=1)
    """Learned queries: the tokens that a picture becomes."""
    cross_attention_every: int = Field(default=2, ge=1)
    """The queries look at the picture in every second layer with 2 (BLIP-2), in every layer with
    1."""
    max_tokens: int = Field(default=32, ge=4)
    """Longest text, start and end tokens included."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Of hidden states and attention, in training."""
    norm_eps: float = Field(default=1e-5, gt=0)
    """Epsilon of the norm of image features (LAVIS: 1e-5)."""
    dtype: Literal["float32"] = "float32"
    """Precision in which the weights are kept."""


class QueryFormer(nn.Module):
    """Queries and text in one transformer.

    Parity: tests/conformance/test_lavis_qformer_stage1.py.
    """

    module: Any

    def __init__(self, config: QueryFormerConfig, hf_config: Any, tokenizer: Any, image_dim: int):
        super().__init__()
        from transformers.models.blip_2.modeling_blip_2 import (
            Blip2QFormerModel,
            Blip2TextEmbeddings,
        )

        self.config = config
        self.hf_config = hf_config
        self.tokenizer = tokenizer
        width = hf_config.hidden_size
        self.image_norm = nn.LayerNorm(image_dim, eps=config.norm_eps)
        self.queries = nn.Parameter(torch.empty(config.num_queries, width))
        nn.init.normal_(self.queries, std=hf_config.initializer_range)
        self.embeddings = Blip2TextEmbeddings(hf_config)
        for table in (self.embeddings.word_embeddings, self.embeddings.position_embeddings):
            nn.init.normal_(table.weight, std=hf_config.initializer_range)
        self.module = Blip2QFormerModel._from_config(hf_config)
        # What BERT calls the prediction head: a layer before the (shared) word embeddings.
        self.transform = nn.Linear(width, width)
        nn.init.normal_(self.transform.weight, std=hf_config.initializer_range)
        nn.init.zeros_(self.transform.bias)
        self.transform_norm = nn.LayerNorm(width, eps=hf_config.layer_norm_eps)
        self.output_bias = nn.Parameter(torch.zeros(hf_config.vocab_size))
        own = int(hf_config.max_position_embeddings)
        self.context_tokens = min(config.max_tokens, own)

    @property
    def dim(self) -> int:
        return int(self.hf_config.hidden_size)

    @property
    def num_queries(self) -> int:
        return self.queries.shape[0]

    @property
    def decoder_start(self) -> int:
        """Id that starts a text that is to be written."""
        return self.tokenizer.convert_tokens_to_ids(DEC)

    def tokens(self) -> TextTokens:
        """What turns texts into ids: start, text, end."""
        frame = (self.tokenizer.cls_token_id, self.tokenizer.sep_token_id)
        return TextTokens(self.tokenizer, self.context_tokens, frame=frame)

    # -- passes -----------------------------------------------------------------------------

    def image_states(self, features: Tensor) -> Tensor:
        """Encoder features [B, N, C] -> what the queries look at [B, N, C]."""
        return self.image_norm(features.to(self.image_norm.weight.dtype))

    def read_image(self, image_states: Tensor) -> Tensor:
        """Queries that looked at a picture [B, Q, D]."""
        queries = self.queries.expand(len(image_states), -1, -1)
        return self._run(queries, self.num_queries, None, image_states)

    def read_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Text states [B, T, D], both ways, no picture."""
        visible = mask.bool()[:, None, None, :].expand(-1, 1, ids.shape[1], -1)
        return self._run(self.embeddings(input_ids=ids), 0, visible, None)

    def read_both(self, ids: Tensor, mask: Tensor, image_states: Tensor) -> Tensor:
        """Queries and text that see each other: [B, Q + T, D], queries first."""
        both = self._both(ids)
        length = both.shape[1]
        real = torch.cat([mask.new_ones(len(ids), self.num_queries), mask], 1).bool()
        visible = real[:, None, None, :].expand(-1, 1, length, -1)
        return self._run(both, self.num_queries, visible, image_states)

    def write(self, ids: Tensor, mask: Tensor, image_states: Tensor) -> Tensor:
        """Text that sees the queries and its past, queries that see each other: [B, Q + T, D].

        The queries come out as from `read_image`, so one pass serves both. Padding is seen by
        itself only.
        Source: the mask of UniLM (arXiv:1905.03197); BLIP-2, section 3.1.
        """
        num, length = self.num_queries, self.num_queries + ids.shape[1]
        allowed = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        allowed[:num] = False
        allowed[:, :num] = True
        real = torch.cat([mask.new_ones(len(ids), num), mask], 1).bool()
        visible = allowed & real[:, None, :]
        visible = visible | torch.eye(length, dtype=torch.bool, device=ids.device)
        return self._run(self._both(ids), num, visible[:, None], image_states)

    def logits(self, states: Tensor) -> Tensor:
        """Text states [P, D] -> logits over the vocabulary [P, V]."""
        hidden = nn.functional.gelu(self.transform(states))
        words = self.embeddings.word_embeddings.weight
        return nn.functional.linear(self.transform_norm(hidden), words, self.output_bias)

    def _both(self, ids: Tensor) -> Tensor:
        queries = self.queries.expand(len(ids), -1, -1)
        return self.embeddings(input_ids=ids, query_embeds=queries)

    def _run(
        self, embeds: Tensor, num_queries: int, visible: Tensor | None, image_states: Tensor | None
    ) -> Tensor:
        return self.module(
            query_embeds=embeds,
            query_length=num_queries,
            attention_mask=visible,
            encoder_hidden_states=image_states,
        ).last_hidden_state


def build(config: QueryFormerConfig, image_dim: int, tokenizer: Any = None) -> QueryFormer:
    """Newly initialised, or with the layers of a BERT; `tokenizer` instead of its own.

    Raises:
        ConfigError: neither weights nor config, or no tokenizer.
        CheckpointError: the weights are not those of a BERT.
    """
    from transformers import AutoConfig, Blip2QFormerConfig

    own = config.tokenizer or config.weights
    revision = None if config.tokenizer else config.revision
    tokenizer = with_marks(tokenizer or load_tokenizer(own, WHERE, revision))
    shared = {
        "encoder_hidden_size": image_dim,
        "cross_attention_frequency": config.cross_attention_every,
        "use_qformer_text_input": True,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if config.weights is None:
        if config.config is None:
            raise ConfigError(
                "the query former has neither weights nor config",
                where=WHERE,
                fix="set weights to a BERT, or config to sizes such as {hidden_size: 256}",
            )
        given = {k: v for k, v in config.config.items() if k != "model_type"}
        size = {**given, **shared, "vocab_size": max(len(tokenizer), given.get("vocab_size", 0))}
        try:
            hf_config = Blip2QFormerConfig(**size)
            return QueryFormer(config, hf_config, tokenizer, image_dim)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"the config is not valid: {error}", where=f"{WHERE}.config"
            ) from None
    if is_qformer(config.weights, config.revision):
        return _with_qformer(config, tokenizer, image_dim)
    folder = locate(config.weights, revision=config.revision)
    with reading(folder, f"{WHERE}.weights"):
        bert = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    sizes = bert_sizes(bert, config.num_layers, f"{WHERE}.weights")
    hf_config = Blip2QFormerConfig(**sizes, **shared, vocab_size=len(tokenizer))
    former = QueryFormer(config, hf_config, tokenizer, image_dim)
    _start_from(former, folder)
    return former


QUERIES = "queries.safetensors"
"""Beside a Blip2QFormerModel that Diptych wrote: the queries and the norm of image features, which
that class has no place for."""


def is_qformer(source: str, revision: str | None = None) -> bool:
    """Whether that is a folder or hub name of transformers' Blip2QFormerModel.

    Raises:
        WeightsNotFound: a hub name that leads nowhere.
    """
    place = Path(source).expanduser()
    if not place.exists() and not source.endswith(".pth"):
        place = locate(source, revision=revision, described=True)
    file = place / "config.json"
    if not file.is_file():
        return False
    values = json.loads(file.read_text(encoding="utf-8"))
    return isinstance(values, dict) and values.get("model_type") == "blip_2_qformer"


def read_qformer(
    source: str, where: str, revision: str | None = None
) -> tuple[Any, dict[str, Tensor] | None]:
    """The Blip2QFormerModel of a folder or hub name, and what `QUERIES` holds, where it is there.

    Raises:
        CheckpointError, UnsafeFile: it cannot be read.
    """
    from transformers import Blip2QFormerModel

    folder = locate(source, revision=revision)
    module = load_pretrained(Blip2QFormerModel, folder, where, torch.float32)
    file = folder / QUERIES
    return module, load_file(file) if file.is_file() else None


@torch.no_grad()
def take_queries(owner: Any, found: dict[str, Tensor]) -> None:
    """Copy queries and the norm of image features into a query former or a connector."""
    owner.queries.copy_(found["queries"])
    owner.image_norm.weight.copy_(found["image_norm.weight"])
    owner.image_norm.bias.copy_(found["image_norm.bias"])


def _with_qformer(config: QueryFormerConfig, tokenizer: Any, image_dim: int) -> QueryFormer:
    """A query former with the layers of a Blip2QFormerModel."""
    where = f"{WHERE}.weights"
    module, queries = read_qformer(str(config.weights), where, config.revision)
    hf_config = module.config
    num_queries = config.num_queries if queries is None else len(queries["queries"])
    if (hf_config.encoder_hidden_size, num_queries) != (image_dim, config.num_queries):
        raise ConfigError(
            f"the weights are for {hf_config.encoder_hidden_size} image features and {num_queries} "
            f"queries, the model has {image_dim} and {config.num_queries}",
            where=where,
        )
    if not hf_config.use_qformer_text_input:
        raise ConfigError(
            "these layers know queries only (use_qformer_text_input is false), and here they "
            "read texts, too",
            where=where,
            fix="use them as model.connector.weights, or start from a BERT",
        )
    sizes = {**hf_config.to_dict(), "vocab_size": max(len(tokenizer), hf_config.vocab_size)}
    former = QueryFormer(config, type(hf_config).from_dict(sizes), tokenizer, image_dim)
    former.module.load_state_dict(module.state_dict())
    if queries is not None:
        take_queries(former, queries)
    return former


def bert_sizes(bert: Any, num_layers: int | None, where: str) -> dict[str, Any]:
    """Sizes of a BERT's layers from its config; at most `num_layers` of them.

    Raises:
        CheckpointError: the config is not a BERT's.
    """
    if bert.model_type != "bert":
        raise CheckpointError(f"a {bert.model_type} has other layers than BERT", where=where)
    names = (
        *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
        *("hidden_act", "max_position_embeddings", "initializer_range", "layer_norm_eps"),
    )
    sizes = {name: getattr(bert, name) for name in names}
    if num_layers is not None:
        sizes["num_hidden_layers"] = min(num_layers, bert.num_hidden_layers)
    return sizes


def with_marks(tokenizer: Any) -> Any:
    """The tokenizer with a start, an end, padding, and the start of a text to be written."""
    marks = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    missing = {name: mark for name, mark in marks.items() if getattr(tokenizer, name) is None}
    if missing:
        tokenizer.add_special_tokens(missing)
    if DEC not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"bos_token": DEC})
    return tokenizer


@torch.no_grad()
def _start_from(former: QueryFormer, folder: Path) -> None:
    """Copy a BERT's layers; queries start with the same feed-forward as text.

    BERT's embedding of the first sentence is added to that of every position, so that text is
    read as BERT reads it; LAVIS leaves it out.
    Source: `init_Qformer` of salesforce/LAVIS (feed-forward of queries copied from the text's).
    """
    from transformers import BertModel

    bert = load_pretrained(BertModel, folder, f"{WHERE}.weights", torch.float32)
    words = bert.embeddings.word_embeddings.weight
    former.embeddings.word_embeddings.weight[: len(words)] = words
    positions = bert.embeddings.position_embeddings.weight
    sentence = bert.embeddings.token_type_embeddings.weight[0]
    former.embeddings.position_embeddings.weight.copy_(positions + sentence)
    former.module.layernorm.load_state_dict(bert.embeddings.LayerNorm.state_dict())
    for own, its in zip(former.module.encoder.layer, bert.encoder.layer, strict=False):
        own.attention.attention.query.load_state_dict(its.attention.self.query.state_dict())
        own.attention.attention.key.load_state_dict(its.attention.self.key.state_dict())
        own.attention.attention.value.load_state_dict(its.attention.self.value.state_dict())
        own.attention.output.load_state_dict(its.attention.output.state_dict())
        for name in ("intermediate", "output"):
            weights = getattr(its, name).state_dict()
            getattr(own, name).load_state_dict(weights)
            getattr(own, f"{name}_query").load_state_dict(weights)
