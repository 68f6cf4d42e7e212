"""Any Hugging Face vision model -> patch features.

The model may come from pretrained weights or be built from a config to learn from scratch;
transformers (CLIP, SigLIP, DINOv2, ViT, InternViT ...) and convolutional networks (ResNet,
ConvNeXt ...) alike. The feature grid is measured once on the meta device, where no memory is
used, so the number of tokens of an image is known before any weights are read.

Shapes: B images, N tokens of the encoder, C its width, H and W pixels.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.data.pixels.preprocessing import Preprocessing
from diptych.errors import ConfigError
from diptych.model import clip_weights, packages
from diptych.model.connector import Grid
from diptych.model.tensors import fill, without_weights
from diptych.model.weights import FromHub, cast, load_pretrained, locate, of_a_model, reading

_CLASSES = {
    "blip_vision_model": "BlipVisionModel",
    "blip_2_vision_model": "Blip2VisionModel",
    "siglip_text_model": "SiglipTextModel",
    "siglip2_text_model": "Siglip2TextModel",
}


class VisionEncoderConfig(FromHub):
    """Which vision model, and which of its features."""

    weights: str | None = None
    """Local folder or hub name of pretrained weights, or a Diptych model or run folder whose
    encoder is taken, or `recipe:NAME`, which is run first; null builds from `config`."""
    config: dict[str, Any] | None = None
    """Hugging Face config (with `model_type`) for an encoder that learns from scratch."""
    layer: int | None = None
    """Hidden state to read (-2 is LLaVA's choice); null reads the model's final output."""
    features: Literal["patch", "full"] = "patch"
    """`patch` leaves class and register tokens out, `full` keeps them."""
    drop_last_layers: int = Field(default=0, ge=0)
    """Transformer layers removed from the end (InternVL drops three)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision in which the weights are kept."""
    image: Preprocessing | None = None
    """How pictures become tensors; null takes the pretrained encoder's own preprocessing."""


class VisionEncoder(nn.Module):
    """Pixels -> features of one chosen layer.

    Shapes: pixel_values [B, 3, H, W], uint8 levels or normalised float -> features [B, N, C].
    Parity: tests/parity/test_vision_encoder.py.
    """

    module: Any

    def __init__(self, config: VisionEncoderConfig, hf_config: Any, module: nn.Module):
        super().__init__()
        self.config = config
        self.hf_config = hf_config
        self.module = module
        if config.image is None:
            raise ConfigError(
                "an encoder that learns from scratch needs its image preprocessing",
                where="model.vision_encoder.image",
                fix="give at least a size, such as {size: [160, 160]}",
            )
        self.preprocessing: Preprocessing = config.image
        shape = probe(config, hf_config)
        self.grid, self.num_prefix, self.dim, self.is_convolutional = shape
        if self.is_convolutional:
            # A third faster on CPUs; the numbers are the same up to rounding.
            self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, pixel_values: Tensor) -> Tensor:
        pixels = self._read(pixel_values)
        return select(self.module, self.config, pixels, self.num_prefix)

    def _read(self, pixel_values: Tensor) -> Tensor:
        """Normalised, in the weights' dtype and the layout that the module is quick with."""
        if pixel_values.dtype == torch.uint8:
            pixel_values = self.preprocessing.normalised(pixel_values)
            if (dtype := next(self.module.parameters()).dtype) != torch.float32:
                pixel_values = pixel_values.to(dtype)
        if self.is_convolutional:
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        return pixel_values

    def stages(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """[B, C, H, W] of every stage of a convolutional encoder, the last as in `forward`."""
        pixels = self._read(pixel_values)
        return self.module(pixel_values=pixels, output_hidden_states=True).hidden_states

    def pooled(self, pixel_values: Tensor, pool: str) -> Tensor:
        """Pictures [B, 3, H, W] -> one vector each [B, C]; `pool` as in DualEncoderConfig.

        Raises:
            ConfigError: the model pools nothing itself.
        """
        if pool == "mean":
            return self(pixel_values).mean(1)
        output = self.module(pixel_values=self._read(pixel_values))
        if pool == "first":
            return output.last_hidden_state[:, 0]
        if output.pooler_output is None:
            raise ConfigError(
                f"a {self.hf_config.model_type} pools nothing itself",
                where="model.image_pool",
                fix="use mean or first",
            )
        return output.pooler_output.flatten(1)


def build(config: VisionEncoderConfig, *, pooled: bool = False) -> VisionEncoder:
    """The encoder with its weights, or newly initialised; `pooled` if its pooler is used."""
    config, hf_config = resolve(config)
    kind = class_of(hf_config)
    if config.weights is None:
        module = kind._from_config(hf_config)
        clip_weights.initialise(module, hf_config.model_type)
    else:
        folder = locate(config.weights, revision=config.revision)
        where = "model.vision_encoder.weights"
        if (own := of_a_model(folder)) is not None:
            with without_weights():
                module = kind._from_config(hf_config)
            fill(module, own[0] / "model.safetensors", prefix="vision_encoder.module.")
        else:
            module = load_pretrained(
                kind,
                folder,
                where,
                getattr(torch, config.dtype),
                heads=pooled,
                config=hf_config,
            )
    return VisionEncoder(config, hf_config, cast(module, getattr(torch, config.dtype)))


def resolve(config: VisionEncoderConfig) -> tuple[VisionEncoderConfig, Any]:
    """Fill in what the weights' folder knows: the HF config and the preprocessing.

    Raises:
        ConfigError: neither weights nor config, or a config of no known model type.
    """

    from transformers import AutoConfig

    package = packages.find(config.weights or "")
    if package is not None and package.image is not None:  # known without its files
        hf_config = config_from_dict(package.config or {}, "model.vision_encoder.weights")
        image = config.image or Preprocessing.from_hf(package.image)
        config = config.model_copy(update={"image": image})
    elif config.weights is not None:
        folder = locate(config.weights, revision=config.revision, described=True)
        if (own := of_a_model(folder)) is not None:
            place, values = own
            known = VisionEncoderConfig.from_dict(
                values["vision_encoder"], where=f"{place}: vision_encoder"
            )
            assert known.config is not None, "a saved model has its configs written out"
            hf_config = config_from_dict(known.config, "model.vision_encoder.weights")
            return config.model_copy(update={"image": config.image or known.image}), hf_config
        with reading(folder, "model.vision_encoder.weights"):
            hf_config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        hf_config = getattr(hf_config, "vision_config", hf_config)
        if config.image is None:
            config = config.model_copy(update={"image": Preprocessing.of_folder(folder)})
    elif config.config is not None:
        hf_config = config_from_dict(config.config, "model.vision_encoder.config")
    else:
        raise ConfigError(
            "the vision encoder has neither weights nor config",
            where="model.vision_encoder",
            fix="set weights to a folder or hub name, or config to a Hugging Face config",
        )
    if config.drop_last_layers:
        kept = hf_config.num_hidden_layers - config.drop_last_layers
        if kept < 1:
            raise ConfigError(
                f"the encoder has {hf_config.num_hidden_layers} layers, "
                f"{config.drop_last_layers} cannot be dropped",
                where="model.vision_encoder.drop_last_layers",
            )
        hf_config.num_hidden_layers = kept
        config = config.model_copy(update={"drop_last_layers": 0})
    return config, hf_config


def class_of(hf_config: Any) -> Any:
    """The class of a vision or text model; transformers' AutoModel does not know all of them.

    Raises:
        ConfigError: the config is not that of a model without a task of its own.
    """
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    if (name := _CLASSES.get(hf_config.model_type)) is not None:
        return getattr(transformers, name)
    found = MODEL_MAPPING.get(type(hf_config), None)
    if found is None:
        raise ConfigError(
            f"a {hf_config.model_type} is no vision or text model",
            where="config.model_type",
            fix="for example vit, clip_vision_model, siglip_text_model, bert",
        )
    return found[0] if isinstance(found, tuple) else found


def config_from_dict(values: dict[str, Any], where: str) -> Any:
    """A Hugging Face config object from plain data.

    Raises:
        ConfigError: no `model_type`, or one that transformers does not know.
    """
    from transformers import CONFIG_MAPPING

    from diptych.model import conv_encoder

    conv_encoder.register()
    values = dict(values)
    kind = values.pop("model_type", None)
    if kind not in CONFIG_MAPPING:
        raise ConfigError(
            f"'{kind}' is no model type that transformers knows",
            where=f"{where}.model_type",
            fix="for example resnet, vit, clip_vision_model, siglip_vision_model, dinov2, llama, "
            "qwen2, mistral, t5",
        )
    try:
        return CONFIG_MAPPING[kind](**values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the {kind} config is not valid: {error}", where=where) from error


def probe(config: VisionEncoderConfig, hf_config: Any) -> tuple[Grid, int, int, bool]:
    """(grid, class and register tokens kept, width, whether convolutional), from shapes alone."""
    assert config.image is not None
    return _probe(config.model_dump_json(), hf_config.to_json_string(use_diff=False))


@lru_cache(maxsize=16)
def _probe(config_json: str, hf_json: str) -> tuple[Grid, int, int, bool]:
    import json

    config = VisionEncoderConfig.model_validate_json(config_json)
    assert config.image is not None
    hf_config = config_from_dict(json.loads(hf_json), "model.vision_encoder.config")
    height, width = config.image.image_size
    try:
        with torch.device("meta"):
            module = class_of(hf_config)._from_config(hf_config).eval()
            pixels = torch.zeros(1, 3, height, width)
            states = _hidden(module, config, pixels)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ConfigError(
            f"the {hf_config.model_type} encoder cannot read pictures of {height} x {width} "
            f"pixels: {error}",
            where="model.vision_encoder",
            fix="check the image size and the encoder's config",
        ) from error
    if states.ndim == 4:
        return (states.shape[2], states.shape[3]), 0, states.shape[1], True
    patch = getattr(hf_config, "patch_size", None)
    rows, columns = (patch, patch) if isinstance(patch, int) else patch or (1, 1)
    grid = (height // rows, width // columns)
    num_prefix = states.shape[1] - grid[0] * grid[1]
    if patch is None or num_prefix < 0:
        raise ConfigError(
            f"the {hf_config.model_type} encoder gives no grid of patches",
            where="model.vision_encoder",
            fix="choose a vision transformer or a convolutional network",
        )
    return grid, num_prefix if config.features == "full" else 0, states.shape[2], False


def _hidden(module: nn.Module, config: VisionEncoderConfig, pixels: Tensor) -> Tensor:
    if config.layer is None:
        return module(pixel_values=pixels).last_hidden_state
    output = module(pixel_values=pixels, output_hidden_states=True)
    states = output.hidden_states
    if not -len(states) <= config.layer < len(states):
        raise ConfigError(
            f"the encoder has hidden states 0 to {len(states) - 1}, not {config.layer}",
            where="model.vision_encoder.layer",
        )
    return states[config.layer]


def select(module: Any, config: VisionEncoderConfig, pixels: Tensor, num_prefix: int) -> Tensor:
    """Features [B, N, C] of the chosen layer."""
    states = _hidden(module, config, pixels)
    if states.ndim == 4:
        return states.flatten(2).transpose(1, 2)
    if config.features == "full":
        return states
    patch = module.config.patch_size
    rows, columns = (patch, patch) if isinstance(patch, int) else patch
    num_patches = (pixels.shape[2] // rows) * (pixels.shape[3] // columns)
    return states[:, states.shape[1] - num_patches :]
