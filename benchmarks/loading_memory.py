"""Peak memory while a model is opened, over the size of its weights.

A vision-language model of random weights (about 600 MB) is written once as a Diptych folder, and
its panels as folders of transformers (safetensors, and pickles as many published checkpoints are).
Each is opened in a process of its own: the highest resident memory (Linux, VmHWM, set back after
the imports and after a model in miniature was opened) less what was resident before, over the
weights' size in memory.

    python benchmarks/loading_memory.py            # a table
    python benchmarks/loading_memory.py --json > benchmarks/results/loading_memory.json
    python benchmarks/loading_memory.py --quick    # does it work?

With `--json` standard output is one JSON object. Needs 3 GB of disk in the temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LIMIT = 1.15
"""Of the weights' size: what opening may take."""
WAYS = {
    "diptych folder": "load_model of a folder that Diptych wrote",
    "pretrained panels": "both panels from safetensors, a new connector",
    "panels in bfloat16": "the same, kept in bfloat16",
    "panels from pickles": "the same from pickles that were converted before",
    "converting pickles": "both panels' pickles become safetensors, once",
}


def sizes(quick: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sizes of the vision encoder and the language model."""
    width, layers = (64, 2) if quick else (768, 12)
    shared = {"num_hidden_layers": layers, "num_attention_heads": width // 32}
    vision = {
        **shared, "hidden_size": width, "intermediate_size": 4 * width, "image_size": 224,
        "patch_size": 16,
    }  # fmt: skip
    text = {
        **shared, "hidden_size": width, "intermediate_size": 2 * width, "vocab_size": 1000,
        "max_position_embeddings": 512,
    }  # fmt: skip
    return vision, text


def write(folder: Path, quick: bool) -> None:
    """The model as a Diptych folder and its panels as folders of transformers."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPVisionConfig,
        CLIPVisionModel,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    vision, text = sizes(quick)
    torch.manual_seed(0)
    words = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    for name, module in (
        ("vision", CLIPVisionModel(CLIPVisionConfig(**vision))),
        ("text", LlamaForCausalLM(LlamaConfig(**text))),
    ):
        module.save_pretrained(folder / name)
        (folder / f"{name}-pickle").mkdir()
        torch.save(module.state_dict(), folder / f"{name}-pickle" / "pytorch_model.bin")
        for place in (folder / name, folder / f"{name}-pickle"):
            module.config.save_pretrained(place)
            if name == "text":
                tokenizer.save_pretrained(place)
    from diptych.model.folder import build, save_model

    save_model(build(panels(folder, "")), folder / "model")


def panels(folder: Path, kind: str, dtype: str = "float32") -> Any:
    """The config of a model with both panels from folders."""
    from diptych.model.architectures.vlm import VlmConfig

    return VlmConfig.from_dict(
        {
            "vision_encoder": {
                "weights": str(folder / f"vision{kind}"),
                "dtype": dtype,
                "image": {"resize": "exact", "size": [224, 224]},
            },
            "connector": {"name": "linear"},
            "language_model": {
                "weights": str(folder / f"text{kind}"),
                "template": "plain",
                "dtype": dtype,
            },
        }
    )


def open_one(folder: Path, way: str) -> Any:
    """Open the model of a folder in one of the ways."""
    from diptych.model.folder import build, load_model
    from diptych.model.weights import locate

    if way == "diptych folder":
        return load_model(folder / "model")
    if way == "converting pickles":
        return [locate(str(folder / f"{name}-pickle")) for name in ("vision", "text")]
    kind = "-pickle" if way == "panels from pickles" else ""
    return build(panels(folder, kind, "bfloat16" if "bfloat16" in way else "float32"))


def measure(folder: Path, small: Path, way: str) -> dict[str, Any]:
    """In a process of its own: memory and seconds of opening."""
    import gc

    open_one(small, way)  # imports, and what libraries keep
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = _memory("VmRSS")
    start = time.monotonic()
    model = open_one(folder, way)
    seconds = time.monotonic() - start
    peak = _memory("VmHWM") - before
    if isinstance(model, list):
        files = [f for place in model for f in place.glob("*.safetensors")]
        size = sum(f.stat().st_size for f in files)
    else:
        size = sum(p.numel() * p.element_size() for p in model.parameters())
    return {
        "weights_bytes": size,
        "peak_bytes": peak,
        "ratio": round(peak / size, 3),
        "seconds": round(seconds, 2),
    }


def _memory(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"this system does not tell {key}")


def main() -> int:
    """Write the models, open each in a process of its own, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="a tiny model; figures mean nothing")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        folder, small, way = given.measure
        print(json.dumps(measure(Path(folder), Path(small), way)))
        return 0
    from diptych.cli.run import environment

    found = {}
    with tempfile.TemporaryDirectory(prefix="loading-memory-") as scratch:
        place = Path(scratch)
        os.environ["DIPTYCH_CACHE"] = str(place / "cache")
        for name, quick in (("small", True), ("large", given.quick)):
            (place / name).mkdir()
            write(place / name, quick)
        order = sorted(WAYS, key=lambda way: way != "converting pickles")  # before their use
        for way in order:
            words = ["--measure", str(place / "large"), str(place / "small"), way]
            done = subprocess.run(
                [sys.executable, __file__, *words], capture_output=True, text=True, check=False
            )
            if done.returncode:
                print(done.stderr, file=sys.stderr)
                return 1
            found[way] = json.loads(done.stdout.splitlines()[-1])
            print(f"{way}: {found[way]}", file=sys.stderr)
    held = all(found[w]["ratio"] <= LIMIT for w in WAYS if w != "converting pickles")
    result = {
        "environment": environment(sys.argv),
        "settings": {"limit": LIMIT, "quick": given.quick},
        "opened": {way: {"how": WAYS[way], **found[way]} for way in WAYS},
        "within_limit": held,
    }
    if given.json:
        print(json.dumps(result, indent=2))
    else:
        for way in WAYS:
            one = found[way]
            sizes_mb = f"{one['peak_bytes'] / 1e6:,.0f} MB for {one['weights_bytes'] / 1e6:,.0f} MB"
            print(f"{way:22} {sizes_mb}: {one['ratio']:.2f} times, {one['seconds']:.1f} s")
    return 0 if held or given.quick else 1


if __name__ == "__main__":
    sys.exit(main())
