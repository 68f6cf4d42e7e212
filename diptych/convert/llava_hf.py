"""LLaVA and LLaVA-NeXT as transformers' classes have them.

`hf-llava` and `hf-llava-next` are these; a layout that is only read is compared by them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.convert import llava_names
from diptych.convert.comparison import Seen
from diptych.convert.llava_class import LlavaReference
from diptych.convert.llava_layout import LlavaLayout, shapes
from diptych.convert.llava_projector import to_connector, to_projector
from diptych.convert.probes import preprocessing_of
from diptych.data.pixels.preprocessing import Preprocessing
from diptych.data.pixels.tilings.anyres import Config
from diptych.errors import CheckpointError
from diptych.model.architectures.vlm import Vlm


class HfLlava(LlavaLayout):
    """One tile a picture."""

    name = "hf-llava"
    title = "LLaVA"
    class_name = "LlavaForConditionalGeneration"
    config_name = "LlavaConfig"
    model_type = "llava"

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


class NextReference(LlavaReference):
    """Takes tiles by picture, filled up to the most, and the pictures' sizes."""

    def pixels(self, pictures: Sequence[Any]) -> Tensor:
        found = [
            self.processor.image_processor(p, return_tensors="pt")["pixel_values"][0]
            for p in pictures
        ]
        return torch.cat(found).float()

    def inputs(self, seen: Seen | None) -> dict[str, Any]:
        if seen is None:
            return {}
        tiles = seen.pixels.split([len(one) for one in seen.tiles])
        device = self.module.device
        return {
            "pixel_values": torch.nn.utils.rnn.pad_sequence(list(tiles), True).to(device),
            "image_sizes": shapes([one.of for one in seen.tiles]).to(device),
        }


class HfLlavaNext(LlavaLayout):
    """Several tiles a picture, the whole one first."""

    name = "hf-llava-next"
    title = "LLaVA-NeXT"
    class_name = "LlavaNextForConditionalGeneration"
    config_name = "LlavaNextConfig"
    model_type = "llava_next"
    keys = (
        {
            "diptych": "connector.row_end",
            "published": "image_newline",
            "loaded": "model.image_newline",
        },
        *llava_names.KEYS,
    )
    processor_name = "LlavaNextProcessor"
    reference = NextReference

    def projector(self, model: Vlm) -> tuple[dict[str, Tensor], str]:
        return to_projector(model)

    def connector(
        self, tensors: Mapping[str, Tensor], config: Any, where: Path
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        name, found = to_connector(tensors, config, where)
        return {"name": name}, {**found, "connector.row_end": tensors["connector.row_end"]}

    def described_connector(self, config: Any) -> dict[str, Any]:
        return {"name": "mlp" if config.projector_hidden_act == "gelu" else "linear"}

    def own_config(self, model: Vlm, image_token: int, layer: int, strategy: str) -> dict[str, Any]:
        own = super().own_config(model, image_token, layer, strategy)
        pinpoints = model.preprocessing.to_hf()["image_grid_pinpoints"]
        return {**own, "image_grid_pinpoints": pinpoints}

    def preprocessing(self, path: Path, config: Any) -> Preprocessing:
        found = preprocessing_of(path)
        side = config.vision_config.image_size
        grids = [[h // side, w // side] for h, w in config.image_grid_pinpoints]
        if not isinstance(found.tiles, Config) or [list(g) for g in found.tiles.grids] != grids:
            raise CheckpointError(
                "its processor cuts pictures otherwise than its config says (image_grid_pinpoints)",
                where=str(path),
                fix="put the pinpoints of config.json into preprocessor_config.json",
            )
        return found
