"""Fixed positions of the places of a grid."""

from __future__ import annotations

import torch
from torch import Tensor


def grid_positions(
    grid: tuple[int, int], dim: int, device: torch.device, base: float = 10_000.0
) -> Tensor:
    """Fixed two-dimensional sine and cosine positions.

    Half of the channels code the row, half the column. Computed for any grid, so the same
    weights serve any resolution. Channels beyond the last multiple of four stay zero.

    Args:
        base: ratio of the longest to the shortest wave; a small grid is told apart by a small one.

    Shapes: -> float32 [rows * columns, dim].
    Source: Vaswani et al., section 3.5 (arXiv:1706.03762), once for rows and once for columns.
    """
    quarter = dim // 4
    rates = base ** (-torch.arange(quarter, device=device, dtype=torch.float32) / quarter)
    rows, columns = (torch.arange(n, device=device, dtype=torch.float32) for n in grid)
    row_angles, column_angles = rows[:, None] * rates, columns[:, None] * rates
    by_row = torch.cat([row_angles.sin(), row_angles.cos()], -1)
    by_column = torch.cat([column_angles.sin(), column_angles.cos()], -1)
    both = torch.cat(
        [
            by_row[:, None].expand(-1, grid[1], -1),
            by_column[None].expand(grid[0], -1, -1),
        ],
        -1,
    ).flatten(0, 1)
    return torch.nn.functional.pad(both, (0, dim - both.shape[1]))
