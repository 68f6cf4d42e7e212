"""`LlavaForConditionalGeneration`: vision transformer, two-layer projector, language model.

The layout that vLLM, SGLang, lmdeploy and transformers serve unchanged. It holds the `mlp`
connector as it is, and `linear` by an identity: relu(x) - relu(-x) = x, so the projector
[I; -I; 0], ReLU, [W, -W, 0] is W x, where twice the encoder's width fits the language
model's (servers know ReLU; "no activation" is not among what they know).

Source: transformers, models/llava; weight names as in the published llava-hf checkpoints.
Parity: tests/parity/test_hf_llava.py.
"""

from __future__ import annotations

from diptych.convert.llava_hf import HfLlava

CLASSES = ("LlavaForConditionalGeneration",)
MODEL_TYPES = ("llava",)
ARCHITECTURE = "vlm"

_LAYOUT = HfLlava()
outputs, export, compare = _LAYOUT.outputs, _LAYOUT.export, _LAYOUT.compare
load, described = _LAYOUT.load, _LAYOUT.described
KEYS, renamed = _LAYOUT.keys, _LAYOUT.renamed
