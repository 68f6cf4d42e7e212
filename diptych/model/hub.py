"""The Hugging Face hub or its mirror, and what its cache on this machine holds.

The cache is shared with other libraries, which fetch what they need: a config without weights, one
shard of three. So a snapshot is whole only when all files are there that the hub listed for it
(noted in Diptych's own cache), or, without a hub to ask, when its own index says so. What is not
whole is completed, or refused by name; files that are there are not fetched again.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from diptych.errors import CheckpointError, WeightsNotFound, first_line
from diptych.staging import write_json

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")

_WEIGHTS = (
    r"model\.safetensors",
    r"model-\d+-of-\d+\.safetensors",
    r"pytorch_model\.bin",
    r"pytorch_model-\d+-of-\d+\.bin",
    r".*\.safetensors",
    r".*\.gguf",
    r".*\.(bin|pt|pth|pkl|pickle|ckpt)",
)
"""Kinds of weight files in the order in which they are chosen; those of one kind belong together.
A folder has the same weights several times, for several libraries."""
_NO_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|rng_state.*|scaler)\.(bin|pt|pth)")
_INDEX = {".safetensors": "model.safetensors.index.json", ".bin": "pytorch_model.bin.index.json"}


def describes(file: str) -> bool:
    """Whether a file of a repository is its config, its tokenizer or the like."""
    if "/" in file and not file.startswith("additional_chat_templates/"):
        return False
    return file.endswith((".json", ".txt", ".model", ".jinja"))


def chosen(files: Iterable[str]) -> list[str]:
    """Those of a repository's files that hold its weights, one kind of them."""
    top = sorted(f for f in files if "/" not in f and not _NO_WEIGHTS.fullmatch(f))
    for kind in _WEIGHTS:
        if found := [f for f in top if re.fullmatch(kind, f)]:
            return found
    return []


def weight_files(folder: Path) -> list[str]:
    """The files of a folder that hold its weights."""
    return chosen(p.name for p in folder.iterdir() if p.is_file())


def are_pickles(files: Iterable[str]) -> bool:
    """Whether weights lie in pickles."""
    return any(f.endswith(PICKLES) for f in files)


def missing(folder: Path) -> list[str]:
    """Weight files that a folder should have, by its index or their numbers, and has not."""
    there = {p.name for p in folder.iterdir() if p.is_file()}  # a link that leads nowhere is none
    found = chosen(there)
    if found and found[0] in ("model.safetensors", "pytorch_model.bin"):
        return []
    listed: set[str] = set()
    for ending, index in _INDEX.items():
        if index in there and (not found or found[0].endswith(ending)):
            listed = _listed(folder / index)
            break
    for file in found:
        if (numbered := re.fullmatch(r"(.*-)\d+-of-(\d+)(\.\w+)", file)) is not None:
            first, count, last = numbered.groups()
            width = len(count)
            listed |= {f"{first}{n:0{width}d}-of-{count}{last}" for n in range(1, int(count) + 1)}
    if not found and not listed:
        return ["model.safetensors"]
    return sorted(listed - there)


def _listed(index: Path) -> set[str]:
    """The shards that an index names.

    Raises:
        CheckpointError: it is no index, or names files elsewhere.
    """
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        elsewhere = [s for s in shards if Path(s).name != s]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError("the index of the shards cannot be read", where=str(index)) from None
    if elsewhere:
        raise CheckpointError(f"the index names a file elsewhere: {elsewhere[0]}", where=str(index))
    return shards


# -- snapshots ------------------------------------------------------------------------------


def snapshot(
    name: str, revision: str | None, notes: Path, *, described: bool, may_give_up: bool
) -> Path:
    """The hub's snapshot of a repository, whole: from its cache, or fetched.

    Args:
        revision: branch, tag or commit; None is the main branch.
        notes: folder for what the hub listed.
        described: config and tokenizer are enough; no weights are fetched.
        may_give_up: there is another source, so a hub that does not answer is not asked long.

    Raises:
        WeightsNotFound: only a part of it is here, and the rest is not to be had; names files.
        OSError, ValueError, RuntimeError: the hub cannot be asked, or has no such repository.
    """
    kept = _kept(name, revision)
    if kept is None and offline():
        raise OSError("offline mode is on, and the hub's cache has nothing of it")
    if kept is not None and _is_noted(kept, notes, described):
        return kept
    why = "offline mode is on"
    if not offline():
        try:
            if (may_give_up or kept is not None) and not _answers():
                raise OSError("the hub is not reachable")
            return _fetch(name, revision, notes, described)
        except (OSError, ValueError, RuntimeError) as error:
            if kept is None:
                raise
            why = first_line(error)
    assert kept is not None
    lacks = [] if described else missing(kept)
    if lacks:
        more = f" and {len(lacks) - 1} more files are" if len(lacks) > 1 else " is"
        raise WeightsNotFound(
            f"only a part of '{name}' is in the hub's cache: {lacks[0]}{more} missing, and {why}",
            where=str(kept),
            fix="run again where the hub or a mirror (HF_ENDPOINT) is reachable, without "
            "DIPTYCH_OFFLINE and HF_HUB_OFFLINE; what is here already is not fetched again",
        )
    return kept


def offline() -> bool:
    """Whether nothing may be fetched."""
    return "1" in (os.environ.get("HF_HUB_OFFLINE"), os.environ.get("DIPTYCH_OFFLINE"))


def commit_of(folder: Path) -> str | None:
    """The commit of a snapshot in the hub's cache; None for other folders."""
    return folder.name if folder.parent.name == "snapshots" else None


def repository_of(folder: Path) -> str:
    """The repository of a snapshot in the hub's cache."""
    return folder.parent.parent.name.removeprefix("models--").replace("--", "/")


def _kept(name: str, revision: str | None) -> Path | None:
    """The snapshot that the hub's cache has, whatever is in it.

    The hub's library finds one only when all files of the repository are there, also those that
    nobody asked for (huggingface_hub 2.4).
    """
    from huggingface_hub import constants

    repo = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    branch = repo / "refs" / (revision or "main")
    try:
        commit = branch.read_text(encoding="utf-8").strip()
    except OSError:
        commit = revision or ""
    folder = repo / "snapshots" / commit
    return folder if commit and folder.is_dir() else None


@contextmanager
def _reachable() -> Iterator[None]:
    """Says of a connection that fails that the hub is not reachable.

    The hub's library speaks through httpx in some versions and through httpx2 in others, whose
    errors are not each other's and no OSError (findings/hub-errors-are-of-httpx2.sh).

    Raises:
        OSError: there was no answer.
    """
    try:
        yield
    except Exception as error:
        if not any(kind.__name__ == "TransportError" for kind in type(error).__mro__):
            raise
        raise OSError(f"the hub is not reachable: {first_line(error)}") from error


def _fetch(name: str, revision: str | None, notes: Path, described: bool) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    with _reachable():
        about = HfApi().model_info(name, revision=revision, files_metadata=True)
    sizes = {s.rfilename: s.size for s in about.siblings or []}
    describing = [f for f in sizes if describes(f)]
    weights = chosen(sizes)
    wanted = describing if described else [*describing, *weights]
    if not wanted:
        raise OSError(f"the repository {name} holds no weights")
    # Patterns, so file names must stand for themselves.
    patterns = [glob.escape(f) for f in wanted]
    with _reachable():
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    if folder.name == about.sha:  # else the branch moved meanwhile, and the list is another's
        note = {
            "describing": {f: sizes[f] for f in describing},
            "weights": {f: sizes[f] for f in weights},
        }
        _write_note(_note_of(folder, notes), note)
    return folder


def _note_of(folder: Path, notes: Path) -> Path:
    return notes / folder.parent.parent.name / f"{folder.name}.json"


def _write_note(file: Path, note: dict[str, Any]) -> None:
    write_json(file, note)


def _is_noted(folder: Path, notes: Path, described: bool) -> bool:
    """Whether all is there, in its size, that the hub listed for this snapshot."""
    try:
        note = json.loads(_note_of(folder, notes).read_text())
        wanted = {**note["describing"], **({} if described else note["weights"])}
        if not described and not note["weights"]:
            return False
        return all(size in (None, (folder / file).stat().st_size) for file, size in wanted.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


@lru_cache(maxsize=1)
def _answers() -> bool:
    """A quick look, once a process, so that a network without a hub costs seconds, not retries."""
    import httpx
    from huggingface_hub import constants

    try:
        return httpx.head(constants.ENDPOINT, timeout=4.0).status_code < 500
    except httpx.HTTPError:
        return False
