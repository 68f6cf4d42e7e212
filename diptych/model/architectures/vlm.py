"""The two panels and the hinge: image encoder, connector, language model.

Image features replace placeholders in the token sequence; the language model reads the rest
as usual. One `Batch` (packed or not) goes in, hidden states or log-probabilities of the
targets come out.

Shapes: R rows, T tokens, D language width, S tiles of all pictures, N encoder tokens,
        C encoder width, K tokens of one tile, I tokens of all pictures, P targets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diptych.data.batching.batch import Batch
from diptych.data.batching.budget import Budget
from diptych.data.batching.collate import TokenCollator
from diptych.data.batching.collate_pairs import PairCollator
from diptych.data.batching.picture_loader import PictureLoader
from diptych.data.pixels.tiling import Tiles
from diptych.data.sample import IMAGE_TOKEN, Image, Sample
from diptych.data.text.chat import ChatEncoder
from diptych.errors import ConfigError, ImageTokenMismatch, ModelError
from diptych.model import generate as generation
from diptych.model import language_model as language_models
from diptych.model import likelihood
from diptych.model import vision_encoder as vision_encoders
from diptych.model.architecture import ArchitectureConfig, Model
from diptych.model.arrangement import Arrangement
from diptych.model.connector import Connector, ConnectorField
from diptych.model.language_model import LanguageModel, LanguageModelConfig
from diptych.model.session import ChatSession
from diptych.model.tuning import Tuning, tuned
from diptych.model.vision_encoder import VisionEncoder


class VlmConfig(ArchitectureConfig):
    """What a vision-language model is composed of."""

    parts: ClassVar[tuple[str, ...]] = ("vision_encoder", "connector", "language_model")
    text_part: ClassVar[str] = "language_model"

    name: str = "vlm"
    """File stem of the architecture."""
    connector: ConnectorField
    """The hinge; `name` is a file in model/connectors."""
    language_model: LanguageModelConfig
    """The text panel."""

    def compose(self, tokenizer: Any = None) -> Vlm:
        encoder = vision_encoders.build(self.vision_encoder)
        language_model = language_models.build(self.language_model, tokenizer)
        words = language_model.module.get_input_embeddings()
        connector = self.connector.build(encoder.dim, language_model.dim, words)
        if encoder.preprocessing.tiles.merged:
            connector.add_row_end(language_model.dim)
        config = self.model_copy(update={"vision_encoder": encoder.config})
        model = Vlm(config, encoder, connector, language_model)
        _ = model.arrangement  # which refuses parts that do not go together
        return model


Config = VlmConfig


class Vlm(Model):
    """A vision-language model.

    Built by `build` (newly composed) or `diptych.load` (from a model folder). The chat
    encoder, tokenizer and preprocessing belong to it, so that training, evaluation and chat
    see the same tokens and pixels.
    """

    language_model: LanguageModel
    can = ("answer", "chat", "predict_text")
    represents = ("image", "text", "multimodal")
    command = "diptych chat {} PICTURE"
    card_tag = "image-text-to-text"
    card_usage = (
        'model = diptych.load("path/to/this/folder")\n'
        'print(model.chat("picture.png").ask("What is shown?"))'
    )

    def __init__(
        self,
        config: VlmConfig,
        vision_encoder: VisionEncoder,
        connector: Connector,
        language_model: LanguageModel,
    ):
        super().__init__()
        self.config = config
        self.vision_encoder = vision_encoder
        self.connector = connector
        self.language_model = language_model

    # -- properties -------------------------------------------------------------------------

    @cached_property
    def arrangement(self) -> Arrangement:
        """How many tokens a picture has."""
        encoder = self.vision_encoder
        connector = self.config.connector
        per_tile = connector.num_tokens(encoder.grid, encoder.num_prefix)
        grid = None if encoder.num_prefix else connector.token_grid(encoder.grid)
        return Arrangement(per_tile, self.preprocessing.tiles, grid)

    @property
    def answer_after(self) -> str | None:
        """What stands between working and answer in what it says; None where all is answer."""
        return self.config.language_model.answer_after

    @property
    def _tuning(self) -> Tuning:
        return tuned(self.device)

    @property
    def tokens_per_image(self) -> int:  # type: ignore[override]
        """Language-model tokens of a picture that is one tile."""
        return self.arrangement.tokens_per_tile

    @cached_property
    def chat_encoder(self) -> ChatEncoder:
        """Samples -> token ids, as this model reads them."""
        config = self.config.language_model
        return ChatEncoder(
            self.language_model.tokenizer,
            config.template,
            self.arrangement,
            config.picture_joint,
            config.answer_tokens,
            config.picture_marks,
        )

    def collator(
        self, budget: Budget = Budget(), pictures: PictureLoader | None = None
    ) -> TokenCollator:
        """What turns conversations into batches of this model.

        Args:
            pictures: how they are read and varied; None reads each as it is.
        """
        lm = self.language_model
        own = lm.context_tokens
        budget = replace(budget, context_tokens=min(budget.context_tokens or own, own))
        return TokenCollator(
            self.chat_encoder,
            pictures or PictureLoader(self.preprocessing),
            budget,
            text_dim=lm.dim,
            seq2seq=lm.is_encoder_decoder,
            decoder_start=getattr(lm.hf_config, "decoder_start_token_id", 0) or 0,
            row_length=self._tuning.size,
        )

    # -- computing --------------------------------------------------------------------------

    def image_tokens(self, features: Tensor, tiles: Sequence[Tiles]) -> Tensor:
        """Encoder features of all tiles [S, N, C] -> language-model tokens of all pictures, one
        after the other [I, D]."""
        row_end = self.connector.row_end
        return self.arrangement.laid_out(self.tile_tokens(features), tiles, row_end)

    def tile_tokens(self, features: Tensor) -> Tensor:
        """Encoder features [S, N, C] -> language-model tokens of each tile [S, K, D]."""
        weight = next(self.connector.parameters())
        return self.connector(features.to(weight.dtype), self.vision_encoder.grid)

    def embed(
        self, ids: Tensor, image_tokens: Tensor | None, num_placeholders: int | None = None
    ) -> Tensor:
        """Token ids [R, T] -> embeddings [R, T, D] with image tokens [I, D] spliced in.

        Args:
            num_placeholders: image positions in `ids`, where they were counted already.

        Raises:
            ImageTokenMismatch: placeholders and image tokens differ in number.
        """
        is_image = ids == IMAGE_TOKEN
        embeds = self.language_model.embed(ids.masked_fill(is_image, 0))
        wanted = int(is_image.sum()) if num_placeholders is None else num_placeholders
        given = 0 if image_tokens is None else len(image_tokens)
        if wanted != given:
            raise ImageTokenMismatch(
                f"the text has {wanted} image positions, the pictures give {given} tokens",
                fix="a sample's placeholders and pictures do not agree; run `diptych data check`",
            )
        if image_tokens is None:
            return embeds
        return embeds.masked_scatter(is_image[..., None], image_tokens.to(embeds.dtype))

    def _tokens_of(self, batch: Batch) -> Tensor | None:
        """Tokens [I, D] of a batch's pictures, None where it has none."""
        if batch.features is not None:
            return self.image_tokens(batch.features, batch.tiles)
        if batch.pixel_values is not None:
            return self.image_tokens(self.encode_pixels(batch.pixel_values), batch.tiles)
        return None

    def representing(self, what: str) -> Any:
        """A collator that prepares samples for `represent`; one sample a row."""
        if what == "image":
            return PairCollator(PictureLoader(self.preprocessing), needs=("image",))
        return Conversations(self.collator(Budget(packed=False)), with_images=what != "text")

    def represent(
        self, what: str, batch: Batch, *, space: str, layer: int = -1
    ) -> tuple[Tensor, Tensor | None]:
        """A picture's tokens, or hidden states of a conversation without or with its pictures; of
        an encoder-decoder model those of its encoder. See `Model`."""
        self._needs_states(what, space)
        tokens = self._tokens_of(batch)
        if what == "image":
            assert tokens is not None, "pictures are prepared"
            own = self.arrangement.by_picture(tokens, batch.tiles)
            padded = nn.utils.rnn.pad_sequence(own, batch_first=True)
            if len({len(one) for one in own}) == 1:
                return padded, None
            counts = torch.tensor([len(one) for one in own], device=padded.device)
            places = torch.arange(padded.shape[1], device=padded.device)
            return padded, (places < counts[:, None]).to(torch.int64)
        lm = self.language_model
        ids, mask = batch.input_ids, batch.segment_ids.clamp(max=1)
        if lm.is_encoder_decoder:
            assert batch.encoder_ids is not None and batch.encoder_mask is not None
            embeds = self.embed(batch.encoder_ids, tokens, batch.described().num_placeholders)
            return lm.encode(embeds, batch.encoder_mask), batch.encoder_mask
        output = lm.body(
            inputs_embeds=self.embed(ids, tokens, batch.described().num_placeholders),
            attention_mask=mask,
            position_ids=batch.position_ids,
            use_cache=False,
            output_hidden_states=layer != -1,
        )
        if layer == -1:
            return output.last_hidden_state, mask
        states = output.hidden_states
        if not -len(states) <= layer < len(states):
            raise ConfigError(
                f"the language model has hidden states 0 to {len(states) - 1}, not {layer}",
                where="layer",
            )
        return states[layer], mask

    def hidden(self, batch: Batch) -> Tensor:
        """Last hidden states [R, T, D] of the language model (its decoder's, if it has both)."""
        tokens = self._tokens_of(batch)
        lm = self.language_model
        if lm.is_encoder_decoder:
            assert batch.encoder_ids is not None and batch.encoder_mask is not None
            embeds = self.embed(batch.encoder_ids, tokens, batch.described().num_placeholders)
            return lm.body(
                input_ids=batch.input_ids,
                encoder_hidden_states=lm.encode(embeds, batch.encoder_mask),
                encoder_attention_mask=batch.encoder_mask,
                use_cache=False,
            ).last_hidden_state
        embeds = self.embed(batch.input_ids, tokens, batch.described().num_placeholders)
        if tokens is None and self.training:
            embeds = embeds + self._touch_image_parts()
        return lm.body(
            inputs_embeds=embeds,
            attention_mask=self.attention_mask(batch),
            # Without a mask, transformers takes positions that begin anew behind a sample (padding)
            # for another one and builds a mask after all.
            position_ids=batch.position_ids if batch.described().is_packed else None,
            use_cache=False,
        ).last_hidden_state

    def attention_mask(self, batch: Batch) -> Any:
        """What the language model's layers may see: one mask, or one for each kind of layer.

        Raises:
            ModelError: packed rows, and layers that are no attention (they would mix samples).
        """
        mask = batch.attention_mask()
        if mask is None:
            return None
        config = self.language_model.hf_config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ())
        if kinds - {"full_attention", "sliding_attention"}:
            raise ModelError(
                f"a {config.model_type} has layers ({', '.join(sorted(kinds))}) that would mix the "
                "samples of a packed row",
                fix="set the stage's packed to false",
            )
        window = getattr(config, "sliding_window", None)
        mask = self.as_layers_want(mask)
        if (
            window is None
            or kinds == {"full_attention"}
            or batch.described().last_position < window
        ):
            return mask
        windowed = batch.attention_mask(window)
        assert windowed is not None, "the same rows gave a mask without the window"
        near = self.as_layers_want(windowed)
        return {"full_attention": mask, "sliding_attention": near} if kinds else near

    def as_layers_want(self, mask: Tensor) -> Tensor:
        """SDPA takes True for visible; eager attention adds the mask to its scores."""
        if self.language_model.hf_config._attn_implementation == "sdpa":
            return mask
        dtype = self.language_model.module.get_input_embeddings().weight.dtype
        if torch.is_autocast_enabled(mask.device.type):  # a wider mask would widen the scores
            dtype = torch.get_autocast_dtype(mask.device.type)
        hidden = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
        return hidden.masked_fill(~mask, torch.finfo(dtype).min)

    def _touch_image_parts(self) -> Tensor:
        """Zero that depends on the image parts' parameters.

        A rank whose micro-batch has only text must still take part in the gradient exchange
        of those parts, or data-parallel training waits forever.
        """
        zero = torch.zeros((), device=self.device)
        for part in (self.vision_encoder, self.connector):
            for parameter in part.parameters():
                if parameter.requires_grad:
                    zero = zero + parameter.sum() * 0.0
        return zero

    def target_log_probs(self, batch: Batch, *, chunk_size: int = 2048) -> Tensor:
        """Log-probability of every target, float32 [P], in the order of `batch.target_ids`.

        The output layer runs only at target positions and `chunk_size` at a time; logits of
        a chunk are recomputed in the backward pass instead of being kept.
        Parity: tests/parity/test_language_model.py.
        """
        return self.log_probs_at(self.hidden(batch), batch, chunk_size=chunk_size)

    def log_probs_at(self, hidden: Tensor, batch: Batch, *, chunk_size: int = 2048) -> Tensor:
        """`target_log_probs` from hidden states [R, T, D] that are known already."""
        hidden = hidden.flatten(0, 1)[batch.target_positions]
        chunks = []
        for start in range(0, len(hidden), chunk_size):
            rows = hidden[start : start + chunk_size]
            ids = batch.target_ids[start : start + chunk_size]
            if torch.is_grad_enabled() and len(hidden) > chunk_size:
                chunks.append(checkpoint(self._log_probs, rows, ids, use_reentrant=False))
            else:
                chunks.append(self._log_probs(rows, ids))
        return torch.cat(chunks) if chunks else hidden.new_zeros(0, dtype=torch.float32)

    def _log_probs(self, hidden: Tensor, ids: Tensor) -> Tensor:
        rows = nn.functional.pad(hidden, (0, 0, 0, self._tuning.size(len(hidden)) - len(hidden)))
        if self.precision in (None, "fp32") or torch.is_grad_enabled():
            logits = self.language_model.logits(rows)
        else:
            # Rounded to eight bits, the candidates of a question would often be equally likely.
            weight = self.language_model.module.get_output_embeddings().weight
            with torch.autocast(self.device.type, enabled=False):
                logits = self.language_model.logits(rows.to(weight.dtype))
        logits = logits[: len(hidden)].float()
        return -nn.functional.cross_entropy(logits, ids, reduction="none")

    # -- asking -----------------------------------------------------------------------------

    def generate(
        self,
        samples: Sequence[Sample],
        *,
        max_new_tokens: int = 64,
        images: Callable[[Image], bytes] | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        num_beams: int = 1,
    ) -> list[str]:
        """Answers to conversations that end with the user's turn.

        Batched with left padding; equals asking one by one, token for token. Temperature 0
        is greedy; `num_beams` above 1 searches for the likeliest answer instead.
        """
        return generation.generate(
            self,
            samples,
            max_new_tokens=max_new_tokens,
            images=images,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            num_beams=num_beams,
        )

    def log_likelihoods(
        self,
        samples: Sequence[Sample],
        continuations: Sequence[Sequence[str]],
        *,
        images: Callable[[Image], bytes] | None = None,
        chat: bool = True,
    ) -> list[list[float]]:
        """Sum of log-probabilities of each continuation as the answer to its sample, in nats.

        With `chat` False the sample's text is the prompt as it stands, no template.
        """
        return likelihood.log_likelihoods(self, samples, continuations, images=images, chat=chat)

    def text_log_likelihood(self, text: str) -> tuple[float, int]:
        """(sum of log-probabilities in nats, number of tokens predicted) of plain text."""
        return likelihood.text_log_likelihood(self, text)

    def chat(self, image: Any = None, **settings: Any) -> ChatSession:
        """A chat session about a picture (path, bytes or PIL image); see `model.session`."""
        return ChatSession(self, image, **settings)


@dataclass(frozen=True)
class Conversations:
    """Whole conversations as rows of their own, with their pictures or without."""

    collate: Any
    with_images: bool

    def __call__(self, items: Sequence[Any]) -> Any:
        if not self.with_images:
            items = [replace(item, sample=item.sample.without_images()) for item in items]
        return self.collate(items)
