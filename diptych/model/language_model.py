"""Any Hugging Face causal or encoder-decoder language model, with its tokenizer.

Only the body runs on whole rows; the output layer runs where something is to be predicted
(`logits`), so the full logits tensor never exists.

Shapes: P positions, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from diptych.data.text.joints import Joint
from diptych.errors import ConfigError, WeightsNotFound
from diptych.model import products
from diptych.model.look_up import look_up
from diptych.model.vision_encoder import config_from_dict
from diptych.model.weights import FromHub, cast, load_pretrained, locate, reading

TRAINED_ON_DATA = "data"
"""Name of the tokenizer that a run trains itself."""


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
    answer_tokens: tuple[str, ...] = ()
    """Words that stay single tokens in answers that are learned, such as `<think>` or `<loc*>`;
    in questions they are plain text. Words that the chat template looks for in answers need not
    be named."""
    start: Literal["look_up"] | None = None
    """How a model from scratch begins: look_up lets half of its heads begin by looking for words
    in the picture (model/look_up.py); null is as the config says."""
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
    from transformers import AutoConfig

    source = config.tokenizer or config.weights
    revision = None if config.tokenizer else config.revision
    tokenizer = tokenizer or load_tokenizer(source, "model.language_model", revision)
    if config.weights is not None:
        folder = locate(config.weights, revision=config.revision, described=True)
        with reading(folder, "model.language_model.weights"):
            hf_config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    elif config.config is not None:
        values = {"vocab_size": len(tokenizer), **config.config}
        ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        hf_config = config_from_dict({**ids, **values}, "model.language_model.config")
    else:
        raise ConfigError(
            "the language model has neither weights nor config",
            where="model.language_model",
            fix="set weights to a folder or hub name, or config to a Hugging Face config",
        )
    if hf_config.vocab_size < len(tokenizer):
        raise ConfigError(
            f"the tokenizer has {len(tokenizer)} tokens, the model only {hf_config.vocab_size}",
            where="model.language_model",
        )
    return hf_config, tokenizer


def load_tokenizer(source: str | None, where: str, revision: str | None = None) -> Any:
    """The tokenizer of a folder or hub name, there at a revision.

    Raises:
        ConfigError: none is named, or it is one that only a run can train.
        WeightsNotFound: there is none that transformers can read.
    """
    from transformers import AutoTokenizer

    if source is None:
        raise ConfigError(
            "a model from scratch needs a tokenizer",
            where=f"{where}.tokenizer",
            fix="name a folder or model whose tokenizer it shall use",
        )
    if source == TRAINED_ON_DATA:
        raise ConfigError(
            "the tokenizer is to be trained on the data, which only a run can do",
            where=f"{where}.tokenizer",
            fix="use `diptych train`, or name a tokenizer",
        )
    try:
        folder = locate(source, revision=revision, described=True)
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsNotFound(
            f"'{source}' holds no tokenizer that transformers can read: {error}",
            where=f"{where}.tokenizer",
        ) from error


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
        if config.start == "look_up":
            look_up(module)
    else:
        module = load_pretrained(
            kind,
            locate(config.weights, revision=config.revision),
            "model.language_model.weights",
            getattr(torch, config.dtype),
            config=hf_config,
            attn_implementation=config.attention,
        )
    return LanguageModel(cast(module, getattr(torch, config.dtype)), tokenizer)


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
