"""Batch: the tensors that every model receives.

Hugging Face names where there is one. Packing is part of the contract from the start: a row
may hold several samples, and samples about one picture may share one copy of its tokens.

Shapes: R rows, T tokens of the longest row, S tiles of all pictures, P targets,
        H and W pixels of a tile, N encoder tokens of a tile, C encoder width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from diptych.data.pixels.tiling import Tiles
from diptych.data.sample import IMAGE_TOKEN

IGNORE = -100


@dataclass(frozen=True, slots=True)
class Known:
    """What is read off a batch before it is sent to a device, which need not be asked for it again.

    Attributes:
        num_placeholders: image positions in the text that pictures are spliced into.
        is_packed: whether a row holds more than one sample or prefix.
        last_position: the largest of `position_ids`.
    """

    num_placeholders: int
    is_packed: bool
    last_position: int


@dataclass
class Batch:
    """One micro-batch.

    Attributes:
        input_ids: int64 [R, T]; `IMAGE_TOKEN` at image positions, 0 at padding.
        position_ids: int64 [R, T]; restart for each sample; a branch continues its prefix.
        segment_ids: int64 [R, T]; 0 is padding, every sample or shared prefix has its own.
        prefix_ids: int64 [R, T]; segment of the shared prefix that a token also sees, else 0.
        target_positions: int64 [P]; flat index (row * T + column) of the hidden state that
            predicts a target. Explicit, not `labels` shifted by one: captions of one picture
            leave the same position with different targets.
        target_ids: int64 [P]; the token to predict.
        target_samples: int64 [P]; which sample (index into `sample_ids`) a target belongs to.
        pixel_values: uint8 [S, 3, H, W], tiles of the pictures in reading order, or None; float32
            where they are normalised already. The encoder takes both.
        features: [S, N, C] cached encoder features instead of pixels, or None.
        image_keys: content hash of each picture.
        tiles: how each picture is cut; together they have S tiles.
        texts: one text per sample, for objectives that encode text themselves.
        sample_ids: ids of the samples, for the ledger and for losses by sample.
        encoder_ids, encoder_mask: int64 [R, S], inputs of an encoder-decoder language model;
            then `input_ids` are the decoder's.
        extra: an objective's own tensors by name, as its collator made them.
        known: what the host knows of it; None asks the tensors.
    """

    input_ids: Tensor
    position_ids: Tensor
    segment_ids: Tensor
    prefix_ids: Tensor
    target_positions: Tensor
    target_ids: Tensor
    target_samples: Tensor
    pixel_values: Tensor | None = None
    features: Tensor | None = None
    image_keys: tuple[str, ...] = ()
    tiles: tuple[Tiles, ...] = ()
    texts: tuple[str, ...] = ()
    sample_ids: tuple[str, ...] = field(default=())
    encoder_ids: Tensor | None = None
    encoder_mask: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    known: Known | None = None

    def described(self) -> Known:
        """What the host knows; asks the tensors where nobody has, and on a GPU waits for them."""
        if self.known is not None:
            return self.known
        text = self.input_ids if self.encoder_ids is None else self.encoder_ids
        segments = self.segment_ids
        one = (segments == segments[:, :1]) | (segments == 0)
        return Known(
            num_placeholders=int((text == IMAGE_TOKEN).sum()),
            is_packed=not bool(one.all()),
            last_position=int(self.position_ids.max()) if self.position_ids.numel() else 0,
        )

    @property
    def num_real_tokens(self) -> int:
        """Tokens that are not padding."""
        return int((self.segment_ids != 0).sum())

    @property
    def num_targets(self) -> int:
        """Supervised tokens."""
        return self.target_ids.numel()

    @property
    def padding_share(self) -> float:
        """Share of the row area that is padding."""
        return 1.0 - self.num_real_tokens / max(1, self.segment_ids.numel())

    def attention_mask(self, window: int | None = None) -> Tensor | None:
        """Bool [R, 1, T, T], True where a query (row) may see a key (column).

        A token sees its own segment and its shared prefix, never later tokens and never a
        neighbour. None where plain causal attention says the same (one sample a row, padding
        on the right), which lets SDPA take its fast path.

        Args:
            window: a token sees only so many positions back, itself included (sliding-window
                attention); distance is counted within the sample, whatever stands between.
        """
        if not self.described().is_packed:
            return None
        segments = self.segment_ids
        queries, keys = segments[:, :, None], segments[:, None, :]
        visible = (queries == keys) | (self.prefix_ids[:, :, None] == keys)
        length = segments.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
        if window is not None:
            distance = self.position_ids[:, :, None] - self.position_ids[:, None, :]
            visible = visible & (distance < window)
        # Padding sees padding: a row of False would make softmax return NaN.
        return (visible & causal)[:, None]

    def pairs(self, start: int, stop: int) -> Batch:
        """The pairs `start` to `stop` of a batch of pairs: one row and one tile each."""

        def cut(value: Any) -> Any:
            return None if value is None else value[start:stop]

        return replace(
            self,
            known=None,
            **{
                name: cut(getattr(self, name))
                for name in (
                    *("input_ids", "position_ids", "segment_ids", "prefix_ids"),
                    *("pixel_values", "features", "image_keys", "tiles", "texts", "sample_ids"),
                    *("encoder_ids", "encoder_mask"),
                )
            },
        )

    def to(self, device: torch.device | str) -> Batch:
        """A copy with every tensor on `device`, and what the host knows of them beside."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """A copy in memory from which a GPU reads while the host goes on."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        changed: dict[str, Any] = {
            f.name: change(value)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        extra = {name: change(tensor) for name, tensor in self.extra.items()}
        return replace(self, known=self.described(), extra=extra, **changed)
