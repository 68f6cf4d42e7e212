"""Where pretrained weights come from: a local folder, a hub or its mirror, or a package.

`locate(name)` gives a local folder for any name a recipe uses:

1. a folder on this machine;
2. `package:NAME`, a package of the Python package index (`model.packages`);
3. a repository of the Hugging Face hub or the mirror named by `HF_ENDPOINT`, at `revision`: from
   the hub's cache where it is whole, else fetched (`model.hub`). Where no hub answers, a package
   with the very same bytes stands in for a few.

Weights that are pickles are converted once into safetensors (`model.pickles`). What a name led to
is told by `origin`, for a run's environment and the model card.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator
from safetensors import SafetensorError

from diptych.config import Config
from diptych.errors import CheckpointError, ConfigError, WeightsNotFound, first_line
from diptych.model import hub, packages, pickles
from diptych.staging import file_hash

ORIGINS = "origins.json"
"""In a model folder: which pretrained weights it began with."""


class FromHub(Config):
    """Settings of a part that may start from weights of a hub."""

    weights: str | None = None
    """Local folder or hub name of pretrained weights; null builds a new one."""
    revision: str | None = None
    """Branch, tag or commit of the hub's repository that `weights` names, for its tokenizer too
    where that lies beside them; null is the main branch."""

    @model_validator(mode="after")
    def _belongs_to_weights(self) -> Self:
        if self.revision is not None and self.weights is None:
            raise ValueError("there is a revision but no weights; give both or none")
        return self


@contextmanager
def reading(folder: Path, where: str) -> Iterator[None]:
    """Turns what transformers raises over an unusable folder into a named error.

    Raises:
        CheckpointError: the files are missing, damaged, or need code of their own to be read.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"the weights in {folder.name} cannot be used: {first_line(error)}",
            where=f"{where}: {folder}",
            fix="give a folder or hub name with config.json and safetensors weights",
        ) from error


def load_pretrained(
    kind: Any, folder: Path, where: str, dtype: Any, *, heads: bool = False, **settings: Any
) -> Any:
    """`kind.from_pretrained` from safetensors only, without code of the folder's own, complete.

    Weights that transformers would fill with random numbers are an error, except (unless `heads`)
    those of heads and poolers, whose output is not used.

    Raises:
        CheckpointError: unusable, or a weight is missing or has another shape.
    """
    with reading(folder, where), _read_not_mapped():
        module, about = kind.from_pretrained(
            folder,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=dtype,
            output_loading_info=True,
            **settings,
        )
    unused = set() if heads else {"pooler", "head", "classifier"}
    missing = [n for n in about["missing_keys"] if not unused & set(n.split("."))]
    wrong = [
        *missing,
        *(str(k[0] if isinstance(k, tuple) else k) for k in about["mismatched_keys"]),
    ]
    if wrong:
        raise CheckpointError(
            f"{len(wrong)} weights of the {type(module).__name__} are not in the folder, for "
            f"example {sorted(wrong)[0]}",
            where=f"{where}: {folder}",
        )
    return module


@contextmanager
def _read_not_mapped() -> Iterator[None]:
    """Let transformers read tensors one by one instead of mapping whole files.

    Of a mapped file every page that was read stays in the process's memory beside what was made
    of it, and weights that were not copied change with the file. It offers no setting for that
    (transformers 5.23 reads so on Windows alone).
    """
    from transformers import modeling_utils

    theirs: Any = modeling_utils
    mapped = theirs.safe_open
    theirs.safe_open = lambda *file, **settings: mapped(*file, **{**settings, "backend": "pread"})
    try:
        yield
    finally:
        theirs.safe_open = mapped


def cast(module: Any, dtype: Any) -> Any:
    """Weights to a precision, in place; computed buffers stay as they are.

    `module.to(dtype)` would round the frequencies of rotary positions, too, and the model would
    read other positions than it was trained with.
    """
    kept = {n for n, _ in module.named_buffers()} - set(module.state_dict())
    buffers = {n: b for n, b in module.named_buffers() if n in kept}
    module.to(dtype)
    for name, buffer in buffers.items():
        parent, _, leaf = name.rpartition(".")
        module.get_submodule(parent)._buffers[leaf] = buffer
    return module


def cache_folder() -> Path:
    """Root of everything that Diptych keeps between runs."""
    return Path(os.environ.get("DIPTYCH_CACHE") or Path.home() / ".cache" / "diptych")


def of_a_model(source: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """(model folder, its config) when `source` is a model or run that Diptych wrote, else None."""
    folder = Path(source).expanduser()
    for place in (folder / "model", folder):
        file = place / "config.json"
        if file.is_file():
            try:
                values = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                return None  # whoever reads it says so
            ours = isinstance(values, dict) and isinstance(values.get("vision_encoder"), dict)
            return (place, values) if ours else None
    return None


def of_another_model(
    name: str, revision: str | None, part: str, where: str
) -> tuple[str, dict[str, Any] | None, dict[str, Any]]:
    """A part of a model that Diptych wrote: kind of the model, the part's config, its tensors.

    The config is None, and there are no tensors, where the model has no such part.

    Args:
        where: the setting that names it, for errors.

    Raises:
        WeightsNotFound: there is nothing of that name.
        CheckpointError: it is no model of Diptych's, or its weights cannot be read.
    """
    from diptych.model.tensors import read  # with PyTorch, which a plan does not need

    own = of_a_model(name) or of_a_model(locate(name, revision=revision))
    if own is None:
        raise CheckpointError(
            "the folder is no Diptych model",
            where=f"{where}: {name}",
            fix="name a model or run folder",
        )
    folder, values = own
    kind = str(values.get("name", "vlm"))
    if not isinstance(values.get(part), dict):
        return kind, None, {}
    return kind, values[part], read(folder / "model.safetensors", f"{part}.")


def locate(
    name: str,
    *,
    revision: str | None = None,
    as_pickles: bool = False,
    described: bool = False,
) -> Path:
    """A local folder with the weights called `name`.

    Args:
        revision: branch, tag or commit of a hub's repository; None is its main branch.
        as_pickles: pickles are left as they are; their reader opens them safely.
        described: configs and tokenizer are enough; from a hub nothing else is fetched.

    Raises:
        WeightsNotFound: not local and not to be had, or only a part of it; says what was tried.
        WeightsCorrupt: what was downloaded has another hash than it should have.
        UnsafeFile: a pickle among the weights asks for more than tensors.
        CheckpointError: weights that cannot be read, or shards that an index names are missing.
        ConfigError: a revision of something that has none.
    """
    place = Path(name).expanduser()
    package = packages.find(name)
    if revision is not None and (place.is_dir() or name.startswith(packages.PREFIX)):
        raise ConfigError(
            f"'{name}' is no repository of a hub and has no revisions",
            where="revision",
            fix="leave the revision out",
        )
    if place.is_dir():
        return place if described or as_pickles else _whole(place, name)
    if name.startswith(packages.PREFIX):
        if package is None:
            raise WeightsNotFound(
                f"no package with weights is called '{name}'",
                fix=f"known: {', '.join(p.name for p in packages.PACKAGES)}",
            )
        return packages.folder(package, cache_folder() / "weights", offline=hub.offline())
    tried = []
    if "/" in name and not name.startswith((".", "/", "~")):
        try:
            folder = hub.snapshot(
                name, revision, cache_folder() / "hub",
                described=described, may_give_up=package is not None,
            )  # fmt: skip
        except (OSError, ValueError, RuntimeError) as error:
            tried.append(f"hub: {first_line(error)}")
        else:
            return folder if described or as_pickles else _whole(folder, name)
    if package is not None and revision is None:
        return packages.folder(package, cache_folder() / "weights", offline=hub.offline())
    beside = Path(name).parent
    if beside.is_dir() and str(beside) != ".":
        near = sorted(p.name for p in beside.iterdir() if p.is_dir())
        raise WeightsNotFound(
            f"there is no folder '{name}' here",
            where=str(beside),
            fix=f"it has: {', '.join(near[:8]) or 'no folders'}",
        )
    carrier = packages.carrier(name)
    kin = "" if carrier is None or carrier.exact else (
        f"; {carrier.name} is that model as {carrier.quantisation}: other weights, by that name"
    )  # fmt: skip
    at = f" at the revision '{revision}'" if revision else ""
    raise WeightsNotFound(
        f"there are no weights '{name}'{at}" + (f" ({'; '.join(tried)})" if tried else ""),
        fix="give a local folder, set HF_ENDPOINT to a mirror that you can reach, or choose one "
        f"that comes as a package: {', '.join(p.name for p in packages.PACKAGES)}{kin}",
    )


def _whole(folder: Path, name: str) -> Path:
    """A folder whose weights can be read as safetensors: itself, or what its pickles became.

    Raises:
        CheckpointError: an index names shards that are not there.
    """
    if of_a_model(folder) is not None:
        return folder
    lacks = hub.missing(folder) if hub.weight_files(folder) or _has_index(folder) else []
    if lacks:
        raise CheckpointError(
            f"{lacks[0]}"
            + (f" and {len(lacks) - 1} more shards are" if len(lacks) > 1 else " is")
            + " missing beside the other weights",
            where=str(folder),
            fix="copy or download the folder again",
        )
    return pickles.as_safetensors(folder, name, cache_folder() / "converted")


def _has_index(folder: Path) -> bool:
    return any(folder.glob("*.index.json"))


def origins_of(folder: Path) -> dict[str, Any]:
    """Which pretrained weights the model of a folder began with, by part."""
    try:
        known = json.loads((folder / ORIGINS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def origin(name: str, revision: str | None = None) -> dict[str, Any]:
    """What the weights called `name` are, once they have been located: plain data.

    Returns:
        `weights` (the name; of a folder no more than its last one) and `source`; of a hub
        `revision` and `commit`; of a package its version, hash and quantisation; of pickles
        the SHA-256 of each; of a Diptych model the SHA-256 of its weights, and what those began
        with.
    """
    place = Path(name).expanduser()
    if place.is_file():
        return {"weights": place.name, "source": "file", "sha256": file_hash(place)}
    if place.is_dir():
        about: dict[str, Any] = {"weights": place.resolve().name, "source": "folder"}
        if (own := of_a_model(place)) is not None:
            run = own[0].resolve()
            about["weights"] = run.parent.name if run.name == "model" else run.name
            about["source"] = "diptych"
            about |= _read(own[0] / "hashes.json", "model.safetensors", "sha256")
            about |= {"began_with": origins_of(own[0])}
    else:
        about = {"weights": name}
        package = packages.find(name)
        folder = locate(name, revision=revision, described=True)
        if (commit := hub.commit_of(folder)) is not None:
            about |= {"source": "hub", "revision": revision, "commit": commit}
        elif package is not None:
            return about | package.origin()
    folder = locate(name, revision=revision)
    return about | _read(folder / pickles.RECORD, "pickles", "pickles")


def _read(file: Path, key: str, name: str) -> dict[str, Any]:
    try:
        return {name: json.loads(file.read_text(encoding="utf-8"))[key]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
