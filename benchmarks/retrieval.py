"""Time retrieval over growing data sets: seconds and memory for a picture with five texts each.

    python benchmarks/retrieval.py [--json] [--sizes 1000,4000,10000,40000]

The vectors are random, so only the search is measured: similarities, ranks, records, intervals.
Every pair of a picture and a text has to be compared; what else there is must grow with the data
set and not with its square. Each size runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from typing import Any

import torch
import torch.nn.functional as F

from diptych.data.sample import Image, Sample, Text, Turn
from diptych.eval.retriever import retrieve

TEXTS = 5


class Random:
    """A vector for every picture, and one near it for each of its texts."""

    def __init__(self, num_images: int, dim: int):
        generator = torch.Generator().manual_seed(0)
        self.images = F.normalize(torch.randn(num_images, dim, generator=generator), dim=1)
        noise = torch.randn(num_images * TEXTS, dim, generator=generator)
        near = self.images.repeat_interleave(TEXTS, 0) + 0.4 * noise
        self.texts = F.normalize(near, dim=1)

    def encode_images(self, images: Any) -> torch.Tensor:
        return self.images[[int(data) for data in images]]

    def encode_texts(self, texts: Any) -> torch.Tensor:
        return self.texts[[int(text) for text in texts]]

    @staticmethod
    def compare(images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        return images @ texts.T


def measure(num_images: int, dim: int) -> dict[str, float]:
    """Seconds, CPU seconds (all threads; other work on the machine is not in them) and memory."""
    model = Random(num_images, dim)
    samples = [
        Sample(
            str(n),
            (Turn("user", (Image(str(n // TEXTS)),)), Turn("assistant", (Text(str(n)),))),
        )
        for n in range(num_images * TEXTS)
    ]
    start, before = time.perf_counter(), time.process_time()
    result, _ = retrieve(model, samples, images=lambda image: image.path.encode())
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - before
    pairs = num_images**2 * TEXTS
    return {
        "images": num_images,
        "texts": num_images * TEXTS,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "cpu_nanoseconds_per_pair": cpu_seconds / pairs * 1e9,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "recall_at_1": result.score,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print exactly one JSON object")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    parser.add_argument("--sizes", default="1000,4000,10000,40000", help="numbers of pictures")
    parser.add_argument("--dim", type=int, default=64, help="width of a vector")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child, options.dim)))
        return
    sizes = "50,100" if options.quick else options.sizes
    found = []
    for size in sizes.split(","):
        command = [sys.executable, __file__, "--child", size, "--dim", str(options.dim)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
        if not options.json:
            print(
                f"{found[-1]['images']:8,} pictures {found[-1]['seconds']:8.1f} s "
                f"{found[-1]['cpu_seconds']:8.1f} s of CPU "
                f"{found[-1]['cpu_nanoseconds_per_pair']:8.1f} ns a pair "
                f"{found[-1]['peak_memory_bytes'] / 2**20:8.0f} MiB"
            )
    if options.json:
        environment = {
            "cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(),
            "threads": torch.get_num_threads(), "torch": torch.__version__,
        }  # fmt: skip
        settings = {"texts_per_image": TEXTS, "dim": options.dim}
        print(json.dumps({"environment": environment, "settings": settings, "sizes": found},
                         indent=2, allow_nan=False))  # fmt: skip


if __name__ == "__main__":
    main()
