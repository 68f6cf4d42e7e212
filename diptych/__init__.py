"""Diptych: compose, train, measure and embed with vision-language models of your own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from diptych.embed.store import FeatureStore
    from diptych.model.architectures.vlm import Vlm

__version__ = "0.1.0"
__all__ = ["FeatureStore", "__version__", "load"]


def load(name: str | Path) -> Vlm:
    """A saved model, ready to ask: `diptych.load("runs/mine/model").chat("a.png").ask("?")`.

    Args:
        name: a model folder, a run folder, or a hub name; a published CLIP, SigLIP, BLIP, BLIP-2 or
            LLaVA is converted once and kept in the cache.
    """
    from diptych.convert.published import ready
    from diptych.model.folder import load_model

    return load_model(ready(name))


def __getattr__(name: str) -> Any:
    if name == "FeatureStore":  # read on first use: few need it
        from diptych.embed.store import FeatureStore

        return FeatureStore
    raise AttributeError(f"diptych has no attribute {name!r}; public names: {', '.join(__all__)}")
