"""Log-probabilities of token sequences, of which what they share is read once.

Multiple choice asks the same long prompt for every candidate, and worked examples stand before
every question. So the candidates of a prompt become branches behind one copy of it, as in a packed
row (`Batch.attention_mask`), and what consecutive prompts begin with is read once into a
key-value cache that all of them go on from.

Shapes: R rows, T tokens of a row, P tokens in the cache.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from diptych.data.batching.batch import Batch
from diptych.errors import ModelError
from diptych.model.precision import in_its_precision
from diptych.model.speaker import Speaker

_ROWS = 8
"""Prompts read at once."""
_WORTH_TOKENS = 32
"""A shorter common beginning is not worth a cache of its own."""


@dataclass(frozen=True)
class Passage:
    """Token ids, of which those from `start` on are to be predicted; `start` is at least 1."""

    ids: tuple[int, ...]
    start: int


@dataclass
class _Prompt:
    """Consecutive passages with one beginning.

    Attributes:
        stem: tokens that all of them begin with; read once.
        members: number and ids of each passage, and where its targets begin.
    """

    stem: tuple[int, ...]
    members: list[tuple[int, Passage]]


@torch.no_grad()
@in_its_precision
def log_probabilities(model: Speaker, passages: Sequence[Passage]) -> list[float]:
    """Sum of the log-probabilities (nats) of the tokens of each passage from its `start` on.

    Raises:
        ModelError: the language model is an encoder-decoder, which reads no plain text.
    """
    if model.language_model.is_encoder_decoder:
        raise ModelError(
            "an encoder-decoder language model gives no likelihood of plain text",
            fix="ask in a conversation (how=likelihood with choices)",
        )
    sums = [0.0] * len(passages)
    was_training = model.training
    model.eval()
    try:
        for group in _groups(_prompts(passages, branches=_can_branch(model))):
            shared = _shared(group)
            cache = _read(model, shared) if len(shared) >= _WORTH_TOKENS else None
            num_cached = len(shared) if cache is not None else 0
            for start in range(0, len(group), _ROWS):
                _score(model, group[start : start + _ROWS], cache, num_cached, sums)
    finally:
        model.train(was_training)
    return sums


def _prompts(passages: Sequence[Passage], *, branches: bool) -> Iterator[_Prompt]:
    """Consecutive passages whose targets begin behind the same tokens, together.

    Without `branches`, only those that are the same up to their last token.
    """
    numbered = list(enumerate(passages))
    for _, run in itertools.groupby(
        numbered, key=lambda pair: pair[1].ids[: pair[1].start] if branches else pair[1].ids[:-1]
    ):
        members = list(run)
        # The last token of each is predicted and never read.
        yield _Prompt(_common(passage.ids[:-1] for _, passage in members), members)


def _groups(prompts: Iterator[_Prompt]) -> Iterator[list[_Prompt]]:
    """Consecutive prompts that are read together, as they begin alike.

    They are parted where two neighbours have in common less than half of what one of them has
    with its other neighbour: there another subject with its own worked examples begins.
    """
    listed = list(prompts)
    stems = [p.stem for p in listed]
    alike = [0, *(len(_common(pair)) for pair in itertools.pairwise(stems)), 0]
    group: list[_Prompt] = []
    for number, prompt in enumerate(listed):
        most = max(alike[max(0, number - 1)], alike[number + 1])
        if group and 2 * alike[number] < most and most - alike[number] >= _WORTH_TOKENS:
            yield group
            group = []
        group.append(prompt)
    if group:
        yield group


def _shared(group: Sequence[_Prompt]) -> tuple[int, ...]:
    """What all prompts of a group begin with, but for the token that predicts the first target."""
    if len(group) < 2:
        return ()
    first = min(passage.start for prompt in group for _, passage in prompt.members)
    return _common(prompt.stem for prompt in group)[: first - 1]


def _common(sequences: Any) -> tuple[int, ...]:
    """What all sequences begin with."""
    listed = list(sequences)
    first, last = min(listed), max(listed)  # what these two share, all between them share
    length = next(
        (n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b),
        min(len(first), len(last)),
    )
    return first[:length]


def _can_branch(model: Speaker) -> bool:
    """Whether the layers obey a mask: state-space layers would mix the branches."""
    kinds = getattr(model.language_model.hf_config.get_text_config(), "layer_types", None)
    return set(kinds or ()) <= {"full_attention", "sliding_attention"}


def _read(model: Speaker, ids: tuple[int, ...]) -> Any:
    """A cache that holds `ids`; None for layers whose cache does not keep every token."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    cache = DynamicCache(config=model.language_model.hf_config)
    if any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    tokens = torch.tensor([ids], device=model.device)
    model.language_model.body(
        inputs_embeds=model.language_model.embed(tokens),
        position_ids=torch.arange(len(ids), device=model.device)[None],
        past_key_values=cache,
        use_cache=True,
    )
    return cache


def _score(
    model: Speaker, prompts: Sequence[_Prompt], cache: Any, num_cached: int, sums: list[float]
) -> None:
    """Add the log-probabilities of a few prompts' passages to `sums`."""
    batch = _batch(prompts, num_cached).to(model.device)
    inputs: dict[str, Any] = {"use_cache": False}
    if cache is not None:
        # Layers put new keys behind the old ones in tensors of their own; the copy is for the rows.
        inputs = {"use_cache": True, "past_key_values": copy.deepcopy(cache)}
        inputs["past_key_values"].batch_repeat_interleave(len(prompts))
    hidden = model.language_model.body(
        inputs_embeds=model.language_model.embed(batch.input_ids),
        attention_mask=_mask(model, batch, num_cached),
        position_ids=batch.position_ids,
        **inputs,
    ).last_hidden_state
    values = model.log_probs_at(hidden, batch)
    for number, value in zip(batch.target_samples.tolist(), values.tolist(), strict=True):
        sums[number] += value


def _mask(model: Speaker, batch: Batch, num_cached: int) -> Any:
    """What the tokens of `batch` may see: everything in the cache, and what a packed row shows.

    None where that is plain causal attention.
    """
    if not num_cached:
        return model.attention_mask(batch)
    own = batch.attention_mask()
    if own is None:
        return None
    cached = own.new_ones(*own.shape[:-1], num_cached)
    return model.as_layers_want(torch.cat([cached, own], -1))


def _batch(prompts: Sequence[_Prompt], num_cached: int) -> Batch:
    """Rows of a stem without its cached part and the branches behind it, padded on the right."""
    rows: list[list[tuple[Sequence[int], int, int]]] = []
    targets: list[tuple[int, int, int, int]] = []
    for r, prompt in enumerate(prompts):
        stem = prompt.stem[num_cached:]
        pieces: list[tuple[Sequence[int], int, int]] = [(stem, num_cached, 0)] if stem else []
        column = len(stem)
        for number, passage in prompt.members:
            branch = passage.ids[len(prompt.stem) : -1]
            for at in range(passage.start, len(passage.ids)):
                # Token `at` is predicted by the one before it, in the stem or in the branch.
                inside = at - 1 - len(prompt.stem)
                place = at - 1 - num_cached if inside < 0 else column + inside
                targets.append((r, place, passage.ids[at], number))
            if branch:
                pieces.append((branch, len(prompt.stem), 1))
                column += len(branch)
        rows.append(pieces)
    length = max(sum(len(ids) for ids, _, _ in pieces) for pieces in rows)
    tokens, positions, segments, prefixes = (
        np.zeros((len(rows), length), np.int64) for _ in range(4)
    )
    for r, pieces in enumerate(rows):
        column = 0
        for segment, (ids, position, parent) in enumerate(pieces, start=1):
            here = slice(column, column + len(ids))
            tokens[r, here] = ids
            positions[r, here] = np.arange(position, position + len(ids))
            segments[r, here] = segment
            prefixes[r, here] = parent
            column += len(ids)
    return Batch(
        input_ids=torch.from_numpy(tokens),
        position_ids=torch.from_numpy(positions),
        segment_ids=torch.from_numpy(segments),
        prefix_ids=torch.from_numpy(prefixes),
        target_positions=torch.tensor([r * length + place for r, place, _, _ in targets]),
        target_ids=torch.tensor([token for _, _, token, _ in targets]),
        target_samples=torch.tensor([number for _, _, _, number in targets]),
    )
