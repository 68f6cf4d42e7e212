"""Rows of every rank, with gradients back to the rank they came from."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from diptych.machine import widest


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """Rows [n, D] of this rank -> (rows [N, D] of all ranks in rank order, where ours begin).

    Ranks may have different numbers of rows, zero included. The gradient of a rank's rows is
    the sum over what every rank makes of them, so a loss that is summed over ranks has the
    gradients it has on one process. Without a process group the rows come back as they are.
    Tested in tests/equivalence/test_ranks.py.
    """
    if _alone():
        return rows, 0
    sizes = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in _ranks()]
    dist.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
    counts = [int(size) for size in sizes]
    return _Gather.apply(rows, counts), sum(counts[: dist.get_rank()])


def gather_padded(rows: Tensor, fill: int) -> tuple[Tensor, int]:
    """As `gather_rows` for ids [n, T] whose T differs between ranks; shorter rows end in `fill`."""
    if _alone():
        return rows, 0
    longest = torch.tensor([rows.shape[1]], device=rows.device)
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    wide = rows.new_full((len(rows), int(longest)), fill)
    wide[:, : rows.shape[1]] = rows
    return gather_rows(wide)


def total(value: float, device: torch.device) -> float:
    """The sum of a number over ranks; no gradient."""
    if _alone():
        return value
    summed = torch.tensor([value], dtype=widest(device), device=device)
    dist.all_reduce(summed)
    return summed.item()


def _alone() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1


def _ranks() -> range:
    return range(dist.get_world_size())


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        # all_gather wants equal shapes: short ranks are filled up and cut again.
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in _ranks()]
        dist.all_gather(gathered, padded)
        return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        start = sum(ctx.counts[: dist.get_rank()])
        return total[start : start + ctx.counts[dist.get_rank()]], None
