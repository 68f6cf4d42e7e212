"""`LlavaForConditionalGeneration`: vision transformer, two-layer projector, language model.

The layout that vLLM, SGLang, lmdeploy and transformers serve unchanged. It holds the `mlp`
connector as it is, and `linear` by an identity: relu(x) - relu(-x) = x, so the projector
[I; -I; 0], ReLU, [W, -W, 0] is W x, where twice the encoder's width fits the language
model's (servers know ReLU; "no activation" is not among what they know).

Source: transformers, models/llava; weight names as in the published llava-hf checkpoints.
Parity: tests/parity/test_hf_llava.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from diptych.convert.llava_layout import LlavaLayout
from diptych.convert.llava_projector import to_connector, to_projector
from diptych.model.architectures.vlm import Vlm

CLASSES = ("LlavaForConditionalGeneration",)
MODEL_TYPES = ("llava",)
ARCHITECTURE = "vlm"


class HfLlava(LlavaLayout):
    """One tile a picture."""

    name = "hf-llava"
    title = "LLaVA"
    class_name = CLASSES[0]
    config_name = "LlavaConfig"
    model_type = MODEL_TYPES[0]

    def projector(self, model: Vlm) -> tuple[dict[str, Tensor], str]:
        return to_projector(model)

    def connector(
        self, tensors: Mapping[str, Tensor], config: Any, where: Path
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """A projector that is the identity of a linear connector becomes `linear` again."""
        name, found = to_connector(tensors, config, where)
        return {"name": name}, found

    def described_connector(self, config: Any) -> dict[str, Any]:
        """A projector with ReLU is a linear connector."""
        return {"name": "mlp" if config.projector_hidden_act == "gelu" else "linear"}


_LAYOUT = HfLlava()
outputs, export, compare = _LAYOUT.outputs, _LAYOUT.export, _LAYOUT.compare
load, described = _LAYOUT.load, _LAYOUT.described
KEYS, renamed = _LAYOUT.keys, _LAYOUT.renamed
