"""Choices that training on a CPU makes: attention, shapes, and whether freed memory stays.

- `attention`: milliseconds of attention, forwards and backwards in bfloat16, with the fused kernel
  and with plain matrix products, over row lengths (`diptych/model/tuning.py` chooses by length);
- `packed_rows`: milliseconds of attention over packed rows, forwards and backwards in bfloat16,
  with the mask that they need: fused, as transformers' eager attention computes it, and as plain
  products (`diptych/model/products.py`);
- `shapes`: milliseconds of a linear layer, both ways, over row counts that are all new and over the
  sizes they are filled up to (`common_size` in `diptych/machine.py`);
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


def packed_rows(repeats: int) -> dict[str, Any]:
    """A step of the quickstart: rows of one chart each, questions that do not see one another."""
    from diptych.model.products import products

    rows, heads, tokens, width = 12, 3, 320, 64
    q, k, v = (
        torch.randn(rows, heads, tokens, width, dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    )
    question = torch.arange(tokens) // 27
    seen = (question[:, None] == question) | (question == 0)
    seen = (seen & torch.ones(tokens, tokens, dtype=torch.bool).tril()).expand(rows, 1, -1, -1)
    added = torch.zeros(seen.shape, dtype=q.dtype).masked_fill(~seen, torch.finfo(q.dtype).min)

    def fused() -> torch.Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=added)

    def eager() -> torch.Tensor:
        scores = torch.matmul(q, k.transpose(2, 3)) * width**-0.5 + added
        return torch.matmul(F.softmax(scores, -1, dtype=torch.float32).to(v.dtype), v)

    def plain() -> torch.Tensor:
        return products(torch.nn.Module(), q, k, v, added)[0]

    ways: dict[str, Callable[[], torch.Tensor]] = {"fused": fused, "eager": eager, "plain": plain}
    times = {
        name: milliseconds(lambda way=way: way().sum().backward(), repeats)  # type: ignore[misc]
        for name, way in ways.items()
    }
    return {"rows": rows, "heads": heads, "tokens": tokens, "head_dim": width, **times,
            "ratio": times["fused"] / times["plain"]}  # fmt: skip


def shapes(repeats: int) -> dict[str, Any]:
    """Rows of a step's targets: 1,000 and some, hardly ever as many as before."""
    from diptych.machine import common_size

    layer = torch.nn.Linear(192, 2_500)

    def step(rows: int) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            layer(torch.randn(rows, 192)).float().sum().backward()
        layer.zero_grad()

    found = {}
    counts = range(1_001, 1_001 + 7 * (repeats + 2), 7)
    for name, sizes in (
        ("common", [common_size(n) for n in counts] * 2),
        ("new", list(counts)),
    ):
        upcoming = iter(sizes[-repeats - 2 :])
        run = lambda upcoming=upcoming: step(next(upcoming))  # noqa: E731
        found[name] = milliseconds(run, repeats)
    return {**found, "ratio": found["new"] / found["common"]}


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
        "packed_rows": packed_rows(s.repeats),
        "shapes": shapes(s.repeats),
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
    ways, sizes = summary["packed_rows"], summary["shapes"]
    print(
        f"packed rows: fused {ways['fused']:.1f} ms, eager {ways['eager']:.1f} ms, "
        f"plain {ways['plain']:.1f} ms"
    )
    print(f"shapes: all new {sizes['new']:.1f} ms, common {sizes['common']:.1f} ms")
    print(
        f"output layer: usual {memory['usual']['milliseconds']:.0f} ms, kept "
        f"{memory['keep']['milliseconds']:.0f} ms"
    )


if __name__ == "__main__":
    main()
