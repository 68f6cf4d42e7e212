"""`InternVLForConditionalGeneration`: transformers' own InternVL.

Source: transformers, models/internvl; weight names as in the published OpenGVLab `-hf` checkpoints.
Parity: tests/parity/test_tiled_layouts.py.
"""

from __future__ import annotations

from diptych.convert.internvl_layout import HfInternVl

CLASSES = ("InternVLForConditionalGeneration",)
MODEL_TYPES = ("internvl",)
ARCHITECTURE = "vlm"
TILINGS = ("dynamic", "single")

_LAYOUT = HfInternVl()
outputs, export, compare = _LAYOUT.outputs, _LAYOUT.export, _LAYOUT.compare
load, described = _LAYOUT.load, _LAYOUT.described
KEYS, renamed = _LAYOUT.keys, _LAYOUT.renamed
