"""Training steps of two builds of Diptych, in turns, on the quickstart's own work.

The quickstart's four stages (small convolutional encoder, connector, small language model; charts
and pages that Diptych draws) run a few steps each, from this checkout and from another one
(`--other`, such as a worktree of the commit before), in processes of their own that take turns and
swap places. Compared are the median seconds of a stage's step without the first ones (warm-up). A
ratio above 1 says that this checkout is faster.

    git worktree add ../before COMMIT
    python benchmarks/train_builds.py --other ../before
    python benchmarks/train_builds.py --other ../before --json
    python benchmarks/train_builds.py --other . --quick     # does it work?

With `--json` standard output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
CHARTS = ("data", "charts", "charts", "--practice", "--working")


RUN = """
import runpy, sys
# An editable install has a finder of its own, which would win over any path.
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
sys.path.insert(0, sys.argv[1])
import diptych
assert diptych.__file__.startswith(sys.argv.pop(1)), diptych.__file__
runpy.run_module("diptych", run_name="__main__")
"""


def diptych(build: Path, *words: str, folder: Path) -> None:
    """A command of one build."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(build), *words], cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{build}: {done.stderr}")


def seconds(build: Path, folder: Path, run: str, steps: int) -> dict[str, float]:
    """Median seconds of a step, by stage."""
    settings = ["evaluation=null", "trackers=[]"]
    for stage in ("read", "align", "practise", "instruct"):
        settings += [f"stages.{stage}.num_steps={steps}", f"stages.{stage}.num_epochs=null"]
    words = [word for setting in settings for word in ("--set", setting)]
    diptych(build, "train", "quickstart", "--run", run, *words, folder=folder)
    lines = map(json.loads, (folder / run / "metrics.jsonl").read_text().splitlines())
    found: dict[str, list[float]] = {}
    for line in lines:
        if "seconds" in line:
            found.setdefault(line["stage"], []).append(line["seconds"])
    return {stage: statistics.median(times[steps // 4 :]) for stage, times in found.items()}


def main() -> int:
    """Run both builds in turns, print a table or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--other", type=Path, required=True, help="checkout to compare to")
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--quick", action="store_true", help="a few steps")
    asked = parser.parse_args()
    steps, repeats = (4, 1) if asked.quick else (40, asked.repeats)
    builds = {"this": HERE, "other": asked.other.resolve()}
    times: dict[str, list[dict[str, float]]] = {name: [] for name in builds}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        num = ("--num", "80" if asked.quick else "400", "--pages", "40" if asked.quick else "120")
        diptych(HERE, *CHARTS, *num, folder=folder)
        for number in range(repeats):
            names = list(builds) if number % 2 == 0 else list(builds)[::-1]
            for name in names:
                found = seconds(builds[name], folder, f"{name}-{number}", steps)
                times[name].append(found)
                print(name, {k: round(v, 4) for k, v in found.items()}, file=sys.stderr)
    stages = times["this"][0]
    result: dict[str, Any] = {}
    for stage in stages:
        pairs = [b[stage] / a[stage] for a, b in zip(times["this"], times["other"], strict=True)]
        result[stage] = {
            name: statistics.median(t[stage] for t in found) for name, found in times.items()
        } | {"ratio": statistics.median(pairs), "ratio_range": [min(pairs), max(pairs)]}
    if asked.json:
        from diptych.cli.run import environment

        print(json.dumps({"environment": environment(sys.argv), "stages": result}))
    else:
        for stage, row in result.items():
            low, high = row["ratio_range"]
            print(f"{stage:10} {row['this']:.4f} s against {row['other']:.4f} s: "
                  f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})")  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
