"""BLIP's mixture of text encoder and decoder: all weights shared but self-attention.

Three ways to use it: read a text alone, read it in the light of a picture, write it from a
picture. The layers are transformers' `BlipTextModel` and `BlipTextLMHeadModel`.

Shapes: n texts, T tokens, N image tokens, C their width, D text width, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.data.text.plain_text import TextTokens
from diptych.errors import ConfigError
from diptych.model.query_former import DEC, bert_sizes, with_marks
from diptych.model.tensors import fill, without_weights
from diptych.model.text_config import load_tokenizer
from diptych.model.weights import FromHub, load_pretrained, locate, of_a_model, reading

WHERE = "model.text"
ENC = "[ENC]"
"""Starts a text that is read in the light of a picture."""


class TextMixtureConfig(FromHub):
    """Layers and tokenizer."""

    weights: str | None = None
    """Local folder or hub name of a BERT whose weights it starts from, where cross-attention is
    new; model or run folder of a captioner, or `recipe:NAME`, which is run first; null builds
    from `config`."""
    config: dict[str, Any] | None = None
    """Sizes of a BlipTextConfig for layers that learn from scratch."""
    tokenizer: str | None = None
    """Local folder or hub name of the tokenizer; null takes the one beside the weights; `data`
    trains a small one on the run's training data, with `vocab_size` of `config` tokens."""
    num_layers: int | None = Field(default=None, ge=1)
    """Only the first so many layers of the weights, for a smaller model; null takes all."""
    max_tokens: int = Field(default=30, ge=4)
    """Longest text, start and end tokens included."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Of hidden states and attention, in training."""
    dtype: Literal["float32"] = "float32"
    """Precision in which the weights are kept."""


class TextMixture(nn.Module):
    """Reader and writer that share embeddings, cross-attention and feed-forward.

    Parity: tests/conformance/test_lavis_blip_pretrain.py.
    """

    reader: Any
    writer: Any

    def __init__(self, config: TextMixtureConfig, hf_config: Any, tokenizer: Any):
        super().__init__()
        from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel, BlipTextModel

        self.config = config
        self.hf_config = hf_config
        self.tokenizer = tokenizer
        self.reader = BlipTextModel._from_config(hf_config, add_pooling_layer=False)
        self.writer = BlipTextLMHeadModel._from_config(hf_config)
        share(self.reader, self.writer)
        self.context_tokens = min(config.max_tokens, int(hf_config.max_position_embeddings))

    @property
    def dim(self) -> int:
        return int(self.hf_config.hidden_size)

    @property
    def decoder_start(self) -> int:
        """Id that starts a text that is to be written."""
        return self.tokenizer.convert_tokens_to_ids(DEC)

    @property
    def grounded_start(self) -> int:
        """Id that starts a text that is read in the light of a picture."""
        return self.tokenizer.convert_tokens_to_ids(ENC)

    def tokens(self) -> TextTokens:
        """What turns texts into ids: start, text, end."""
        frame = (self.tokenizer.cls_token_id, self.tokenizer.sep_token_id)
        return TextTokens(self.tokenizer, self.context_tokens, frame=frame)

    def read(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Text states [n, T, D], both ways, no picture."""
        return self.reader(input_ids=ids, attention_mask=mask).last_hidden_state

    def ground(self, ids: Tensor, mask: Tensor, image_states: Tensor) -> Tensor:
        """Text states [n, T, D] in the light of pictures [n, N, C]; the first is the verdict's."""
        ids = ids.clone()
        ids[:, 0] = self.grounded_start
        return self.reader(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=image_states
        ).last_hidden_state

    def write(self, ids: Tensor, mask: Tensor, image_states: Tensor) -> Tensor:
        """States [n, T, D] that predict the next token, from pictures [n, N, C] and the past."""
        ids = ids.clone()
        ids[:, 0] = self.decoder_start
        return self.writer.bert(
            input_ids=ids,
            attention_mask=mask,
            encoder_hidden_states=image_states,
            is_decoder=True,
            use_cache=False,
        ).last_hidden_state

    def logits(self, states: Tensor) -> Tensor:
        """States [P, D] -> logits over the vocabulary [P, V]."""
        return self.writer.cls(states)


def share(reader: Any, writer: Any) -> None:
    """Make the writer use the reader's embeddings, cross-attention and feed-forward.

    Source: `tie_encoder_decoder_weights` of salesforce/BLIP, which skips `/attention` alone.
    """
    writer.bert.embeddings = reader.embeddings
    for own, its in zip(writer.bert.encoder.layer, reader.encoder.layer, strict=True):
        own.crossattention = its.crossattention
        own.intermediate = its.intermediate
        own.output = its.output
    predictions = writer.cls.predictions
    predictions.decoder.weight = reader.embeddings.word_embeddings.weight
    predictions.decoder.bias = predictions.bias


def build(config: TextMixtureConfig, image_dim: int, tokenizer: Any = None) -> TextMixture:
    """Newly initialised, or with the layers of a BERT; `tokenizer` instead of its own.

    Raises:
        ConfigError: neither weights nor config, or no tokenizer.
        CheckpointError: the weights are not those of a BERT.
    """
    from transformers import AutoConfig, BlipTextConfig

    if config.weights is not None and of_a_model(config.weights) is not None:
        return _of_captioner(config, image_dim)
    own = config.tokenizer or config.weights
    revision = None if config.tokenizer else config.revision
    tokenizer = with_marks(tokenizer or load_tokenizer(own, WHERE, revision))
    if ENC not in tokenizer.get_vocab():
        tokenizer.add_tokens([ENC], special_tokens=True)
    shared = {
        "encoder_hidden_size": image_dim,
        "is_decoder": True,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
        "label_smoothing": 0.0,
        "bos_token_id": tokenizer.convert_tokens_to_ids(DEC),
        "eos_token_id": tokenizer.sep_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if config.weights is None:
        if config.config is None:
            raise ConfigError(
                "the text part has neither weights nor config",
                where=WHERE,
                fix="set weights to a BERT, or config to sizes such as {hidden_size: 256}",
            )
        given = {k: v for k, v in config.config.items() if k != "model_type"}
        size = {**given, **shared, "vocab_size": max(len(tokenizer), given.get("vocab_size", 0))}
        try:
            return TextMixture(config, BlipTextConfig(**size), tokenizer)
        except (TypeError, ValueError) as error:
            where = f"{WHERE}.config"
            raise ConfigError(f"the config is not valid: {error}", where=where) from None
    folder = locate(config.weights, revision=config.revision)
    with reading(folder, f"{WHERE}.weights"):
        bert = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    sizes = bert_sizes(bert, config.num_layers, f"{WHERE}.weights")
    mixture = TextMixture(
        config, BlipTextConfig(**sizes, **shared, vocab_size=len(tokenizer)), tokenizer
    )
    _start_from(mixture, folder)
    return mixture


def _of_captioner(config: TextMixtureConfig, image_dim: int) -> TextMixture:
    """The text part of a captioner.

    Raises:
        ConfigError: another kind of model, or one for another image encoder.
    """
    where = f"{WHERE}.weights"
    own = of_a_model(str(config.weights))
    assert own is not None, "its caller asked"
    folder, values = own
    if values.get("name") != "captioner":
        raise ConfigError(
            f"'{config.weights}' holds a {values.get('name', 'vlm')}, not a captioner",
            where=where,
            fix="name the run of a BLIP pretraining, or a BERT",
        )
    stated = TextMixtureConfig.from_dict({**values["text"], "tokenizer": str(folder)})
    found = (stated.config or {})["encoder_hidden_size"]
    if found != image_dim:
        raise ConfigError(
            f"the model has {image_dim} image features, the captioner {found}",
            where=where,
            fix="use its image encoder, too",
        )
    with without_weights():
        mixture = build(stated, found)
    fill(mixture, folder / "model.safetensors", prefix="text.")
    return mixture


@torch.no_grad()
def _start_from(mixture: TextMixture, folder: Path) -> None:
    """Copy a BERT's layers into reader and writer.

    BERT's embedding of the first sentence is added to that of every position, so that text is read
    as BERT reads it; BLIP leaves it out.
    """
    from transformers import BertModel

    bert = load_pretrained(BertModel, folder, f"{WHERE}.weights", torch.float32)
    own = mixture.reader.embeddings
    words = bert.embeddings.word_embeddings.weight
    own.word_embeddings.weight[: len(words)] = words
    sentence = bert.embeddings.token_type_embeddings.weight[0]
    own.position_embeddings.weight.copy_(bert.embeddings.position_embeddings.weight + sentence)
    own.LayerNorm.load_state_dict(bert.embeddings.LayerNorm.state_dict())
    for model in (mixture.reader, mixture.writer.bert):
        for layer, its in zip(model.encoder.layer, bert.encoder.layer, strict=False):
            for name in ("attention", "intermediate", "output"):
                getattr(layer, name).load_state_dict(getattr(its, name).state_dict())
