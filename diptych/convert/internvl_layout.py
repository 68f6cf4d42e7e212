"""What the two layouts of InternVL share: tiles of `dynamic`, pixel shuffle, two linear layers.

Pictures stand between `<img>` and `</img>`, which the class's processor writes. Its config ties the
output layer to the embeddings unless it is told otherwise, so it always is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from diptych.convert.llava_class import LlavaReference
from diptych.convert.llava_layout import LlavaLayout
from diptych.data.pixels.tilings.dynamic import Config as Dynamic
from diptych.data.pixels.tilings.single import Config as Single
from diptych.errors import CheckpointError, ConfigError, ModelError
from diptych.model.architectures.vlm import Vlm
from diptych.model.connectors.pixel_shuffle import PixelShuffle

MARKS = ("<img>", "</img>")
_CONTEXT = "<IMG_CONTEXT>"
_NAMES = {"norm": "layer_norm", "linear_1": "linear_1", "linear_2": "linear_2"}
_SPECIAL = {
    "start_image_token": MARKS[0],
    "end_image_token": MARKS[1],
    "context_image_token": _CONTEXT,
    "video_token": "<video>",
}
"""What its processor asks the tokenizer for."""


class InternVlReference(LlavaReference):
    """Its processor needs torchvision for videos; without it, what it does is done here.

    Pictures are cut and counted by its image processor, text comes from its own template, and
    `<IMG_CONTEXT>` becomes `<img>`, as many of it as the tiles have tokens, and `</img>`.
    """

    def open_processor(self, path: Path) -> None:
        from transformers import AutoTokenizer, GotOcr2ImageProcessorPil

        self.tokenizer: Any = AutoTokenizer.from_pretrained(path)
        self.image_processor: Any = GotOcr2ImageProcessorPil.from_pretrained(path)
        missing = [name for name in _SPECIAL if getattr(self.tokenizer, name, None) is None]
        if missing and self.chat_settled:
            raise ModelError(f"the tokenizer has no {missing[0]}")

    def image_token_of(self, config: Any) -> int:
        return int(config.image_token_id)

    def pixels(self, pictures: Sequence[Any]) -> Tensor:
        found = self.image_processor(list(pictures), return_tensors="pt", crop_to_patches=True)
        return found["pixel_values"].float()

    def chat_ids(self, messages: list[dict[str, Any]]) -> list[int] | None:
        if self.tokenizer.chat_template is None:
            return None
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # Jinja and template authors raise what they like
            raise ModelError(f"the template refuses a conversation: {error}") from error
        pictures = [
            part["image"]
            for message in messages
            for part in message["content"]
            if part["type"] == "image"
        ]
        pieces = text.split(_CONTEXT)
        if len(pieces) != len(pictures) + 1:
            raise ModelError("the template does not write one mark a picture")
        written = pieces[0]
        for piece, picture in zip(pieces[1:], pictures, strict=True):
            own = self.image_processor
            count = own.get_number_of_image_patches(
                picture.height,
                picture.width,
                {"crop_to_patches": True, "max_patches": own.max_patches},
            )
            length = self.module.config.image_seq_length * count
            written += MARKS[0] + _CONTEXT * length + MARKS[1] + piece
        return [int(i) for i in self.tokenizer(written).input_ids]


class HfInternVl(LlavaLayout):
    """One to twelve tiles a picture, the whole one last."""

    name = "hf-internvl"
    title = "InternVL"
    class_name = "InternVLForConditionalGeneration"
    config_name = "InternVLConfig"
    model_type = "internvl"
    image_mark = _CONTEXT
    processor_name = "InternVLProcessor"
    reference = InternVlReference
    known_towers = ("internvl_vision",)

    def projector(self, model: Vlm) -> tuple[dict[str, Tensor], str]:
        connector = model.connector
        marks = model.config.language_model.picture_marks
        if not isinstance(connector, PixelShuffle) or connector.order != "v2":
            raise ConfigError(
                "the layout holds the connector pixel_shuffle of order v2, not "
                f"{model.config.connector.name}",
                where="model.connector",
                fix="keep the Diptych folder, or train with pixel_shuffle; mlp and linear fit "
                "hf-llava",
            )
        if marks != MARKS:
            raise ConfigError(
                f"the layout's processor puts {' and '.join(MARKS)} around every picture, this "
                "model does not",
                where="model.language_model.picture_marks",
                fix='train with model.language_model.picture_marks: ["<img>", "</img>"]',
            )
        tensors = {n: t.detach().cpu() for n, t in connector.state_dict().items()}
        parts = {n: n.partition(".") for n in tensors}
        return {f"{_NAMES[p[0]]}.{p[2]}": tensors[n] for n, p in parts.items()}, "gelu"

    def connector(
        self, tensors: Mapping[str, Tensor], config: Any, where: Path
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        if config.projector_hidden_act != "gelu":
            raise CheckpointError(
                f"the projector's activation is {config.projector_hidden_act}; pixel_shuffle has "
                "gelu",
                where=f"{where}: projector_hidden_act",
            )
        back = {theirs: own for own, theirs in _NAMES.items()}
        found = {}
        for name, tensor in tensors.items():
            if name.startswith("connector."):
                layer, _, end = name.removeprefix("connector.").partition(".")
                found[f"connector.{back[layer]}.{end}"] = tensor
        return self.described_connector(config), found

    def described_connector(self, config: Any) -> dict[str, Any]:
        return {"name": "pixel_shuffle", "scale": config.downsample_ratio, "order": "v2"}

    def own_config(self, model: Vlm, image_token: int, layer: int, strategy: str) -> dict[str, Any]:
        return {
            "image_token_id": image_token,
            "image_seq_length": model.tokens_per_image,
            "downsample_ratio": model.config.connector.scale,
            "vision_feature_layer": layer,
            "vision_feature_select_strategy": strategy,
        }

    def processor(self, model: Vlm, num_prefix: int, strategy: str) -> dict[str, Any]:
        return {"image_seq_length": model.tokens_per_image}

    def image_processor(self, model: Vlm) -> dict[str, Any]:
        own = model.preprocessing
        if isinstance(own.tiles, Single):  # its processor cuts every picture, if only into one
            one = Dynamic(tile=own.image_size[0], max_tiles=1)
            own = own.model_copy(update={"tiling": one})
        return own.to_hf("siglip")

    def picture_marks(self, tokenizer: Any) -> tuple[str, str] | None:
        return MARKS

    def marked(self, tokenizer: Any) -> None:
        lacking = [w for w in _SPECIAL.values() if w not in tokenizer.get_vocab()]
        if lacking:
            tokenizer.add_tokens(lacking, special_tokens=True)
        tokenizer.init_kwargs["extra_special_tokens"] = dict(_SPECIAL)
        tokenizer._set_model_specific_special_tokens(dict(_SPECIAL))

    def layer_read(self, config: Any) -> int | None:
        # Its -1 is the encoder's output, final normalisation included where there is one.
        return None if config.vision_feature_layer == -1 else config.vision_feature_layer
