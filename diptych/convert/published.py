"""A published model as a starting point by its name: converted once, kept in Diptych's cache.

`model: {weights: Salesforce/blip2-opt-2.7b}` of a recipe, and every command that takes a model,
come here. What it is composed of is read from its configs; its weights are fetched when it is
opened.
"""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import psutil
import torch
from filelock import FileLock

from diptych.convert import layout as layouts
from diptych.errors import ConfigError, ExportMismatch
from diptych.model import weights
from diptych.model.folder import save_model
from diptych.model.published import conversion, layout_of
from diptych.staging import HASHES

log = logging.getLogger(__name__)
RECORD = "published.json"


def described(name: str, revision: str | None = None) -> Any:
    """What a published model is composed of, from its configs alone; its tokenizer is `name`.

    Raises:
        WeightsNotFound: there is nothing of that name.
        CheckpointError, ConfigError: a config that Diptych cannot follow.
        ConfigError: no layout reads it (names those that there are).
    """
    folder = weights.locate(name, revision=revision, described=True)
    layout = layout_of(folder)
    if layout is None:
        raise _unreadable(name, folder)
    config = layouts.find(layout).described(folder)
    text = config.text_config.model_copy(update={"tokenizer": name})
    return config.model_copy(update={config.text_part: text})


def ready(name: str | Path, revision: str | None = None) -> str:
    """The name of a model that `load_model` opens: `name`, or the folder of its conversion.

    A published model is converted if it has not been. Killed meanwhile, nothing is left; several
    processes wait for the first.

    Raises:
        ExportMismatch: Diptych computes something else from these weights.
        WeightsNotFound, CheckpointError, UnsafeFile: it cannot be had, or not be read.
    """
    place = Path(name).expanduser()
    if weights.of_a_model(place) is not None or (place.exists() and not place.is_dir()):
        return str(name)
    if not place.is_dir() and str(name).startswith((".", "/", "~")):
        return str(name)  # whoever opens it says that it is not there
    found = conversion(str(name), revision)
    if found is None:
        return str(name)
    layout, folder = found
    if not (folder / HASHES).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / HASHES).is_file():
                _convert(str(name), revision, layout, folder)
    return str(folder)


def _convert(name: str, revision: str | None, layout: str, folder: Path) -> None:
    source = weights.locate(name, revision=revision)
    log.info("%s is read as %s and kept in %s", name, layout, folder)
    rules = layouts.find(layout)
    model = rules.load(source).eval()
    about: dict[str, Any] = {"layout": layout, "compared": _fits_thrice(model)}
    if about["compared"]:
        own = model if _is_float32(model) else copy.deepcopy(model).float()
        report = rules.compare(own, source)
        if report.problems:
            raise ExportMismatch(
                f"the model read does not compute what {report.class_name} computes: "
                f"{'; '.join(report.problems)}",
                where=name,
                fix="nothing was kept; the model uses something that Diptych does not follow",
            )
        about |= {"class": report.class_name, "difference": report.max_logit_difference}
        del own
    else:
        log.warning(
            "%s is too large to be held against the ecosystem's class on this machine; its weights "
            "are taken over unchecked", name,
        )  # fmt: skip
    model.origins = {"model": {**weights.origin(name, revision), "layout": layout}}
    save_model(model, folder, {RECORD: json.dumps(about, indent=2) + "\n"})


def _is_float32(model: Any) -> bool:
    return all(p.dtype == torch.float32 for p in model.parameters())


def _fits_thrice(model: Any) -> bool:
    """Whether the class, and a copy in float32, fit into memory beside the model."""
    size = 4 * sum(p.numel() for p in model.parameters())
    return 2.5 * size < psutil.virtual_memory().available


def _unreadable(name: str, folder: Path) -> ConfigError:
    kind = None
    if (folder / "config.json").is_file():
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    return ConfigError(
        f"'{name}' is no whole model that Diptych reads (model_type {kind!r})",
        where="model.weights",
        fix="CLIP, SigLIP, BLIP, BLIP-2, LLaVA, LLaVA-NeXT and InternVL are read whole; of others "
        "name the parts: "
        "model.vision_encoder.weights and model.language_model.weights",
    )
