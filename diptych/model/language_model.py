"""Any Hugging Face causal or encoder-decoder language model, with its tokenizer.

Only the body runs on whole rows; the output layer runs where something is to be predicted
(`logits`), so the full logits tensor never exists.

Shapes: P positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych import parts
from diptych.config import ADDED
from diptych.data.text.joints import Joint
from diptych.errors import ConfigError
from diptych.model import products
from diptych.model.text_config import resolved
from diptych.model.weights import FromHub, cast, load_pretrained, locate


class LanguageModelConfig(FromHub):
    """Which language model and tokenizer."""

    weights: str | None = None
    """Local folder or hub name of pretrained weights; null builds from `config`."""
    config: dict[str, Any] | None = None
    """Hugging Face config (with `model_type`) for a model that learns from scratch; its
    `vocab_size` follows the tokenizer when left out."""
    tokenizer: str | None = None
    """Local folder or hub name of the tokenizer; null takes the one beside the weights; `data`
    trains a small one on the run's training data, with `vocab_size` of `config` tokens."""
    template: str | None = None
    """Chat template: plain, chatml, vicuna, mistral, compact, qa, a Jinja text, or null for the
    tokenizer's."""
    picture_joint: Joint | None = None
    """How a picture joins the text beside it: line (a line break between a picture at the start or
    end of a turn and the text), front (a single picture moves to the front of its turn, as in
    LLaVA), none (as the row has it), begin (pictures before the tokenizer's beginning token, as in
    BLIP-2); null is the template's own way."""
    picture_marks: tuple[str, str] | None = Field(default=None, json_schema_extra=ADDED)
    """Tokens before and behind every picture, as InternVL has them (`["<img>", "</img>"]`); what
    the tokenizer lacks is added to it, and the embeddings grow."""
    answer_tokens: tuple[str, ...] = ()
    """Words that stay single tokens in answers that are learned, such as `<think>` or `<loc*>`;
    in questions they are plain text. Words that the chat template looks for in answers need not
    be named."""
    answer_after: str | None = Field(default=None, min_length=1)
    """What stands between working and answer in what it says, such as `</think>`: a chat shows, and
    an evaluation scores, what follows the last of them; null where all of it is the answer."""
    initialise: str | None = Field(default=None, pattern=r"\.")
    """Module whose function `initialise(module)` changes a new model before it learns, by its
    dotted name, such as my_package.my_start (allowed by DIPTYCH_PARTS=my_package); null begins as
    the config says."""
    tokenizer_words: str | None = Field(default=None, pattern=r"\.")
    """Module whose `Words` say which words a tokenizer that is trained on data (`tokenizer: data`)
    keeps whole, by its dotted name; null keeps none."""
    attention: Literal["sdpa", "eager", "products"] = "sdpa"
    """Attention implementation of transformers, or plain products, which are faster on CPUs in
    bfloat16 (model/products.py)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision in which the weights are kept; LoRA adapters on them stay float32."""


def resolve(config: LanguageModelConfig, tokenizer: Any = None) -> tuple[Any, Any]:
    """(HF config, tokenizer), no weights read.

    Raises:
        ConfigError: neither weights nor config, or no tokenizer.
    """
    return resolved(config, "model.language_model", "language model", tokenizer)


def build(config: LanguageModelConfig, tokenizer: Any = None) -> LanguageModel:
    """The language model with its weights, or newly initialised; `tokenizer` instead of its own."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    products.register()
    hf_config, tokenizer = resolve(config, tokenizer)
    kind = AutoModelForSeq2SeqLM if hf_config.is_encoder_decoder else AutoModelForCausalLM
    if config.weights is None:
        try:
            module = kind.from_config(hf_config, attn_implementation=config.attention)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"a {hf_config.model_type} cannot be built so: {error}",
                where="model.language_model",
                fix="if it is about attention, set attention to eager; else check the config",
            ) from error
        if config.initialise is not None:
            parts.find("model", config.initialise).initialise(module)
    else:
        module = load_pretrained(
            kind,
            locate(config.weights, revision=config.revision),
            "model.language_model.weights",
            getattr(torch, config.dtype),
            config=hf_config,
            attn_implementation=config.attention,
        )
    model = LanguageModel(cast(module, getattr(torch, config.dtype)), tokenizer)
    if config.picture_marks is not None:
        model.add_tokens(config.picture_marks)
    return model


class LanguageModel(nn.Module):
    """A language model split into embeddings, body and output layer.

    Parity: tests/parity/test_language_model.py compares with the class's own forward.
    """

    # Hugging Face classes share no typed base with what is used of them here.
    module: Any
    hf_config: Any

    def __init__(self, module: nn.Module, tokenizer: Any):
        super().__init__()
        self.module = module
        self.tokenizer = tokenizer
        self.hf_config = module.config
        self.is_encoder_decoder = bool(self.hf_config.is_encoder_decoder)

    def add_tokens(self, words: Sequence[str]) -> None:
        """Give the tokenizer special tokens that it lacks, and each a row of the embeddings.

        A new row is the mean of the others, here and in the output layer.
        """
        from transformers import AddedToken

        known = self.tokenizer.get_vocab()
        new = [AddedToken(w, special=True, normalized=False) for w in words if w not in known]
        if not new:
            return
        self.tokenizer.add_tokens(new, special_tokens=True)
        rows = len(self.embeddings)
        if len(self.tokenizer) <= rows:
            return
        self.module.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)
        tables = {id(t): t for t in (self.embeddings, self.module.get_output_embeddings().weight)}
        with torch.no_grad():
            for table in tables.values():
                table[rows:] = table[:rows].mean(0)

    @property
    def dim(self) -> int:
        """Width of the input embeddings."""
        return self.module.get_input_embeddings().weight.shape[1]

    @property
    def context_tokens(self) -> int:
        """Longest sequence the model was made for."""
        return int(getattr(self.hf_config, "max_position_embeddings", 2**20) or 2**20)

    @property
    def embeddings(self) -> Tensor:
        """The table of input embeddings [vocabulary, D]."""
        return self.module.get_input_embeddings().weight

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [...] -> embeddings [..., D]."""
        return self.module.get_input_embeddings()(ids)

    def body(self, **inputs: Any) -> Any:
        """The transformer without its output layer; arguments as in transformers.

        Of an encoder-decoder model this is the decoder.
        """
        inner = self.module.get_decoder() if self.is_encoder_decoder else self.module.base_model
        return inner(**inputs)

    def encode(self, embeds: Tensor, mask: Tensor) -> Tensor:
        """Encoder states [R, S, D] of an encoder-decoder model."""
        encoder = self.module.get_encoder()
        return encoder(inputs_embeds=embeds, attention_mask=mask).last_hidden_state

    def logits(self, hidden_PD: Tensor) -> Tensor:  # noqa: N803
        """Hidden states [P, D] -> logits [P, V], with the model's own scaling."""
        if self.is_encoder_decoder and getattr(self.hf_config, "scale_decoder_outputs", False):
            hidden_PD = hidden_PD * self.module.model_dim**-0.5  # noqa: N806
        logits = self.module.get_output_embeddings()(hidden_PD)
        if (bias := getattr(self.module, "final_logits_bias", None)) is not None:
            logits = logits + bias[0]
        text_config = self.hf_config.get_text_config()
        if (scale := getattr(text_config, "logit_scale", None)) is not None:
            logits = logits * scale
        if (scale := getattr(text_config, "logits_scaling", None)) is not None:
            logits = logits / scale
        if (cap := getattr(text_config, "final_logit_softcapping", None)) is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits
