"""Transformers' BlipForImageTextRetrieval: similarity and matching."""

from __future__ import annotations

from typing import Any

from diptych.convert.blip_layout import BlipLayout

CLASSES = ("BlipForImageTextRetrieval",)

ARCHITECTURE = "captioner"


def _find_class() -> Any:
    from transformers import BlipForImageTextRetrieval

    return BlipForImageTextRetrieval


_LAYOUT = BlipLayout(name="hf-blip-retrieval", writes=False, find_class=_find_class)
export, load, compare, outputs = _LAYOUT.export, _LAYOUT.load, _LAYOUT.compare, _LAYOUT.outputs
described = _LAYOUT.described
