"""Two choices that training on a CPU makes: which attention kernel, and whether freed memory stays.

- `attention`: milliseconds of attention, forwards and backwards in bfloat16, with the fused kernel
  and with plain matrix products, over row lengths (`diptych/train/attention.py` chooses by length);
- `freed_memory`: milliseconds of an output layer over a large vocabulary, both ways, with the
  C library's usual ways and with freed blocks kept (`diptych/machine.py`), each in its own process.

    python benchmarks/cpu_steps.py --json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

ROWS = ((192, 12, 28, 32), (32, 9, 24, 64), (128, 4, 65, 64), (32, 8, 128, 64), (16, 8, 192, 64),
        (16, 8, 256, 64), (8, 9, 512, 64))  # fmt: skip
"""Rows, heads, tokens, width of a head."""
BACKENDS = {"fused": SDPBackend.FLASH_ATTENTION, "plain": SDPBackend.MATH}


def milliseconds(step: Callable[[], None], repeats: int) -> float:
    """Median time of a step after two to warm up."""
    step()
    step()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def attention(repeats: int) -> list[dict[str, Any]]:
    """Both kernels over row lengths, in turns."""
    found = []
    for rows, heads, tokens, width in ROWS:
        q, k, v = (
            torch.randn(rows, heads, tokens, width, dtype=torch.bfloat16, requires_grad=True)
            for _ in range(3)
        )
        times = {}
        for name, backend in BACKENDS.items():

            def step(
                backend: SDPBackend = backend,
                inputs: tuple[torch.Tensor, ...] = (q, k, v),
            ) -> None:
                with sdpa_kernel(backend):
                    F.scaled_dot_product_attention(*inputs).sum().backward()

            times[name] = milliseconds(step, repeats)
        found.append(
            {"rows": rows, "heads": heads, "tokens": tokens, "head_dim": width, **times,
             "ratio": times["fused"] / times["plain"]}
        )  # fmt: skip
    return found


def output_layer(keep: bool, repeats: int) -> dict[str, float]:
    """Run in a process of its own: the C library is set once."""
    from diptych.machine import keep_freed_memory, memory_bytes

    if keep and not keep_freed_memory():
        sys.exit("this C library cannot keep freed memory")
    layer = torch.nn.Linear(384, 30_522)
    states = torch.randn(768, 384)
    targets = torch.randint(0, 30_522, (768,))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            logits = layer(states)
        F.cross_entropy(logits.float(), targets, label_smoothing=0.1).backward()
        layer.zero_grad()

    return {"milliseconds": milliseconds(step, repeats), "peak_memory_bytes": memory_bytes()}


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", choices=("keep", "usual"), help=argparse.SUPPRESS)
    s = parser.parse_args()
    if s.child:
        print(json.dumps(output_layer(s.child == "keep", s.repeats)))
        return
    memory = {}
    for name in ("usual", "keep"):
        command = [sys.executable, str(Path(__file__).resolve()), "--child", name]
        command += ["--repeats", str(s.repeats)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        memory[name] = json.loads(done.stdout)
    summary = {
        "benchmark": "cpu_steps",
        "environment": {
            "python": platform.python_version(), "torch": torch.__version__,
            "num_threads": torch.get_num_threads(), "num_cores": os.cpu_count(),
        },
        "settings": {"repeats": s.repeats, "precision": "bf16"},
        "attention": attention(s.repeats),
        "freed_memory": memory,
        "ratio": {
            "freed_memory": memory["usual"]["milliseconds"] / memory["keep"]["milliseconds"]
        },
    }  # fmt: skip
    if s.json:
        print(json.dumps(summary, indent=2))
        return
    for row in summary["attention"]:
        print(
            f"{row['tokens']:4} tokens: fused {row['fused']:6.1f} ms, plain {row['plain']:6.1f} ms"
        )
    print(
        f"output layer: usual {memory['usual']['milliseconds']:.0f} ms, kept "
        f"{memory['keep']['milliseconds']:.0f} ms"
    )


if __name__ == "__main__":
    main()
