"""A model folder: atomic, safetensors, loads without the recipe's code.

    config.json               the composition with every Hugging Face config written out
    model.safetensors         all weights
    tokenizer files           as transformers writes them
    preprocessor_config.json  for people and servers; Diptych reads config.json
    origins.json              which pretrained weights it began with, if any
    README.md                 model card
    hashes.json               SHA-256 of every file, written last

A folder is staged beside its target, flushed to disk and renamed, so a killed save leaves
the old folder whole. No pickle is ever written or read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from diptych.config import Config
from diptych.errors import CheckpointError, ConfigError, UnsafeFile, WeightsNotFound
from diptych.model import published
from diptych.model.architecture import ArchitectureConfig, Model, config_from_dict
from diptych.model.tensors import fill, save_tensors, unique_tensors, without_weights
from diptych.model.vision_encoder import config_from_dict as hf_config
from diptych.model.weights import ORIGINS, FromHub, locate, origin, origins_of
from diptych.staging import file_hash, known_hashes, recover, staged_folder

PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}


def build(config: ArchitectureConfig, *, seed: int = 0) -> Any:
    """Compose a model; what learns from scratch is initialised from `seed`.

    Raises:
        ConfigError: `weights` names a model that is composed otherwise.
    """
    if config.weights is not None:
        return begin(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = config.model_copy(update={"adapters": {}}).compose()
    model.origins = _origins(config)
    for part, lora in config.adapters.items():
        model.add_adapters(part, lora)
    return model.eval()


def _origins(config: ArchitectureConfig) -> dict[str, Any]:
    fields = {name: getattr(config, name) for name in type(config).model_fields}
    return {
        name: origin(part.weights, part.revision)
        for name, part in fields.items()
        if isinstance(part, FromHub) and part.weights is not None
    }


def save_model(model: Model, path: Path | str, beside: Mapping[str, str] | None = None) -> Path:
    """Write the model folder `path`, replacing an older one as a whole.

    Args:
        beside: texts of other files for the folder, by name.
    """
    path = Path(path)
    with staged_folder(path) as folder:
        save_tensors(unique_tensors(model), folder / "model.safetensors")
        (folder / "config.json").write_text(model.complete_config().to_json())
        if model.origins:
            (folder / ORIGINS).write_text(json.dumps(model.origins, indent=2) + "\n")
        model.tokenizer.save_pretrained(folder)
        # Of one tile: no processor knows every tiling, which config.json names.
        processor = model.preprocessing.model_copy(update={"tiling": None}).to_hf("clip")
        (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
        (folder / "README.md").write_text(_card(model), encoding="utf-8")
        for name, text in (beside or {}).items():
            (folder / name).write_text(text, encoding="utf-8")
    return path


def load_model(name: Path | str, revision: str | None = None) -> Any:
    """The model of a folder (a run folder's `model/` is found too) or hub name, at a revision.

    Raises:
        WeightsNotFound: no such folder.
        CheckpointError: the folder is incomplete or does not fit its config.
        UnsafeFile: the weights are a pickle.
    """
    folder = model_folder(name, revision)
    config = composition(folder)
    if not (folder / "model.safetensors").is_file():
        refuse_pickles(folder)
        raise CheckpointError("model.safetensors is missing", where=str(folder))
    known = known_hashes(folder).get("model.safetensors")
    if known is not None and file_hash(folder / "model.safetensors") != known:
        raise CheckpointError(
            "model.safetensors has another hash than when it was saved",
            where=str(folder),
            fix="copy the folder again; after a change on purpose, delete its hashes.json",
        )
    with without_weights():
        model = build(config)
    fill(model, folder / "model.safetensors")
    model.origins = origins_of(folder)
    return model.eval()


def refuse_pickles(folder: Path) -> None:
    """For a folder without safetensors.

    Raises:
        UnsafeFile: it has pickles instead.
    """
    pickles = [p.name for p in folder.iterdir() if p.suffix in PICKLES]
    if pickles:
        raise UnsafeFile(
            f"{pickles[0]} is a pickle and could execute code; it was not read",
            where=str(folder),
            fix="save the model as safetensors",
        )


def begin(config: ArchitectureConfig) -> Any:
    """The model of `config.weights`, as further training begins: adapters merged, new ones added.

    Raises:
        ConfigError: it is composed otherwise than `config` says.
    """
    model = load_model(str(config.weights), config.revision)
    model.merge_adapters()
    for name in type(config).model_fields:
        if name in ("weights", "revision", "adapters"):
            continue
        if not _agree(getattr(model.config, name, None), getattr(config, name)):
            raise ConfigError(
                f"the model in '{config.weights}' has another {name}",
                where=f"model.{name}",
                fix="give nothing but `weights` under `model` of a recipe file; the rest is taken "
                "from that folder",
            )
    for part, lora in config.adapters.items():
        model.add_adapters(part, lora)
    return model.eval()


def _agree(own: Any, stated: Any) -> bool:
    """Whether a field of a model's composition is what a recipe states of it.

    A Hugging Face config leaves out defaults and what follows from other settings, so that what is
    stated counts. Ids that its tokenizer gives do not.
    """
    if not (isinstance(own, Config) and isinstance(stated, Config)):
        return bool(own == stated)
    fields, asked = own.to_dict(), stated.to_dict()
    known, wanted = (values.pop("config", None) or {} for values in (fields, asked))
    kind = known.get("model_type", wanted.get("model_type"))
    keys = [k for k in wanted if not k.endswith("_token_id") and k not in _NO_NETWORK]
    if kind is not None:
        wanted = _whole_config({"model_type": kind, **wanted})
        known = _whole_config({"model_type": kind, **known})
    return fields == asked and all(known.get(k) == wanted.get(k) for k in keys)


_NO_NETWORK = ("architectures", "dtype", "transformers_version", "_name_or_path")
"""Keys of a Hugging Face config that say nothing of the network."""


def _whole_config(values: dict[str, Any]) -> dict[str, Any]:
    """A Hugging Face config with its defaults."""
    whole: dict[str, Any] = hf_config(values, "model").to_dict()
    return whole


def model_folder(name: Path | str, revision: str | None = None) -> Path:
    """The folder of a model: itself, a run folder's `model/`, or what a hub has by that name.

    Raises:
        WeightsNotFound: no such folder.
    """
    folder = Path(os.path.expanduser(name))
    for one in (folder, folder / "model"):
        recover(one.absolute())
    if (folder / "model" / "config.json").is_file():
        folder = folder / "model"
    if not folder.is_dir():
        if folder.exists() or str(name).startswith((".", "/", "~")):
            raise WeightsNotFound("there is no such model folder", where=str(name))
        found = published.conversion(str(name), revision)
        folder = locate(str(name), revision=revision) if found is None else found[1]
        if found is not None and not folder.is_dir():
            raise CheckpointError(
                f"'{name}' is a {found[0]} model that has not been converted yet",
                where=str(name),
                fix="open it with `diptych.load` or a command, which convert it",
            )
    return folder


def composition(folder: Path) -> ArchitectureConfig:
    """What a model folder is composed of, its tokenizer where it lies.

    Raises:
        CheckpointError: the folder holds no model of ours.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            "the folder has no config.json", where=str(folder), fix="name a saved model folder"
        )
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"config.json cannot be read: {error}", where=str(folder)) from None
    if not isinstance(values, dict) or "vision_encoder" not in values:
        theirs = published.layout_of(folder) or "hf-llava"
        raise CheckpointError(
            "the folder is no Diptych model",
            where=str(folder),
            fix=f"read a Hugging Face model with: diptych convert MODEL OUT --from {theirs}",
        )
    for value in values.values():
        if isinstance(value, dict) and "tokenizer" in value:
            value["tokenizer"] = str(folder)
    config = config_from_dict(values, where=str(folder / "config.json"))
    fields = (getattr(config, name) for name in type(config).model_fields)
    if config.weights or any(getattr(field, "weights", None) for field in fields):
        raise CheckpointError(
            "the folder's config.json asks for weights from elsewhere", where=str(folder)
        )
    return config


def _card(model: Model) -> str:
    rows = []
    for name, part in model.named_parts():
        inner = getattr(part, "module", part)
        count = sum(p.numel() for p in part.parameters())
        rows.append(f"| {name} | {type(inner).__name__} | {count:,} |")
    table = "\n".join(rows)
    tokens = ""
    if model.tokens_per_image is not None:
        tokens = f"One picture takes {model.tokens_per_image} tokens.\n\n"
    return (
        f"---\nlibrary_name: diptych\npipeline_tag: {model.card_tag}\n{_bases(model.origins)}---\n"
        "# A vision-language model composed with Diptych\n\n"
        f"| part | class | parameters |\n|---|---|---|\n{table}\n\n"
        f"{tokens}{_began(model.origins)}```python\nimport diptych\n\n{model.card_usage}\n```\n"
    )


def _began(origins: Mapping[str, Any]) -> str:
    """What the model card says of the weights that parts began with."""
    lines = []
    for part, about in origins.items():
        facts = ", ".join(
            f"{key} {value}"
            for key, value in about.items()
            if key not in ("weights", "pickles", "began_with") and value is not None
        )
        line = f"- {part}: `{about['weights']}` ({facts})"
        for file, sha256 in about.get("pickles", {}).items():
            line += f"\n  - converted from the pickle `{file}`, sha256 {sha256}"
        lines.append(line)
    return "Parts began with these weights:\n\n" + "\n".join(lines) + "\n\n" if lines else ""


def _bases(origins: Mapping[str, Any]) -> str:
    """The hub's models among them, as its cards name them."""
    names = {a["weights"] if a["source"] == "hub" else a.get("of") for a in origins.values()}
    known = sorted(name for name in names if name)
    return "base_model:\n" + "".join(f"- {name}\n" for name in known) if known else ""
