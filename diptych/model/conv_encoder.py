"""A small convolutional image encoder that keeps full resolution where letters are.

The convolutional networks of transformers begin with strides of 4 (ResNet) or 2 (RegNet). In
a small picture a letter is five pixels high; such a stem leaves little of it, and an
encoder that learns from scratch was slower to read in our trials (docs/quickstart.md). This one
convolves at full resolution and halves by max-pooling after each stage.

It is registered with transformers as model type `diptych_conv`, so a recipe names it like any
other vision model.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithNoAttention


class ConvEncoderConfig(PreTrainedConfig):
    """Widths and depths of the stages; every stage halves the picture.

    Attributes:
        hidden_sizes: channels of each stage.
        depths: 3x3 convolutions of each stage.
    """

    model_type = "diptych_conv"
    hidden_sizes: tuple[int, ...] | list[int] = (24, 48, 96, 160, 192)
    depths: tuple[int, ...] | list[int] = (1, 1, 1, 1, 1)
    num_channels: int = 3
    initializer_range: float = 0.02


class ConvEncoderModel(PreTrainedModel):
    """Stages of 3x3 convolution, batch norm and ReLU, each closed by 2x2 max-pooling.

    Shapes: pixel_values [B, 3, H, W] -> last_hidden_state [B, C, H / 2^S, W / 2^S] after S stages;
    `hidden_states` holds the output of every stage.
    Source: VGG (arXiv:1409.1556) with batch normalisation (arXiv:1502.03167).
    """

    config_class = ConvEncoderConfig
    main_input_name = "pixel_values"

    def __init__(self, config: ConvEncoderConfig):
        super().__init__(config)
        sizes = [config.num_channels, *config.hidden_sizes]
        self.stages = nn.ModuleList(
            _Stage(before, after, depth)
            for before, after, depth in zip(sizes, sizes[1:], config.depths, strict=False)
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
            module.reset_running_stats()

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool = False, **_: Any
    ) -> BaseModelOutputWithNoAttention:
        states: Tensor = pixel_values
        every: tuple[Any, ...] = ()
        for stage in self.stages:
            states = stage(states)
            every += (states,)
        return BaseModelOutputWithNoAttention(
            last_hidden_state=states,  # type: ignore[arg-type]
            hidden_states=every if output_hidden_states else None,
        )


class _Stage(nn.Sequential):
    def __init__(self, before: int, after: int, depth: int):
        layers: list[nn.Module] = []
        for number in range(depth):
            layers += [
                nn.Conv2d(before if number == 0 else after, after, 3, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
        super().__init__(*layers, nn.MaxPool2d(2))


def register() -> None:
    """Make transformers' Auto classes know the model type; may be called again."""
    AutoConfig.register(ConvEncoderConfig.model_type, ConvEncoderConfig, exist_ok=True)
    AutoModel.register(ConvEncoderConfig, ConvEncoderModel, exist_ok=True)
