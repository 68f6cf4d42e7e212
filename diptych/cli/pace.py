"""Pace: how fast this machine trains, so that a run takes the time that it may take.

A quickstart on a laptop and one on a server shall both end within the minutes that were asked for.
A few steps like its own are timed before the first run; what they say is kept beside the runs, so
that the same command makes the same recipe again.
"""

from __future__ import annotations

import json
import logging
import statistics
import time
from pathlib import Path

from diptych.families import quickstart as family
from diptych.staging import write_json

log = logging.getLogger(__name__)

REFERENCE_SECONDS = 0.086
"""Such a step where the usual passes take twelve minutes: two cores of an Intel Xeon with
AMX (bfloat16 in hardware)."""
USUAL_MINUTES, FIXED_MINUTES = 12.0, 2.0
"""What the usual passes take there, and what of it goes into drawing and measuring."""
LEAST_FIXED = 0.4
"""However few the charts are, so much of that is left: the questions of the test."""
STEP = 0.2
BATCH, NUM_STEPS = 12, 40


def effort(runs: Path, minutes: float, size: float = 1.0) -> float:
    """How many times the usual passes over the data fit into `minutes` on this machine.

    Args:
        runs: folder of the runs; `pace.json` is written there once.
        size: of the data, in usual numbers of charts.
    """
    file = runs / "pace.json"
    if file.is_file():
        seconds = float(json.loads(file.read_text())["step_seconds"])
    else:
        seconds = step_seconds()
        write_json(file, {"step_seconds": round(seconds, 4)})
    # On slow cores drawing and measuring take longer too.
    pace = REFERENCE_SECONDS / seconds
    fixed = FIXED_MINUTES * max(LEAST_FIXED, size)
    share = (minutes - fixed / pace) / (USUAL_MINUTES - FIXED_MINUTES)
    found = min(2.0, pace) * share / size
    # In steps, so that the machine's moods make no other recipe: 0.92 to 1.12 is 1.
    found = max(STEP / 2, STEP * int(found / STEP + 0.4))
    log.info("a step takes %.3f s here: %.1f of the usual passes", seconds, found)
    return round(found, 2)


def step_seconds() -> float:
    """Median time of a training step like those of the quickstart's first stages.

    Its image encoder on random pictures, scores of as many words at every place, and an optimizer
    step: products of large matrices, work on every number, and many small calls. A machine may be
    quick at the one and slow at the other.
    """
    import torch

    from diptych.machine import chosen_device, keep_freed_memory
    from diptych.model import vision_encoder

    keep_freed_memory()
    config = family.quickstart().model.vision_encoder
    device = torch.device(chosen_device(None))
    size = config.image.size
    assert size is not None
    with torch.random.fork_rng():
        encoder = vision_encoder.build(config).to(device).train()
        words = torch.nn.Linear(encoder.dim, family.VOCAB_SIZE).to(device)
        pixels = torch.rand(BATCH, 3, *size, device=device)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    matrices = [p for p in encoder.parameters() if p.ndim == 2]
    muon = torch.optim.Muon(matrices, lr=1e-3, adjust_lr_fn="match_rms_adamw")
    times = []
    for _ in range(NUM_STEPS):
        start = time.perf_counter()
        with torch.autocast(device.type, dtype=torch.bfloat16):
            scores = words(encoder(pixels).flatten(0, 1))
        places = torch.arange(len(scores), device=device)
        torch.nn.functional.cross_entropy(scores.float(), places).backward()
        muon.step()
        encoder.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[NUM_STEPS // 4 :])
