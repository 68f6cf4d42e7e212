"""Transformers' BlipForConditionalGeneration: captions."""

from __future__ import annotations

from typing import Any

from diptych.convert.blip_layout import BlipLayout

CLASSES = ("BlipForConditionalGeneration",)
MODEL_TYPES = ("blip",)

ARCHITECTURE = "captioner"


def _find_class() -> Any:
    from transformers import BlipForConditionalGeneration

    return BlipForConditionalGeneration


_LAYOUT = BlipLayout(name="hf-blip-captioning", writes=True, find_class=_find_class)
export, load, compare, outputs = _LAYOUT.export, _LAYOUT.load, _LAYOUT.compare, _LAYOUT.outputs
described = _LAYOUT.described
