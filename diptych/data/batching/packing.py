"""Packing: fill rows with samples under two budgets, tokens and tiles of pictures.

Samples about the same picture whose tokens agree up to the picture's end form a group that
shares one copy of them: `prefix | branch | branch ...`. Rows are then filled evenly (longest
group first onto the emptiest row), which leaves hardly any padding because the batch is cut
at its longest row. What a sample computes does not depend on where it lands: see
`Batch.attention_mask` and tests/equivalence/test_packing.py.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from diptych.data.text.chat import Encoded


@dataclass
class Group:
    """Samples that stand together in a row.

    Attributes:
        members: numbers of the samples, in the order given to `pack`.
        prefix_length: tokens that all members share; 0 when nothing is shared.
        num_tokens: tokens the group occupies.
        num_tiles: tiles whose features the group needs.
    """

    members: list[int]
    prefix_length: int
    num_tokens: int
    num_tiles: int


@dataclass
class Row:
    """One packed row: groups side by side."""

    groups: list[Group] = field(default_factory=list)
    num_tokens: int = 0
    num_tiles: int = 0

    def add(self, group: Group) -> None:
        self.groups.append(group)
        self.num_tokens += group.num_tokens
        self.num_tiles += group.num_tiles


def pack(
    encoded: Sequence[Encoded],
    image_keys: Sequence[Hashable],
    *,
    tokens_per_row: int,
    tiles_per_row: int,
    share_images: bool = True,
) -> list[Row]:
    """Assign samples to rows.

    Args:
        encoded: the samples.
        image_keys: for each sample what identifies its pictures; equal keys may share.
        tokens_per_row: token budget; a longer single sample gets a row of its own.
        tiles_per_row: budget of tiles.
        share_images: let samples about one picture share its tokens.

    Returns:
        Rows, deterministic in the input; every sample is in exactly one.
    """
    groups = _groups(encoded, image_keys, tokens_per_row, share_images)
    groups.sort(key=lambda g: (-g.num_tokens, g.members[0]))
    total = sum(g.num_tokens for g in groups)
    images = sum(g.num_tiles for g in groups)
    num_rows = max(1, math.ceil(total / tokens_per_row), math.ceil(images / tiles_per_row))
    rows = [Row() for _ in range(num_rows)]
    for group in groups:
        fitting = [
            row
            for row in rows
            if not row.groups
            or (
                row.num_tokens + group.num_tokens <= tokens_per_row
                and row.num_tiles + group.num_tiles <= tiles_per_row
            )
        ]
        if not fitting:
            fitting = [Row()]
            rows.append(fitting[0])
        min(fitting, key=lambda r: r.num_tokens).add(group)
    # Rows of like length end up in one micro-batch, which is cut at its longest.
    return sorted((row for row in rows if row.groups), key=lambda r: -r.num_tokens)


def _groups(
    encoded: Sequence[Encoded],
    image_keys: Sequence[Hashable],
    tokens_per_row: int,
    share_images: bool,
) -> list[Group]:
    groups: list[Group] = []
    open_groups: dict[Hashable, Group] = {}
    for number, sample in enumerate(encoded):
        length = sample.prefix_length()
        if not share_images or not length:
            groups.append(Group([number], 0, len(sample), sample.num_tiles))
            continue
        key = (image_keys[number], sample.ids[:length])
        group = open_groups.get(key)
        if group is None or group.num_tokens + len(sample) - length > tokens_per_row:
            group = Group([], length, length, sample.num_tiles)
            open_groups[key] = group
            groups.append(group)
        group.members.append(number)
        group.num_tokens += len(sample) - length
    for group in groups:
        if len(group.members) == 1:
            group.prefix_length = 0
    return groups
