"""Transformers' CLIPModel: two encoders of CLIP's kind, projections and a temperature."""

from __future__ import annotations

from typing import Any

from diptych.convert.dual_layout import DualLayout

CLASSES = ("CLIPModel",)
MODEL_TYPES = ("clip",)

ARCHITECTURE = "dual_encoder"


def _find_class() -> Any:
    from transformers import CLIPModel

    return CLIPModel


_LAYOUT = DualLayout(
    name="hf-clip",
    model_type="clip",
    processor="clip",
    text={},
    projects=True,
    find_class=_find_class,
)
export, load, compare, outputs = _LAYOUT.export, _LAYOUT.load, _LAYOUT.compare, _LAYOUT.outputs
described = _LAYOUT.described
