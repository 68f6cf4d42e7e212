"""In which precision a model computes when it is asked (training has its own, in the stage).

Weights stay as they are stored; matrix products run under autocast. What a model gives back,
vectors, likelihoods and chosen tokens, is float32 or whole numbers all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import nn

from diptych.errors import ConfigError

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
F = TypeVar("F", bound=Callable[..., Any])


def settled(precision: str | None, device: str | torch.device) -> str:
    """fp32, bf16 or fp16: what is asked for, or what suits the device (None and `auto`).

    That is bf16 on a CUDA device that computes in it, else fp32: emulated bfloat16 is no faster.

    Raises:
        ConfigError: there is no such precision.
    """
    precision = precision or "auto"
    if precision not in PRECISIONS:
        raise ConfigError(
            f"there is no precision '{precision}'",
            where="precision",
            fix=f"one of: {', '.join(PRECISIONS)}",
        )
    if precision != "auto":
        return precision
    is_cuda = torch.device(device).type == "cuda"
    native = is_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if native else "fp32"


def computing(model: Any) -> AbstractContextManager[Any]:
    """The autocast of the precision that `model` was opened with; none in fp32.

    An autocast that is on already, such as that of training, is left on.
    """
    dtype = _DTYPES.get(getattr(model, "precision", None) or "")
    return nullcontext() if dtype is None else torch.autocast(model.device.type, dtype=dtype)


def in_its_precision(function: F) -> F:
    """A function whose first argument is a model (or has it as `.model`), under `computing`.

    Not for generators: what is on while they wait would be on for their callers.
    """

    @wraps(function)
    def wrapped(first: Any, *args: Any, **settings: Any) -> Any:
        with computing(first if isinstance(first, nn.Module) else getattr(first, "model", first)):
            return function(first, *args, **settings)

    return wrapped  # type: ignore[return-value]
