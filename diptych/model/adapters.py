"""LoRA adapters on a module, through peft: attach and merge."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn

from diptych.config import Config
from diptych.errors import ConfigError


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


def attach(module: nn.Module, lora: LoraConfig, part: str) -> None:
    """Put LoRA on the linear layers of a module; the output layer is left alone.

    Args:
        part: what recipes call the module, for errors.

    Raises:
        ConfigError: no layer matches.
    """
    import peft

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
def merge(module: nn.Module) -> None:
    """Fold the adapters of a module into its base weights and remove them, in place."""
    from peft.tuners.lora import LoraLayer

    for name, layer in list(module.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge(safe_merge=True)
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, layer.get_base_layer())
    for inner in module.modules():
        if hasattr(inner, "peft_config"):  # or new adapters would be taken for second ones
            del inner.peft_config
