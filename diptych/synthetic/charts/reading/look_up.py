"""A start for new language models: some heads begin by looking up in the picture.

To answer "what colour is Solar?" a head has to go from the word to the place in the picture
that tells of it. A language model that begins with random weights finds this late
(docs/log/quickstart.md).

A head whose queries and keys begin as one projection attends to what is alike. That alone
does nothing, because a word is most like itself. So all words of the vocabulary share one
direction, which what stands in a picture does not have, and the queries of these heads begin
with a bias against it: they look past the text, to the place in the picture most like the
word, and bring what stands there into the text as it is, so that the words told of that place
begin likelier than others to be said next. For that the picture's tokens must speak the
language of the words; the objective `regions` teaches it. What all words share changes no
probability of a next token.
"""

from __future__ import annotations

from typing import Any

import torch

from diptych.errors import ConfigError

SHARED = 2.0
"""Length of what all words share, in lengths of a word. Words about double while a picture's tokens
are taught to speak them."""
SHARPNESS = 3.0
"""Size of the shared projection: most of the attention shall begin on the name asked for."""
AVERSION = 30.0
"""Length of the bias against text: with much less a word looks at itself, with much more the
bias drowns the likeness."""
NOTE = 1.0
"""Size of what a head writes down of the word before."""
STEP = 14.0
"""Size of the bias that looks at the word before: nine tenths of the attention begin there."""
COPY = 0.3
"""Size of what is brought along from there: about two words' length."""


@torch.no_grad()
def initialise(module: Any, seed: int = 0) -> None:
    """Change a newly built GPT-NeoX: half of the heads of every layer, of three one, look up.

    Only dimensions without rotary positions take part: what is looked for stands anywhere. Few
    wide heads look up better than many narrow ones.

    Raises:
        ConfigError: another architecture, or one without biases or with rotary positions in every
            dimension.
    """
    config = module.config
    if config.model_type != "gpt_neox" or not config.attention_bias:
        raise ConfigError(
            f"heads that look up are written for gpt_neox with attention_bias, "
            f"not for {config.model_type}",
            where="model.language_model.initialise",
            fix="leave initialise out, or choose model_type: gpt_neox",
        )
    layers = module.gpt_neox.layers
    attention = layers[0].attention
    size, rotary = attention.head_size, attention.rotary_ndims
    if rotary >= size:
        raise ConfigError(
            "every dimension of the heads carries rotary positions, none is left to look up by",
            where="model.language_model.config",
            fix="set rope_parameters.partial_rotary_factor below 1",
        )
    generator = torch.Generator().manual_seed(seed)
    words = module.get_input_embeddings().weight
    dim = words.shape[1]
    shared = torch.randn(dim, generator=generator)
    shared *= SHARED * words.norm(dim=1).mean() / shared.norm()
    words += shared
    for layer in layers:
        fused = layer.attention.query_key_value
        # [heads, query | key | value, size, dim], as the layer reads it
        weight = fused.weight.view(-1, 3, size, dim)
        bias = fused.bias.view(-1, 3, size)
        dense = layer.attention.dense.weight.view(dim, -1, size)
        for head in range(max(1, len(weight) // 2)):
            brought = torch.linalg.qr(torch.randn(dim, size, generator=generator))[0].T
            weight[head, 2] = brought
            dense[:, head] = COPY * brought.T
            noise = torch.randn(dim, size - rotary, generator=generator)
            directions = torch.linalg.qr(noise)[0].T * SHARPNESS
            weight[head, 0, rotary:] = directions
            weight[head, 1, rotary:] = directions
            weight[head, :2, :rotary] = 0.0
            along = directions @ shared
            bias[head, 0, rotary:] = -AVERSION * along / along.norm()
    _repeat(layers[:2], shared, generator)


def _repeat(layers: Any, shared: torch.Tensor, generator: torch.Generator) -> None:
    """Let the last head of the first two layers begin by going on as the text went on before.

    In the first it looks at the word before, by a bias in the rotary dimensions whose score peaks
    at distance 1, and writes it down in directions of its own. In the second it looks for a place
    where the same word came before, and brings the word that stands there: an induction head
    (Olsson et al., arXiv:2209.11895), which otherwise forms late.
    """
    first, second = (layer.attention for layer in layers)
    size, rotary = first.head_size, first.rotary_ndims
    dim = shared.shape[0]
    half = min(size, dim // 2)
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=generator))[0]
    read, kept = (torch.zeros(size, dim) for _ in range(2))
    read[-half:], kept[-half:] = basis[:half], basis[half : 2 * half]
    brought = torch.linalg.qr(torch.randn(dim, size, generator=generator))[0].T
    for attention, values, out, much in (
        (first, read, kept, NOTE),
        (second, brought, brought, COPY),
    ):
        weight = attention.query_key_value.weight.view(-1, 3, size, dim)[-1]
        weight[:2] = 0.0
        weight[2] = values
        attention.dense.weight.view(dim, -1, size)[:, -1] = much * out.T
    bias = first.query_key_value.bias.view(-1, 3, size)[-1]
    half = rotary // 2
    speed = 10_000.0 ** (-torch.arange(half) * 2 / rotary)
    angle = speed[: min(2, half)]  # slower ones tell no neighbours apart
    bias[0, : len(angle)] = STEP
    bias[1, : len(angle)] = STEP * angle.cos()
    bias[1, half : half + len(angle)] = STEP * angle.sin()
    weight = second.query_key_value.weight.view(-1, 3, size, dim)[-1]
    weight[0, rotary:] = SHARPNESS * read[rotary:]
    weight[1, rotary:] = SHARPNESS * kept[rotary:]
    along = (read @ shared)[rotary:]
    second.query_key_value.bias.view(-1, 3, size)[-1, 0, rotary:] = AVERSION * along / along.norm()
