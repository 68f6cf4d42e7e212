"""Attention as plain matrix products, in the precision that the step computes in.

On CPUs PyTorch's fused attention is slow backwards in bfloat16, and transformers' eager one widens
the scores to float32 on the way. Packed rows of 320 tokens, forwards and backwards, on two cores
with AMX: 15 ms fused, 14 eager, 9 so (benchmarks/cpu_steps.py).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

NAME = "products"
"""What a language model's `attention` says."""


def products(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Softmax of scaled products, times values.

    Shapes: query [B, H, T, D], key and value [B, G, S, D] with H a multiple of G; mask
    [B, 1, T, S], added to the scores -> [B, T, H, D] and the shares of attention [B, H, T, S].
    Parity: tests/parity/test_language_model.py.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (t.repeat_interleave(groups, 1) for t in (key, value))
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    scores = (query * scaling) @ key.transpose(2, 3)
    if attention_mask is not None:
        scores = scores + attention_mask.to(scores.dtype)
    shares = nn.functional.dropout(scores.softmax(-1), dropout, module.training)
    seen = shares.to(value.dtype) @ value
    return seen.transpose(1, 2).contiguous(), shares


def register() -> None:
    """Make transformers know it; may be called again."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, products)
    AttentionMaskInterface.register(NAME, eager_mask)
