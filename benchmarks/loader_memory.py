"""Memory of the steps that are prepared ahead while a model trains.

`clip-b32` looks at 32,768 pairs a step; on eight ranks each has 4,096 of them. One rank's share of
a few steps is prepared by the workers that the recipe would have here, while this process waits as
long as a training step may take; the highest memory of all processes together (Linux, PSS) less
what they held before is compared to the limit, and to whole steps as float32 pixels, four in each
of four workers, which is how it was done before. A LLaVA-1.5 step (16 of 128 conversations a rank,
336 pixels) beside it.

    python benchmarks/loader_memory.py            # a table
    python benchmarks/loader_memory.py --json > benchmarks/results/loader_memory.json
    python benchmarks/loader_memory.py --quick    # does it work?

With `--json` standard output is one JSON object. Exit code 1 above 4 GB.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image as Pillow

LIMIT = 4e9
CASES = {"clip-b32, one of 8 ranks": (4096, 224), "llava15-7b, one of 8 ranks": (16, 336)}
"""Name -> (pictures of a rank's share of a step, pixels of a side)."""


class Pairs(Sequence):
    """So many different pictures, each with a caption."""

    def __init__(self, folder: Path, num: int):
        self.folder, self.num = folder, num
        generator = np.random.default_rng(0)
        for number in range(num):
            small = generator.integers(0, 255, (6, 8, 3), dtype=np.uint8)
            picture = Pillow.fromarray(small).resize((320, 240), Pillow.Resampling.BICUBIC)
            held = io.BytesIO()
            picture.save(held, "JPEG", quality=85)
            (folder / f"{number}.jpg").write_bytes(held.getvalue())

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, number: Any) -> Any:
        from diptych.data.sample import Image, Sample, Text, Turn

        shown = (Image(f"{number}.jpg"),)
        turns = (Turn("user", shown), Turn("assistant", (Text("a picture"),)))
        return Sample(str(number), turns)

    def image_bytes(self, image: Any) -> bytes:
        """A picture's file."""
        return (self.folder / image.path).read_bytes()


def held() -> int:
    """Proportional memory of this process and its workers."""
    total = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total


class Peak:
    """The highest `held` while it runs."""

    def __enter__(self) -> Peak:
        self.before = self.highest = held()
        self._end = threading.Event()
        self._watch = threading.Thread(target=self._look)
        self._watch.start()
        return self

    def _look(self) -> None:
        while not self._end.wait(0.05):
            self.highest = max(self.highest, held())

    def __exit__(self, *_: Any) -> None:
        self._end.set()
        self._watch.join()


def measure(num: int, pixels: int, steps: int, pause: float) -> dict[str, Any]:
    """Prepare so many steps of `num` pictures as training would."""
    from diptych.data.batching.collate_pairs import PairCollator
    from diptych.data.batching.mixture import Mixture
    from diptych.data.batching.picture_loader import PictureLoader
    from diptych.data.pixels.preprocessing import Preprocessing
    from diptych.train.feed import StepData, ahead, cores, feed
    from diptych.train.stage import Stage

    budget = Stage.model_fields["ahead_bytes"].default
    with tempfile.TemporaryDirectory() as folder:
        source = Pairs(Path(folder), num)
        collator = PairCollator(PictureLoader(Preprocessing(resize="exact", size=(pixels, pixels))))
        data = StepData([source], Mixture([[None] * num]), collator, num)  # type: ignore[list-item]
        data.step_bytes, data.ahead_bytes = num * 3 * pixels * pixels, budget
        start = time.perf_counter()
        with Peak() as peak:
            for prepared in feed(data, range(steps), None):
                assert sum(len(b.sample_ids) for b in prepared.batches) == num
                time.sleep(pause)
        seconds = time.perf_counter() - start
    before = 4 * 4 * num * 3 * pixels * pixels * 4
    return {
        "pictures": num, "step_bytes": data.step_bytes, "ahead_bytes": budget,
        "peak_bytes": peak.highest - peak.before, "float32_steps_bytes": before,
        "chosen": vars(ahead(data.step_bytes, budget, None, cores())),
        "by_arithmetic": {
            # What is in the making counts twice, what waits or is learned from once.
            f"{count} cores": arithmetic(data.step_bytes, budget, count)
            for count in (2, 8, 16, 128)
        },
        "pictures_a_second": num * steps / seconds,
    }  # fmt: skip


def arithmetic(step_bytes: int, budget: int, num_cores: int) -> int:
    """Bytes of all steps in flight and of the one that is learned from."""
    from diptych.train.feed import ahead

    chosen = ahead(step_bytes, budget, None, num_cores)
    return step_bytes * (chosen.num_workers * (chosen.steps_each + 1) + 1)


def main() -> int:
    """Run the cases, print a table or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--quick", action="store_true", help="64 pictures a step")
    asked = parser.parse_args()
    from diptych.cli.run import environment

    found = {
        name: measure(64 if asked.quick else num, pixels, 3 if num > 100 else 40, 0.5)
        for name, (num, pixels) in CASES.items()
    }
    worst = max(case["peak_bytes"] for case in found.values())
    if asked.json:
        print(json.dumps({"environment": environment(sys.argv), "cases": found, "limit": LIMIT}))
    else:
        print(f"{'':28} {'a step':>9} {'peak':>9} {'before':>9}  chosen")
        for name, case in found.items():
            sizes = (case["step_bytes"], case["peak_bytes"], case["float32_steps_bytes"])
            shown = " ".join(f"{size / 1e9:6.2f} GB" for size in sizes)
            print(f"{name:28} {shown}  {case['chosen']}")
    return int(worst > LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
