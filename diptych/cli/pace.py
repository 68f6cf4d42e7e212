"""Pace: how fast this machine trains, so that a run takes the time that it may take.

A quickstart on a laptop and one on a server shall both end within the minutes that were asked for.
A few steps of its own image encoder are timed before the first run; what they say is kept beside
the runs, so that the same command makes the same recipe again.
"""

from __future__ import annotations

import json
import logging
import statistics
import time
from pathlib import Path

from diptych.families import quickstart as family

log = logging.getLogger(__name__)

REFERENCE_SECONDS = 0.058
"""A step of the encoder where the usual passes take twelve minutes: two cores of an Intel Xeon with
AMX (bfloat16 in hardware)."""
USUAL_MINUTES, FIXED_MINUTES = 12.0, 2.0
"""What the usual passes take there, and what of it goes into drawing and measuring."""
STEP = 0.2
BATCH, NUM_STEPS = 12, 40


def effort(runs: Path, minutes: float) -> float:
    """How many times the usual passes over the data fit into `minutes` on this machine.

    Args:
        runs: folder of the runs; `pace.json` is written there once.
    """
    file = runs / "pace.json"
    if file.is_file():
        seconds = float(json.loads(file.read_text())["encoder_step_seconds"])
    else:
        seconds = encoder_step_seconds()
        file.write_text(json.dumps({"encoder_step_seconds": round(seconds, 4)}) + "\n")
    # On slow cores drawing and measuring take longer too.
    pace = REFERENCE_SECONDS / seconds
    share = (minutes - FIXED_MINUTES / pace) / (USUAL_MINUTES - FIXED_MINUTES)
    found = min(2.0, pace) * share
    # In steps, so that the machine's moods make no other recipe: 0.92 to 1.12 is 1.
    found = max(STEP / 2, STEP * int(found / STEP + 0.4))
    log.info("a step of the encoder takes %.3f s here: %.1f of the usual passes", seconds, found)
    return round(found, 2)


def encoder_step_seconds() -> float:
    """Median time of a training step of the quickstart's image encoder, on random pictures."""
    import torch

    from diptych.machine import chosen_device, keep_freed_memory
    from diptych.model import vision_encoder

    keep_freed_memory()
    config = family.quickstart().model.vision_encoder
    device = torch.device(chosen_device(None))
    with torch.random.fork_rng():
        encoder = vision_encoder.build(config).to(device).train()
        size = config.image.size
        assert size is not None
        pixels = torch.rand(BATCH, 3, *size, device=device)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    times = []
    for _ in range(NUM_STEPS):
        start = time.perf_counter()
        with torch.autocast(device.type, dtype=torch.bfloat16):
            features = encoder(pixels)
        features.float().square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[NUM_STEPS // 4 :])
