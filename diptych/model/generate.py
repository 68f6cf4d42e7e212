"""Generation: one prefill, then a token at a time with a key-value cache.

Batches are padded on the left and masked, with positions counted from each sample's first
real token, so a batch gives what each sample alone gives, token for token.

Shapes: B samples, T tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diptych.data.batching.picture_loader import Shown, picture_key, shown
from diptych.data.pixels.image import decode, no_images
from diptych.data.sample import Image, Sample
from diptych.data.text.chat import Encoded
from diptych.errors import ConfigError, EmptyConversation, ModelError, SampleTooLong
from diptych.model.precision import computing, in_its_precision
from diptych.model.speaker import Speaker

TILES = 16
"""Of pictures that an encoder looks at in one pass, when it is asked."""


def generate(
    model: Speaker,
    samples: Sequence[Sample],
    *,
    max_new_tokens: int = 64,
    images: Callable[[Image], bytes] | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    num_beams: int = 1,
) -> list[str]:
    """Answers to conversations that end with the user's turn; see `Vlm.generate`.

    Raises:
        ConfigError: a beam search with a temperature.
    """
    if not samples:
        return []
    if num_beams > 1 and temperature > 0:
        raise ConfigError("a beam search draws nothing", where="num_beams", fix="temperature 0")
    encoded = [model.chat_encoder.encode(s, generation=True) for s in samples]
    was_training = model.training
    model.eval()
    try:
        pictures = encode_images(model, encoded, images or no_images)
        rows: list[list[int]] = [[] for _ in samples]
        if num_beams > 1:
            rows = beam_search(model, encoded, pictures, max_new_tokens, num_beams)
        else:
            for tokens in steps(model, encoded, pictures, max_new_tokens, temperature, top_p, seed):
                for row, token in zip(rows, tokens, strict=True):
                    if token is not None:
                        row.append(token)
    finally:
        model.train(was_training)
    return [model.chat_encoder.decode(r).strip() for r in rows]


@torch.no_grad()
@in_its_precision
def encode_images(
    model: Speaker, encoded: Sequence[Encoded], read: Callable[[Image], bytes]
) -> list[Tensor]:
    """Tokens [n, D] of every picture in reading order; equal pictures computed once."""
    pictures: dict[str, Shown] = {}
    keys: list[str] = []
    for one in encoded:
        most = model.preprocessing.tiles.share(len(one.images))
        for image in one.images:
            data = read(image)
            key = picture_key(hashlib.sha256(data).hexdigest(), most)
            if key not in pictures:
                decoded = decode(data, where=image.path)
                pictures[key] = shown(decoded, model.preprocessing, most=most)
            keys.append(key)
    tokens: dict[str, Tensor] = {}
    names = list(pictures)
    for chunk in _few_tiles(names, pictures):
        pixels = torch.from_numpy(np.concatenate([pictures[k].array for k in chunk]))
        tiles = [pictures[k].tiles for k in chunk]
        out = model.image_tokens(model.encode_pixels(pixels.to(model.device)), tiles)
        tokens.update(zip(chunk, model.arrangement.by_picture(out, tiles), strict=True))
    return [tokens[k] for k in keys]


def _few_tiles(names: Sequence[str], pictures: Mapping[str, Shown]) -> Iterator[list[str]]:
    """Pictures of no more than `TILES` tiles together, or one of more."""
    chunk: list[str] = []
    tiles = 0
    for name in names:
        own = len(pictures[name].tiles)
        if chunk and tiles + own > TILES:
            yield chunk
            chunk, tiles = [], 0
        chunk.append(name)
        tiles += own
    if chunk:
        yield chunk


@torch.no_grad()
def steps(
    model: Speaker,
    encoded: Sequence[Encoded],
    pictures: Sequence[Tensor],
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[list[int | None]]:
    """One list per step: the new token of each sample, None for those that have ended.

    Raises:
        SampleTooLong: a prompt and its answer do not fit the language model's context.
    """
    embeds, mask = prompts(model, encoded, pictures, max_new_tokens)
    chooser = Chooser(temperature, top_p, seed, model.device)
    is_seq2seq = model.language_model.is_encoder_decoder
    decode_ = _Seq2SeqDecoder if is_seq2seq else _CausalDecoder
    yield from run(model, decode_(model, embeds, mask), chooser, max_new_tokens)


@in_its_precision
def prompts(
    model: Speaker, encoded: Sequence[Encoded], pictures: Sequence[Tensor], max_new_tokens: int
) -> tuple[Tensor, Tensor]:
    """Embeddings [B, T, D] and mask [B, T] of prompts, padded on the left.

    Raises:
        EmptyConversation: a prompt is empty.
        SampleTooLong: a prompt and its answer do not fit the language model's context.
    """
    lm = model.language_model
    longest = max(len(e) for e in encoded)
    if not all(len(e) for e in encoded):
        raise EmptyConversation("the question has neither text nor picture")
    if longest + max_new_tokens > lm.context_tokens:
        raise SampleTooLong(
            f"the prompt has {longest} tokens, with {max_new_tokens} new ones that exceeds the "
            f"context of {lm.context_tokens}",
            fix="ask for fewer new tokens, or reset the conversation",
        )
    ids = torch.zeros(len(encoded), longest, dtype=torch.int64)
    mask = torch.zeros(len(encoded), longest, dtype=torch.int64)
    for row, one in enumerate(encoded):
        ids[row, longest - len(one) :] = torch.tensor(one.ids)
        mask[row, longest - len(one) :] = 1
    ids, mask = ids.to(model.device), mask.to(model.device)
    return model.embed(ids, torch.cat(list(pictures)) if pictures else None), mask


@torch.no_grad()
@in_its_precision
def beam_search(
    model: Speaker,
    encoded: Sequence[Encoded],
    pictures: Sequence[Tensor],
    max_new_tokens: int,
    num_beams: int,
) -> list[list[int]]:
    """Tokens of the best of `num_beams` beams, by transformers' own search (length penalty 1)."""
    embeds, mask = prompts(model, encoded, pictures, max_new_tokens)
    stops = sorted(model.chat_encoder.stop_ids())
    found = model.language_model.module.generate(
        inputs_embeds=embeds, attention_mask=mask, num_beams=num_beams, do_sample=False,
        max_new_tokens=max_new_tokens, eos_token_id=stops, pad_token_id=stops[0],
    )  # fmt: skip
    if model.language_model.is_encoder_decoder:
        found = found[:, 1:]  # behind the start token
    return [cut(row, stops) for row in found.tolist()]


def cut(row: list[int], stops: Sequence[int]) -> list[int]:
    """Tokens before the first that ends an answer."""
    return row[: next((n for n, token in enumerate(row) if token in stops), len(row))]


def run(
    model: Speaker, decoder: Any, chooser: Chooser, max_new_tokens: int
) -> Iterator[list[int | None]]:
    """Draw tokens until every sample has ended."""
    stop = torch.tensor(sorted(model.chat_encoder.stop_ids()), device=model.device)
    ended: Tensor | None = None
    for _ in range(max_new_tokens):
        tokens = chooser(decoder.logits)
        stops = torch.isin(tokens, stop)
        ended = stops if ended is None else ended | stops
        yield [
            None if done else token
            for token, done in zip(tokens.tolist(), ended.tolist(), strict=True)
        ]
        if bool(ended.all()):
            return
        decoder.feed(tokens)


class Chooser:
    """Greedy at temperature 0, else nucleus sampling with its own generator."""

    def __init__(self, temperature: float, top_p: float, seed: int, device: torch.device):
        self.temperature = temperature
        self.top_p = top_p
        self.generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits [B, V] -> token ids [B].

        Raises:
            ModelError: logits are not finite, and which token came out would be its place.
        """
        highest, likeliest = logits.max(-1)
        if not bool(torch.isfinite(highest).all()):
            raise ModelError(
                "the model's output is not a number",
                fix="look for weights that are not finite, or compute in float32",
            )
        if self.temperature <= 0:
            return likeliest
        chances = (logits.float() / self.temperature).softmax(-1)
        ordered, order = chances.sort(-1, descending=True)
        outside = ordered.cumsum(-1) - ordered >= self.top_p
        outside[..., 0] = False  # the likeliest token always stays
        ordered = ordered.masked_fill(outside, 0.0)
        drawn = torch.multinomial(ordered, 1, generator=self.generator)
        return order.gather(-1, drawn)[:, 0]


class _CausalDecoder:
    """Prefill and cache of a causal language model."""

    def __init__(self, model: Speaker, embeds: Tensor, mask: Tensor, cache: Any = None):
        from transformers import DynamicCache

        self.model = model
        self.mask = mask
        self.is_whole = bool(mask.all())  # and stays so: new tokens are real ones
        if cache is None:
            cache = DynamicCache(config=model.language_model.hf_config)
        self.cache = cache
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -embeds.shape[1] :]
        self.logits = self._forward(inputs_embeds=embeds, position_ids=positions)

    @in_its_precision
    def feed(self, tokens: Tensor) -> None:
        """Read one new token per sample."""
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], -1)
        positions = (self.mask.sum(-1) - 1)[:, None]
        embeds = self.model.language_model.embed(tokens[:, None])
        self.logits = self._forward(inputs_embeds=embeds, position_ids=positions)

    @in_its_precision
    def _forward(self, **inputs: Tensor) -> Tensor:
        mask = None if self.is_whole else self.mask
        hidden = self.model.language_model.body(
            attention_mask=mask, past_key_values=self.cache, use_cache=True, **inputs
        ).last_hidden_state
        return self.model.language_model.logits(hidden[:, -1])


class _Seq2SeqDecoder:
    """Encoder output and decoder cache of an encoder-decoder language model."""

    def __init__(self, model: Speaker, embeds: Tensor, mask: Tensor):
        self.model = model
        self.mask = mask
        lm = model.language_model
        with computing(model):
            self.encoded = lm.encode(embeds, mask)
        self.cache: Any = None
        start = getattr(lm.hf_config, "decoder_start_token_id", 0) or 0
        self.feed(torch.full((len(embeds),), start, device=embeds.device))

    @in_its_precision
    def feed(self, tokens: Tensor) -> None:
        """Read one new decoder token per sample."""
        output = self.model.language_model.body(
            input_ids=tokens[:, None],
            encoder_hidden_states=self.encoded,
            encoder_attention_mask=self.mask,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.cache = output.past_key_values
        self.logits = self.model.language_model.logits(output.last_hidden_state[:, -1])


@in_its_precision
def continue_causal(
    model: Speaker, ids: Sequence[int], pictures: Sequence[Tensor], cache: Any, num_cached: int
) -> Any:
    """A decoder that goes on from a cache which already holds the first `num_cached` tokens.

    `pictures` are the image tokens of the part that is not cached.
    """
    fresh = torch.tensor([ids[num_cached:]], device=model.device)
    embeds = model.embed(fresh, torch.cat(list(pictures)) if pictures else None)
    mask = torch.ones(1, len(ids), dtype=torch.int64, device=model.device)
    return _CausalDecoder(model, embeds, mask, cache)
