"""Samples -> micro-batches: decode, encode, pack, and account for every sample.

Runs in the decode workers. What comes out for one optimizer step is `Prepared`: its
micro-batches and the fate of each of its samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch

from diptych.data.batching.batch import Batch
from diptych.data.batching.budget import Budget
from diptych.data.batching.packing import Group, Row, pack
from diptych.data.batching.picture_loader import Item, PictureLoader, Shown, attach
from diptych.data.sample import Sample
from diptych.data.text.chat import ChatEncoder, Encoded, Fate, truncate
from diptych.errors import DiptychError, ModelError, SampleTooLong
from diptych.machine import common_size

MAX_PADDING_SHARE = 0.05
"""Rows are packed longer than attention alone would like until padding is below this."""


@dataclass
class Prepared:
    """One step's micro-batches and what became of its samples.

    Attributes:
        batches: micro-batches; together they hold every used sample once.
        used: ids of the samples that are in `batches`.
        rejected: (sample id, error as plain data) of those that are not.
        truncated: (sample id, number of tokens cut).
        notes: what happened to samples that are used -> how often.
    """

    batches: list[Batch] = field(default_factory=list)
    used: list[str] = field(default_factory=list)
    rejected: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    truncated: list[tuple[str, int]] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)

    @property
    def num_targets(self) -> int:
        return sum(b.num_targets for b in self.batches)

    def pin_memory(self) -> Prepared:
        """The same, its batches in pinned memory; what a loader calls where there is a GPU."""
        return replace(self, batches=[b.pin_memory() for b in self.batches])


class Collator(Protocol):
    """Turns the samples of one step into micro-batches."""

    def __call__(self, items: Sequence[Item]) -> Prepared: ...


COARSER = "pictures seen more coarsely, to share tiles_per_sample"


@dataclass
class TokenCollator:
    """Packs conversations for `next_token`.

    Args:
        encoder: chat encoder of the model.
        pictures: picture loader.
        budget: limits of rows and micro-batches; `context_tokens` is settled.
        text_dim: width of the language model, which tells how dear attention is.
        seq2seq: the language model is an encoder-decoder; prompts and answers part ways.
        decoder_start: first decoder input then.
        row_length: tokens that a row is filled up to, where so many are needed.
    """

    encoder: ChatEncoder
    pictures: PictureLoader
    budget: Budget
    text_dim: int = 1024
    seq2seq: bool = False
    decoder_start: int = 0
    row_length: Callable[[int], int] = common_size

    def __call__(self, items: Sequence[Item]) -> Prepared:
        prepared = Prepared()
        keys, pictures, errors = self.pictures.load(items)
        kept: list[int] = []
        encoded: list[Encoded] = []
        for number, item in enumerate(items):
            error = errors.get(number)
            if error is None:
                try:
                    encoded.append(self.fit(item.sample, prepared))
                    kept.append(number)
                    prepared.used.append(item.sample.id)
                    continue
                except DiptychError as caught:
                    error = caught
            prepared.rejected.append((item.sample.id, error.to_dict()))
        if not encoded:
            return prepared
        own_keys = [tuple(keys[n]) for n in kept]
        ids = [items[n].sample.id for n in kept]
        if self.seq2seq or not self.budget.packed:
            rows = pack(
                encoded, own_keys, tokens_per_row=1, tiles_per_row=2**30, share_images=False
            )
            rows.sort(key=lambda r: r.groups[0].members[0])
        else:
            rows = self._pack(encoded, own_keys)
        for start in range(0, len(rows), self.budget.rows_per_batch):
            chunk = rows[start : start + self.budget.rows_per_batch]
            build = self._seq2seq if self.seq2seq else self._tokens
            prepared.batches.append(build(chunk, encoded, own_keys, ids, pictures))
        return prepared

    def _pack(self, encoded: Sequence[Encoded], keys: Sequence[tuple[str, ...]]) -> list[Row]:
        """Rows within the budgets; without a token budget, those that cost least.

        Attention over a row is dense (what a token must not see is masked, not skipped), so a
        long row costs more for each token: about length / (6 * width) of the other work. A
        short row leaves more padding. Both are known, so the best length is computed.
        """

        def rows_of(budget: int) -> list[Row]:
            return pack(
                encoded,
                keys,
                tokens_per_row=budget,
                tiles_per_row=self.budget.tiles_per_row,
                share_images=self.budget.share_images,
            )

        if self.budget.tokens_per_row is not None:
            return rows_of(self.budget.tokens_per_row)
        whole = rows_of(2**31)
        longest = max(g.num_tokens for row in whole for g in row.groups)

        def areas(rows: list[Row]) -> list[tuple[int, int]]:
            chunks = (
                rows[start : start + self.budget.rows_per_batch]
                for start in range(0, len(rows), self.budget.rows_per_batch)
            )
            return [(len(chunk), max(r.num_tokens for r in chunk)) for chunk in chunks]

        def cost(rows: list[Row]) -> float:
            return sum(n * length * (1 + length / (6 * self.text_dim)) for n, length in areas(rows))

        def padding(rows: list[Row]) -> float:
            return 1 - sum(r.num_tokens for r in rows) / sum(
                n * length for n, length in areas(rows)
            )

        budgets = sorted({min(int(longest * f), 4096) for f in (1, 1.5, 2, 3, 4, 6, 8)})
        candidates = [rows_of(max(b, longest)) for b in budgets]
        tight = [rows for rows in candidates if padding(rows) <= MAX_PADDING_SHARE]
        return min(tight, key=cost) if tight else min(candidates, key=padding)

    def fit(self, sample: Sample, prepared: Prepared | None = None) -> Encoded:
        """Encode one sample and hold it to the context.

        Raises:
            SampleTooLong: longer than the context, and not to be truncated, or nothing
                supervised would be left.
        """
        encoded = self.encoder.encode(sample)
        limit = self.budget.context_tokens
        if limit is not None and len(encoded) > limit:
            place = sample.source or sample.id
            problem = SampleTooLong(
                f"the sample has {len(encoded)} tokens, the context {limit}",
                where=place,
                fix="raise the stage's context_tokens or set long_samples=truncate",
            )
            if self.budget.long_samples != "truncate":
                raise problem
            try:
                encoded = truncate(encoded, limit)
            except ModelError:
                raise problem from None
            if not encoded.num_targets:
                raise problem
            if prepared is not None:
                prepared.truncated.append((sample.id, encoded.num_cut_tokens))
        if encoded.num_coarser and prepared is not None:
            prepared.notes[COARSER] = prepared.notes.get(COARSER, 0) + encoded.num_coarser
        return encoded

    def batch_of(self, encoded: Sequence[Encoded]) -> Batch:
        """One batch of text-only sequences, each in its own row."""
        rows = [Row([Group([i], 0, len(e), 0)], len(e), 0) for i, e in enumerate(encoded)]
        ids = [str(i) for i in range(len(encoded))]
        return self._tokens(rows, encoded, [()] * len(encoded), ids, {})

    def _tokens(
        self,
        rows: Sequence[Row],
        encoded: Sequence[Encoded],
        keys: Sequence[tuple[str, ...]],
        ids: Sequence[str],
        pictures: dict[str, Shown],
    ) -> Batch:
        length = self.row_length(max(row.num_tokens for row in rows))
        shape = (len(rows), length)
        tokens, positions, segments, prefixes = (np.zeros(shape, np.int64) for _ in range(4))
        targets: list[tuple[int, int, int]] = []
        image_keys: list[str] = []
        sample_ids: list[str] = []
        for r, row in enumerate(rows):
            column, segment = 0, 0
            for group in row.groups:
                first = encoded[group.members[0]]
                shared = group.prefix_length
                image_keys += keys[group.members[0]]
                parent = 0
                start = column
                if shared:
                    segment += 1
                    parent = segment
                    _write(tokens, positions, segments, r, column, first.ids[:shared], 0, segment)
                    column += shared
                for member in group.members:
                    sample = encoded[member]
                    segment += 1
                    own = sample.ids[shared:]
                    _write(tokens, positions, segments, r, column, own, shared, segment)
                    prefixes[r, column : column + len(own)] = parent
                    for i, fate in enumerate(sample.fates):
                        if fate is Fate.TARGET and i > 0:
                            # Position i - 1 predicts token i; it may lie in the shared prefix.
                            at = i - 1
                            place = start + at if at < shared else column + at - shared
                            targets.append((r * length + place, sample.ids[i], len(sample_ids)))
                    sample_ids.append(ids[member])
                    column += len(own)
        where, what, whose = _columns(targets)
        batch = Batch(
            input_ids=torch.from_numpy(tokens),
            position_ids=torch.from_numpy(positions),
            segment_ids=torch.from_numpy(segments),
            prefix_ids=torch.from_numpy(prefixes),
            target_positions=torch.from_numpy(where),
            target_ids=torch.from_numpy(what),
            target_samples=torch.from_numpy(whose),
            image_keys=tuple(image_keys),
            sample_ids=tuple(sample_ids),
        )
        attach(batch, pictures, self.pictures.features is not None)
        return batch

    def _seq2seq(
        self,
        rows: Sequence[Row],
        encoded: Sequence[Encoded],
        keys: Sequence[tuple[str, ...]],
        ids: Sequence[str],
        pictures: dict[str, Shown],
    ) -> Batch:
        members = [row.groups[0].members[0] for row in rows]
        prompts, answers = zip(*(split_answer(encoded[m]) for m in members), strict=True)
        encoder_ids, encoder_mask = _pad(prompts)
        decoder_ids, decoder_mask = _pad([[self.decoder_start, *a[:-1]] for a in answers])
        length = decoder_ids.shape[1]
        where, what, whose = _columns(
            [(r * length + i, token, r) for r, a in enumerate(answers) for i, token in enumerate(a)]
        )
        batch = Batch(
            input_ids=torch.from_numpy(decoder_ids),
            position_ids=torch.arange(length).expand(len(members), -1).contiguous(),
            segment_ids=torch.from_numpy(decoder_mask),
            prefix_ids=torch.zeros(decoder_ids.shape, dtype=torch.int64),
            target_positions=torch.from_numpy(where),
            target_ids=torch.from_numpy(what),
            target_samples=torch.from_numpy(whose),
            image_keys=tuple(k for m in members for k in keys[m]),
            sample_ids=tuple(ids[m] for m in members),
            encoder_ids=torch.from_numpy(encoder_ids),
            encoder_mask=torch.from_numpy(encoder_mask),
        )
        attach(batch, pictures, self.pictures.features is not None)
        return batch


def split_answer(encoded: Encoded) -> tuple[list[int], list[int]]:
    """What an encoder reads and what its decoder learns to write: the last answer.

    Everything before that answer (earlier answers too) is the prompt, as when it is generated;
    what the template writes after it is dropped.
    """
    end = max((i for i, f in enumerate(encoded.fates) if f is Fate.TARGET), default=-1) + 1
    start = end
    while start and encoded.fates[start - 1] is Fate.TARGET:
        start -= 1
    return list(encoded.ids[:start]) if end else list(encoded.ids), list(encoded.ids[start:end])


def _columns(targets: list[tuple[int, int, int]]) -> tuple[np.ndarray, ...]:
    if not targets:
        return (np.zeros(0, np.int64),) * 3
    return tuple(np.array(x, np.int64) for x in zip(*targets, strict=True))


def _write(tokens, positions, segments, row, column, ids, first_position, segment) -> None:
    end = column + len(ids)
    tokens[row, column:end] = ids
    positions[row, column:end] = np.arange(first_position, first_position + len(ids))
    segments[row, column:end] = segment


def _pad(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    length = max(1, *(len(r) for r in rows)) if rows else 1
    ids = np.zeros((len(rows), length), np.int64)
    mask = np.zeros((len(rows), length), np.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
        mask[number, : len(row)] = 1
    return ids, mask
