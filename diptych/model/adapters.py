"""LoRA adapters on any part, through peft: add, merge, unmerge."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch
from pydantic import Field
from torch import nn

from diptych.config import Config
from diptych.errors import ConfigError

if TYPE_CHECKING:
    from diptych.model.architecture import Model

M = TypeVar("M", bound="Model")


class LoraConfig(Config):
    """Low-rank adapters on the linear layers of one part."""

    rank: int = Field(default=16, ge=1)
    """Rank r of the update."""
    alpha: float = Field(default=32.0, gt=0)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    targets: tuple[str, ...] = ()
    """Ends of module names, such as q_proj; empty takes every linear layer of the part."""


def add_adapters(model: Model, part: str, lora: LoraConfig) -> None:
    """Put LoRA on the linear layers of a part; the output layer is left alone.

    A part that already has the same adapters keeps them (a later stage goes on with them).

    Raises:
        ConfigError: no layer matches, or the part has other adapters.
    """
    if part in model.config.adapters:
        if model.config.adapters[part] != lora:
            raise ConfigError(
                f"the {part} has adapters of other settings already",
                where=f"learn.{part}.lora",
                fix="use the same LoRA settings in every stage, or merge before",
            )
        return
    import peft

    module = model.part(part)
    names = target_names(module, lora.targets)
    if not names:
        linear = sorted({n.rsplit(".", 1)[-1] for n in target_names(module, ())})
        if not linear:
            raise ConfigError(
                f"the {part} has no linear layers, and LoRA changes no others",
                where=f"learn.{part}.how",
                fix="let it learn in full, or rest",
            )
        raise ConfigError(
            f"no linear layer of the {part} is called {' or '.join(lora.targets)}",
            where=f"learn.{part}.lora.targets",
            fix=f"names in this part: {', '.join(linear)}",
        )
    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=names,
        bias="none",
    )
    peft.inject_adapter_in_model(settings, module, adapter_name="default")
    for name, parameter in module.named_parameters():
        if "lora_" in name:
            # Small and learning: kept in full precision whatever the base weights are.
            parameter.data = parameter.data.float()
    adapters = {**model.config.adapters, part: lora}
    model.config = model.config.model_copy(update={"adapters": adapters})


def target_names(module: nn.Module, ends: tuple[str, ...]) -> list[str]:
    """Full names of the linear layers whose last name is one of `ends` (all when empty)."""
    output = None
    inner = getattr(module, "module", None)
    if inner is not None and hasattr(inner, "get_output_embeddings"):
        output = inner.get_output_embeddings()
    return [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
        and layer is not output
        and (not ends or name.rsplit(".", 1)[-1] in ends)
    ]


@torch.no_grad()
def merge_adapters(model: M) -> M:
    """Fold every adapter into its base weight and remove it. Changes `model` in place.

    Equal to the unmerged model up to rounding: tests/equivalence/test_lora.py.
    """
    from peft.tuners.lora import LoraLayer

    for part in list(model.config.adapters):
        root = model.part(part)
        for name, layer in list(root.named_modules()):
            if isinstance(layer, LoraLayer):
                layer.merge(safe_merge=True)
                parent, _, leaf = name.rpartition(".")
                setattr(root.get_submodule(parent), leaf, layer.get_base_layer())
        for module in root.modules():
            if hasattr(module, "peft_config"):  # or new adapters would be taken for second ones
                del module.peft_config
    model.config = model.config.model_copy(update={"adapters": {}})
    return model


@torch.no_grad()
def fold(model: Model, *, folded: bool) -> None:
    """Fold adapters into the base weights for fast inference, or take them out again."""
    from peft.tuners.lora import LoraLayer

    for part in model.config.adapters:
        for layer in model.part(part).modules():
            if isinstance(layer, LoraLayer):
                if folded and not layer.merged:
                    layer.merge()
                elif not folded and layer.merged:
                    layer.unmerge()
