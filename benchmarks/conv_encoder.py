"""Time a picture of the convolutional encoder: pixels folded into channels against none folded.

    python benchmarks/conv_encoder.py [--json]

Contenders, all from 192 x 192 pixels with the same widths per resolution, one forward and
backward pass in bfloat16 autocast, in turns in one process:

- `fold_1`: convolutions at full resolution, as VGG has them;
- `fold_2`: 2 x 2 pixels folded into channels first (the quickstart's encoder).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from typing import Any

import torch

from diptych.model.conv_encoder import ConvEncoderConfig, ConvEncoderModel

SIZES = {
    "fold_1": {"fold": 1, "hidden_sizes": [24, 48, 96, 160, 192], "depths": [1, 1, 1, 1, 1]},
    "fold_2": {"fold": 2, "hidden_sizes": [48, 96, 160, 192], "depths": [1, 1, 1, 1]},
}


def measure(pictures: int, repeats: int, pixels: int) -> dict[str, dict[str, float]]:
    """Median milliseconds a picture of each contender, which take turns."""
    torch.manual_seed(0)
    batch = torch.randn(pictures, 3, pixels, pixels)
    batch = batch.contiguous(memory_format=torch.channels_last)
    models = {
        name: ConvEncoderModel(ConvEncoderConfig(**values)).to(memory_format=torch.channels_last)
        for name, values in SIZES.items()
    }
    times: dict[str, list[float]] = {name: [] for name in models}
    for repeat in range(repeats + 2):
        for name, model in models.items():
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16):
                states = model(batch).last_hidden_state
            states.float().sum().backward()
            if repeat >= 2:  # the first passes prepare kernels
                times[name].append((time.perf_counter() - start) * 1000 / pictures)
    return {
        name: {
            "milliseconds_per_picture": statistics.median(times[name]),
            "parameters": sum(p.numel() for p in model.parameters()),
        }
        for name, model in models.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print exactly one JSON object")
    parser.add_argument("--pictures", type=int, default=16, help="pictures a pass")
    parser.add_argument("--repeats", type=int, default=15, help="measured passes of each")
    parser.add_argument("--pixels", type=int, default=192, help="side of a picture")
    options = parser.parse_args()
    found = measure(options.pictures, options.repeats, options.pixels)
    result: dict[str, Any] = {
        "environment": {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
        },
        "settings": {k: v for k, v in vars(options).items() if k != "json"},
        "contenders": found,
        "ratio": {
            "milliseconds_per_picture": found["fold_2"]["milliseconds_per_picture"]
            / found["fold_1"]["milliseconds_per_picture"]
        },
    }
    if options.json:
        print(json.dumps(result, indent=1))
        return
    for name, figures in found.items():
        print(
            f"{name}: {figures['milliseconds_per_picture']:.1f} ms a picture, "
            f"{figures['parameters'] / 1e6:.2f} M parameters"
        )
    print(f"ratio fold_2 / fold_1: {result['ratio']['milliseconds_per_picture']:.2f}")


if __name__ == "__main__":
    main()
