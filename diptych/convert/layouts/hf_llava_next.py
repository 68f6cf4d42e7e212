"""`LlavaNextForConditionalGeneration`: LLaVA with the tiles of `anyres`, merged to one map.

The learned token that ends every row of the map (`image_newline`) is the connector's `row_end`.

Source: transformers, models/llava_next; weight names as in the published llava-hf checkpoints.
Parity: tests/parity/test_tiled_layouts.py.
"""

from __future__ import annotations

from diptych.convert.llava_hf import HfLlavaNext

CLASSES = ("LlavaNextForConditionalGeneration",)
MODEL_TYPES = ("llava_next",)
ARCHITECTURE = "vlm"
TILINGS = ("anyres",)

_LAYOUT = HfLlavaNext()
outputs, export, compare = _LAYOUT.outputs, _LAYOUT.export, _LAYOUT.compare
load, described = _LAYOUT.load, _LAYOUT.described
KEYS, renamed = _LAYOUT.keys, _LAYOUT.renamed
