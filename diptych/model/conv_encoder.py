"""A small convolutional image encoder that keeps every pixel where letters are.

The convolutional networks of transformers begin with strides (ResNet 4, RegNet 2), and in a
small picture, where a letter is five pixels high, little of it is left. This one folds each
block of `fold` x `fold` pixels into channels, which loses nothing, and convolves from there; its
stages are separated by max-pooling. Folding by 2 makes it 3.6 times as fast as convolutions
at full resolution, whose time goes into memory traffic (benchmarks/conv_encoder.py).

It is registered with transformers as model type `diptych_conv`, so a recipe names it like any
other vision model.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithNoAttention

from diptych.model.positions import grid_positions


class ConvEncoderConfig(PreTrainedConfig):
    """Widths and depths of the stages.

    Attributes:
        fold: side of the block of pixels that becomes channels; it divides height and width.
        hidden_sizes: channels of each stage.
        depths: 3x3 convolutions of each stage.
        attention_layers: transformer layers over all positions behind the last stage, for what no
            neighbourhood shows: which bar is the largest, which mark a name belongs to.
        num_attention_heads: of those layers.
        norm: `batch`, or `group`, which looks at one picture alone: what is learned does not depend
            on how many are computed at once.
    """

    model_type = "diptych_conv"
    fold: int = 2
    hidden_sizes: tuple[int, ...] | list[int] = (48, 96, 160, 192)
    depths: tuple[int, ...] | list[int] = (1, 1, 1, 1)
    attention_layers: int = 0
    num_attention_heads: int = 6
    norm: str = "batch"
    num_channels: int = 3
    initializer_range: float = 0.02


class ConvEncoderModel(PreTrainedModel):
    """Stages of 3x3 convolution, normalisation and ReLU; each but the last ends in 2x2 max-pooling.

    The pooling stands right behind the last convolution of a stage: normalisation and ReLU then
    touch a quarter of the values, and memory traffic is most of what such a network costs.

    Shapes: pixel_values [B, 3, H, W] -> last_hidden_state [B, C, H / f, W / f] with
    f = fold * 2^(stages - 1); `hidden_states` holds the output of every stage.
    Source: VGG (arXiv:1409.1556) with batch normalisation (arXiv:1502.03167); folding as in
    Shi et al. (arXiv:1609.05158), backwards.
    """

    config_class = ConvEncoderConfig
    main_input_name = "pixel_values"

    def __init__(self, config: ConvEncoderConfig):
        super().__init__(config)
        self.fold = nn.PixelUnshuffle(config.fold)
        sizes = [config.num_channels * config.fold**2, *config.hidden_sizes]
        last = len(config.hidden_sizes) - 1
        self.stages = nn.ModuleList(
            _Stage(sizes[n], sizes[n + 1], depth, pooled=n < last, norm=config.norm)
            for n, depth in enumerate(config.depths)
        )
        self.context = None
        if config.attention_layers:
            self.context = _Context(sizes[-1], config.num_attention_heads, config.attention_layers)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
            module.reset_running_stats()
        elif isinstance(module, nn.Linear):
            if isinstance(module, _Added):
                nn.init.zeros_(module.weight)
            else:
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm | nn.GroupNorm):
            module.reset_parameters()

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool = False, **_: Any
    ) -> BaseModelOutputWithNoAttention:
        states: Tensor = self.fold(pixel_values)
        if pixel_values.is_contiguous(memory_format=torch.channels_last):
            states = states.contiguous(memory_format=torch.channels_last)
        every: tuple[Any, ...] = ()
        for stage in self.stages:
            states = stage(states)
            every += (states,)
        if self.context is not None:
            states = self.context(states)
            every = (*every[:-1], states)
        return BaseModelOutputWithNoAttention(
            last_hidden_state=states,  # type: ignore[arg-type]
            hidden_states=every if output_hidden_states else None,
        )


class _Context(nn.Module):
    """Transformer layers over the positions of a grid: [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, dim: int, heads: int, layers: int):
        super().__init__()
        self.layers = nn.ModuleList(_Attention(dim, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, states: Tensor) -> Tensor:
        rows, columns = states.shape[2:]
        tokens = states.flatten(2).transpose(1, 2)
        places = grid_positions((rows, columns), tokens.shape[2], tokens.device, base=100.0)
        tokens = tokens + places.to(tokens)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.norm(tokens).transpose(1, 2).unflatten(2, (rows, columns))


class _Added(nn.Linear):
    """Begins by adding nothing to the residual stream, so that convolutions learn first."""


class _Attention(nn.Module):
    """Attention and a perceptron of twice the width, each behind its LayerNorm."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.fused, self.out = nn.Linear(dim, 3 * dim), _Added(dim, dim)
        self.up, self.down = nn.Linear(dim, 2 * dim), _Added(2 * dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        fused = self.fused(self.before(tokens)).unflatten(2, (3, self.heads, -1))
        query, key, value = fused.permute(2, 0, 3, 1, 4)
        # Products as they stand: on CPUs the fused kernel takes twice their time for a small grid.
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)
        seen = (scores.softmax(-1).to(value.dtype) @ value).transpose(1, 2).flatten(2)
        tokens = tokens + self.out(seen)
        return tokens + self.down(F.gelu(self.up(self.between(tokens))))


class _Stage(nn.Sequential):
    def __init__(self, before: int, after: int, depth: int, *, pooled: bool, norm: str):
        layers: list[nn.Module] = []
        for number in range(depth):
            width = before if number == 0 else after
            layers.append(nn.Conv2d(width, after, 3, padding=1, bias=False))
            if pooled and number == depth - 1:
                layers.append(nn.MaxPool2d(2))
            layers += [_norm(norm, after), nn.ReLU()]
        super().__init__(*layers)


def _norm(kind: str, channels: int) -> nn.Module:
    """Raises ValueError for a kind that there is not."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind != "group":
        raise ValueError(f"norm is batch or group, not '{kind}'")
    # Wu and He (arXiv:1803.08494); eight channels or so a group.
    groups = next(g for g in range(max(1, channels // 8), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


def register() -> None:
    """Make transformers' Auto classes know the model type; may be called again."""
    AutoConfig.register(ConvEncoderConfig.model_type, ConvEncoderConfig, exist_ok=True)
    AutoModel.register(ConvEncoderConfig, ConvEncoderModel, exist_ok=True)
