"""How long commands take that compute nothing, in times of `import torch`.

`diptych --help`, `list` and `show` are what people type most often. Each runs in a process of its
own, in turns with a process that imports torch and ends; figures are medians, `ratio` is relative
to that import.

    python benchmarks/startup.py
    python benchmarks/startup.py --repeats 9 --json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

DIPTYCH = [sys.executable, "-m", "diptych"]
COMMANDS = {
    "import_torch": [sys.executable, "-c", "import torch"],
    "help": [*DIPTYCH, "--help"],
    "list": [*DIPTYCH, "list"],
    "show": [*DIPTYCH, "show", "llava15-7b"],
}


def seconds(command: list[str]) -> float:
    """Wall time of a process."""
    start = time.perf_counter()
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "100"}
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    return time.perf_counter() - start


def main() -> int:
    """Run all of them in turns, print a table or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    asked = parser.parse_args()
    for command in COMMANDS.values():  # files into the system's cache
        seconds(command)
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(asked.repeats):
        for name, command in COMMANDS.items():
            times[name].append(seconds(command))
    middle = {name: statistics.median(found) for name, found in times.items()}
    ratio = {name: value / middle["import_torch"] for name, value in middle.items()}
    if asked.json:
        from diptych.cli.run import environment

        result: dict[str, Any] = {
            "environment": environment(sys.argv), "seconds": middle, "ratio": ratio,
        }  # fmt: skip
        print(json.dumps(result))
    else:
        for name, value in middle.items():
            print(f"{name:14} {value:6.2f} s  {ratio[name]:5.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
