"""Losses over pairs of pictures and texts, every other text or picture being a negative.

Shapes: n pairs of this rank, N of all ranks, D width of the shared space. Embeddings have unit
length. Losses are sums over this rank's pairs; their sum over ranks, divided by N, is the loss of
one process with the whole batch, and so are its gradients.
Parity: tests/conformance/test_clip_loss.py (open_clip), one and two ranks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.train.ranks import gather_rows


def clip_loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Symmetric cross-entropy, picture to text and text to picture.

    Args:
        images: [n, D], row i belongs to row i of `texts`.
        texts: [n, D].
        scale: inverse temperature, a scalar that is exponentiated already.

    Source: CLIP, figure 3 (arXiv:2103.00020).
    """
    all_images, start = gather_rows(images)
    all_texts, _ = gather_rows(texts)
    own = torch.arange(start, start + len(images), device=images.device)
    to_text = F.cross_entropy(scale * images @ all_texts.T, own, reduction="sum")
    to_image = F.cross_entropy(scale * texts @ all_images.T, own, reduction="sum")
    return (to_text + to_image) / 2


def soft_loss(logits: Tensor, same: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy with every right one as a target, smoothed; a sum over rows.

    Args:
        logits: [n, N].
        same: bool [n, N], where picture and text belong together; at least one a row.
        smoothing: share of the target that is spread over all N.

    Source: BLIP-2, `blip2_qformer.py` of salesforce/LAVIS (label smoothing 0.1; with image ids the
    target is uniform over the pairs of one picture).
    """
    targets = same.to(logits.dtype)
    targets = targets / targets.sum(1, keepdim=True)
    targets = (1 - smoothing) * targets + smoothing / logits.shape[1]
    return -(targets * logits.log_softmax(1)).sum()


def draw_negatives(logits: Tensor, same: Tensor, noise: Tensor) -> Tensor:
    """One that does not belong for each row, the likelier the closer it seems: int64 [n].

    Drawn from the softmax over those that do not belong (by adding Gumbel noise and taking the
    largest), so that hard ones are seen more often.

    Args:
        logits: [n, N].
        same: bool [n, N], never drawn.
        noise: uniform in (0, 1) [n, N]; rows of one table for all ranks, so that any number of
            ranks draws alike.

    Source: hard negatives of ALBEF (arXiv:2107.07651), as in BLIP and BLIP-2.
    """
    gumbel = -torch.log(-torch.log(noise.clamp(1e-20, 1 - 1e-7)))
    return (logits.detach().float() + gumbel).masked_fill(same, -torch.inf).argmax(1)


def sigmoid_loss(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Every picture with every text is a yes-or-no question of its own.

    Args:
        images: [n, D], row i belongs to row i of `texts`.
        texts: [n, D].
        scale: inverse temperature, exponentiated.
        bias: added to every logit; negative at the start, as most pairs do not belong together.

    Source: SigLIP, section 3.2 (arXiv:2303.15343); divided by pictures, not by pairs.
    """
    all_texts, start = gather_rows(texts)
    logits = scale * images @ all_texts.T + bias
    sign = -torch.ones_like(logits)
    own = torch.arange(len(images), device=images.device)
    sign[own, own + start] = 1.0
    return -F.logsigmoid(sign * logits).sum()
