"""Transformers' SiglipModel: two encoders of SigLIP's kind, a temperature and a bias."""

from __future__ import annotations

from typing import Any

from diptych.convert.dual_layout import DualLayout

CLASSES = ("SiglipModel",)
MODEL_TYPES = ("siglip",)

ARCHITECTURE = "dual_encoder"


def _find_class() -> Any:
    from transformers import SiglipModel

    return SiglipModel


_LAYOUT = DualLayout(
    name="hf-siglip",
    model_type="siglip",
    processor="siglip",
    # The pooled state is that of the last position, padding or not.
    text={"pad_to_max": True},
    projects=False,
    find_class=_find_class,
)
export, load, compare, outputs = _LAYOUT.export, _LAYOUT.load, _LAYOUT.compare, _LAYOUT.outputs
described = _LAYOUT.described
