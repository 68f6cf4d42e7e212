"""`diptych doctor`: what the machine has, and what is missing for which feature."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from rich.console import Group
from rich.markup import escape
from rich.table import Table

EXTRAS = {
    "core": (["torch", "transformers", "accelerate", "peft", "matplotlib", "gguf"], "everything"),
    "parquet": (["pyarrow"], "Parquet data sets"),
    "s3": (["s3fs"], "data sets on s3://"),
    "http": (["aiohttp"], "data sets on http(s)://"),
    "tensorboard": (["tensorboard"], "TensorBoard curves"),
    "pictures": (["resvg_py"], "the picture corpus (with npm and apt for most of it)"),
    "captions": (["pycocoevalcap", "jieba"], "caption metrics (with Java), Chinese captions"),
    "maps": (["sklearn"], "maps of embeddings in reports"),
    "redis": (["redis"], "vectors into and from Redis"),
    "query": (["duckdb"], "SQL over vectors in Parquet"),
    "lance": (["lancedb"], "vector search in a folder"),
    "sagemaker": (["boto3"], "vectors into SageMaker Feature Store"),
    "ray": (["ray"], "diptych embed over a cluster"),
    "onnx": (["onnx"], "weights that a package carries as ONNX, such as package:rapidocr/..."),
    "wandb": (["wandb"], "Weights & Biases curves"),
    "mlflow": (["mlflow"], "MLflow curves"),
}
"""Extra -> (packages, what it is for)."""


def examine() -> dict[str, Any]:
    """Facts about the machine as plain data."""
    import torch

    from diptych.machine import chosen_device

    memory = psutil.virtual_memory()
    disk = shutil.disk_usage(Path.cwd())
    features = {}
    for extra, (packages, purpose) in EXTRAS.items():
        missing = [p for p in packages if _version(p) is None]
        way = "" if not missing else f"pip install 'diptych[{extra}]'"
        features[extra] = {"for": purpose, "missing": missing, "fix": way}
    gpu = None
    if torch.cuda.is_available():
        gpu = {
            "name": torch.cuda.get_device_name(),
            "memory_bytes": torch.cuda.get_device_properties(0).total_memory,
        }
    return {
        "system": _system(),
        "python": sys.version.split()[0],
        "num_cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_bytes": memory.total,
        "memory_available_bytes": memory.available,
        "disk_free_bytes": disk.free,
        "gpu": gpu,
        "device": chosen_device(None),
        "bf16": _bf16(),
        "torch": torch.__version__,
        "torchvision": _torchvision(),
        "transformers": _version("transformers"),
        "cache": str(_cache()),
        "features": features,
    }


SYSTEMS = {"linux": "Linux", "darwin": "macOS"}
"""Systems that Diptych runs on; tests run on the first."""


def _system() -> str:
    """Name of the operating system, and what to do about one that is not supported.

    Windows lacks what whole files and whole folders are made of: `os.pread`, folders that can be
    flushed, files that are replaced while they are open.
    """
    name = SYSTEMS.get(sys.platform)
    if name is None:
        known = " and ".join(SYSTEMS.values())
        return f"{sys.platform}, not supported: Diptych runs on {known} (on Windows, use WSL)"
    return f"{name} {platform.release()}"


def _bf16() -> str:
    import torch

    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return "GPU" if native else "emulated on the GPU: works, not faster than float32"
    if torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        flags = Path("/proc/cpuinfo")
        if flags.is_file() and "avx512_bf16" in flags.read_text():
            return "CPU (AVX-512 BF16)"
    return "emulated on the CPU: works, not faster than float32"


def _torchvision() -> str:
    """Not needed; one that cannot load breaks transformers and peft, so say so."""
    if _version("torchvision") is None:
        return "not installed (not needed)"
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:
        return f"broken, uninstall it: {error}"
    return str(_version("torchvision"))


def _cache() -> Path:
    from diptych.model.weights import cache_folder

    return cache_folder()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def findings_table(found: dict[str, Any]) -> Group:
    """The facts as tables."""
    machine = Table(title="machine", show_header=False, title_justify="left")
    machine.add_column(style="bold")
    machine.add_column()
    for key, value in found.items():
        if key == "features":
            continue
        shown = f"{value / 1e9:.1f} GB" if key.endswith("_bytes") else value
        if key == "gpu" and value:
            shown = f"{value['name']}, {value['memory_bytes'] / 1e9:.0f} GB"
        machine.add_row(key.removesuffix("_bytes").replace("_", " "), str(shown or "none"))
    features = Table(title="features", title_justify="left")
    for title in ("extra", "for", "state"):
        features.add_column(title)
    for extra, entry in found["features"].items():
        missing = ", ".join(entry["missing"])
        state = "[green]ready[/]"
        if missing:
            state = f"[yellow]missing {missing}[/]: {escape(entry['fix'])}"
        features.add_row(extra, entry["for"], state)
    return Group(machine, features)
