"""Fill a transformers model with weights that know their layers only by order.

An ONNX file and a plain list of tensors name their weights after whoever exported them. What they
keep is the order in which the layers run, and that is the same in a transformers model of the same
architecture. So both are walked side by side: the file's tensors, and the model's layers as a
forward pass meets them. A tensor of another shape, one too many or one too few is an error.

A batch norm that the exporter folded into its convolution becomes one that only adds the bias.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diptych.errors import CheckpointError, MissingExtra

_LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.Linear, nn.LayerNorm)


@dataclass(frozen=True)
class Step:
    """What one layer of a file needs: its tensors, as the file's kind of layer has them.

    Attributes:
        kind: `weight` (of a convolution), `product` (of a linear layer, [in, out]), `vector` (a
            bias, or a scale), `norm` (scale, bias, mean and variance of a batch norm).
    """

    kind: str
    tensors: tuple[Tensor, ...]


def of_onnx(file: Path) -> list[Step]:
    """The weights of an ONNX graph in the order in which its operators run.

    Raises:
        MissingExtra: the package `onnx` is not installed.
        CheckpointError: it is no ONNX file.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
        from onnx import numpy_helper
    except ImportError:
        raise MissingExtra(
            "reading an ONNX file needs the package onnx", fix="pip install 'diptych[onnx]'"
        ) from None
    try:
        graph = onnx.load(str(file), load_external_data=False).graph
    except (DecodeError, OSError) as error:
        raise CheckpointError(f"this is no ONNX file: {error}", where=str(file)) from None
    known = {t.name: t for t in graph.initializer}
    for node in graph.node:  # exporters put Identity nodes between a weight and its operator
        if node.op_type == "Identity" and node.input[0] in known:
            known[node.output[0]] = known[node.input[0]]

    def value(name: str) -> Tensor:
        return torch.from_numpy(numpy_helper.to_array(known[name]).copy())

    steps = []
    for node in graph.node:
        named = [name for name in node.input if name in known]
        if node.op_type in ("Conv", "ConvTranspose"):
            steps += [Step("weight", (value(named[0]),))]
            steps += [Step("vector", (value(name).flatten(),)) for name in named[1:]]
        elif node.op_type == "BatchNormalization":
            steps += [Step("norm", tuple(value(name) for name in named))]
        elif node.op_type == "MatMul" and named:
            steps += [Step("product", (value(named[0]),))]
        elif node.op_type in ("Add", "Mul"):
            vectors = [value(name).flatten() for name in named]
            # Constants of an activation are single numbers.
            steps += [Step("vector", (vector,)) for vector in vectors if len(vector) > 1]
    return steps


def of_state(tensors: dict[str, Tensor]) -> list[Step]:
    """The weights of a network of convolutions and batch norms, whose names end as PyTorch's do.

    The names' order must be the order in which the layers run, as a `state_dict` of modules that
    were defined in that order has it.
    """
    ends = ("weight", "bias", "running_mean", "running_var")
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, end = name.rpartition(".")
        layers.setdefault(layer, {})[end] = tensor
    steps = []
    for its in layers.values():
        if "running_mean" in its:
            steps += [Step("norm", tuple(its[end] for end in ends))]
            continue
        kind = "weight" if its["weight"].ndim == 4 else "vector"
        steps += [Step(kind, (its["weight"],))]
        steps += [Step("vector", (its["bias"],))] if "bias" in its else []
    return steps


def fill(model: nn.Module, steps: list[Step], pixels: Tensor, where: str) -> None:
    """Give `model` the weights of `steps`, in place, and set it to inference.

    Args:
        pixels: any input that the model reads, to learn in which order its layers run.
        where: the file, for errors.

    Raises:
        CheckpointError: the file's layers are not the model's.
    """
    rest = _Rest(steps, where)
    with torch.no_grad():
        for name, layer in _as_run(model, pixels):
            _fill_layer(name, layer, rest)
    rest.finish()


def _fill_layer(name: str, layer: Any, rest: _Rest) -> None:
    pairs: list[tuple[Any, Tensor]]
    if isinstance(layer, nn.BatchNorm2d):
        if rest.next_is("norm"):
            scale, bias, mean, variance = rest.take("norm", name)
        else:
            (bias,) = rest.take("vector", name)
            scale, mean = torch.ones_like(bias), torch.zeros_like(bias)
            variance = torch.full_like(bias, 1 - layer.eps)
        pairs = [
            (layer.weight, scale), (layer.bias, bias),
            (layer.running_mean, mean), (layer.running_var, variance),
        ]  # fmt: skip
    elif isinstance(layer, nn.Linear):
        pairs = [(layer.weight, rest.take("product", name)[0].T)]
        pairs += [(layer.bias, rest.take("vector", name)[0])] if layer.bias is not None else []
    else:
        kind = "vector" if isinstance(layer, nn.LayerNorm) else "weight"
        pairs = [(layer.weight, rest.take(kind, name)[0])]
        pairs += [(layer.bias, rest.take("vector", name)[0])] if layer.bias is not None else []
    for target, value in pairs:
        if target.shape != value.shape:
            raise CheckpointError(
                f"layer {name} has the shape {list(target.shape)}, the file's {list(value.shape)}",
                where=rest.where,
            )
        target.copy_(value)


def _as_run(model: nn.Module, pixels: Tensor) -> list[tuple[str, nn.Module]]:
    """The layers that hold weights, by name, in the order in which a forward pass meets them."""
    met: list[tuple[str, nn.Module]] = []
    hooks = [
        layer.register_forward_pre_hook(lambda layer, _, name=name: met.append((name, layer)))
        for name, layer in model.named_modules()
        if isinstance(layer, _LAYERS)
    ]
    try:
        with torch.inference_mode():
            model.eval()(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    return met


class _Rest:
    """The steps that are still to be given out."""

    def __init__(self, steps: list[Step], where: str):
        self.where = where
        self._steps: Iterator[Step] = iter(steps)
        self._next = next(self._steps, None)

    def next_is(self, kind: str) -> bool:
        return self._next is not None and self._next.kind == kind

    def take(self, kind: str, name: str) -> tuple[Tensor, ...]:
        if self._next is None or self._next.kind != kind:
            found = "ends" if self._next is None else f"has a {self._next.kind}"
            raise CheckpointError(
                f"layer {name} needs a {kind}, where the file {found}", where=self.where
            )
        taken, self._next = self._next.tensors, next(self._steps, None)
        return taken

    def finish(self) -> None:
        if self._next is not None:
            raise CheckpointError("the file has more layers than the model", where=self.where)
