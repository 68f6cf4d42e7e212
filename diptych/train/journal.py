"""What a run writes down while it trains: metrics, parameters, the table of what learns."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from diptych import json_text
from diptych.data.reading.ledger import Ledger
from diptych.model.architecture import Model
from diptych.model.trainable import Group, Moved
from diptych.progress import Progress
from diptych.staging import write_json, write_text
from diptych.train import processes
from diptych.train.stage import Stage

log = logging.getLogger(__name__)

LONGEST_VALUE = 500
"""MLflow takes no longer one as a parameter (mlflow.utils.validation)."""


def for_trackers(tree: Any, key: str = "") -> dict[str, str | int | float | bool]:
    """A recipe as experiment trackers take it: one plain value for each dotted key.

    Items of lists go by their `name`, as in overrides; null is written out, and what is longer
    than `LONGEST_VALUE` characters loses its middle.
    """
    if isinstance(tree, Mapping):
        inner = [(str(name), value) for name, value in tree.items()]
    elif isinstance(tree, list | tuple) and any(isinstance(x, Mapping) for x in tree):
        named = [x.get("name") if isinstance(x, Mapping) else None for x in tree]
        inner = [
            (str(n or number), x) for number, (n, x) in enumerate(zip(named, tree, strict=True))
        ]
    elif isinstance(tree, bool | int | float):
        return {key: tree}
    else:
        text = tree if isinstance(tree, str) else json.dumps(tree, default=str)
        half = LONGEST_VALUE // 2 - 3
        return {key: text if len(text) <= LONGEST_VALUE else f"{text[:half]} ... {text[-half:]}"}
    found: dict[str, str | int | float | bool] = {}
    for name, value in inner:
        found |= for_trackers(value, f"{key}.{name}" if key else name)
    return found


class Journal:
    """Files and lines of one run, written by the main process only.

    Attributes:
        run: run folder.
        progress: where lines and tables are shown.
        writes: whether this process is the one that writes.
    """

    def __init__(self, run: Path, progress: Progress, writes: bool):
        self.run = run
        self.progress = progress
        self.writes = writes

    @property
    def metrics(self) -> Path:
        """One JSON object per optimizer step or evaluation."""
        return self.run / "metrics.jsonl"

    def step(self, stage: Stage, step: int, num_steps: int, figures: dict[str, Any]) -> None:
        """Add a step to `metrics.jsonl` and show its line, in a fixed format."""
        if not self.writes:
            return
        f = figures
        self.add({"stage": stage.name, "step": step, **f})
        self.progress.line(
            f"stage={stage.name} step={step}/{num_steps} loss={f['loss']:.4f} "
            f"learning_rate={f['learning_rate']:.3e} gradient_norm={f['gradient_norm']:.4f} "
            f"samples={f['samples']} real_tokens={f['real_tokens']} "
            f"supervised_tokens={f['supervised_tokens']} padding_share={f['padding_share']:.4f} "
            f"tokens_per_second={f['tokens_per_second']:.0f} memory_bytes={f['memory_bytes']}",
            last=step == num_steps,
        )

    def add(self, values: dict[str, Any]) -> None:
        """Append one line to `metrics.jsonl`."""
        if self.writes:
            with self.metrics.open("a", encoding="utf-8") as out:
                out.write(json_text.dumps(values) + "\n")

    def cut(self, stage: str, step: int) -> None:
        """Drop lines that a killed run wrote after its last checkpoint."""
        if not self.writes or not self.metrics.is_file():
            return
        kept = []
        for text in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue  # the half line of a killed process
            if line.get("stage") != stage or line["step"] <= step:
                kept.append(json_text.dumps(line))
        write_text(self.metrics, "".join(f"{t}\n" for t in kept))

    def write(self, name: str, values: Any) -> None:
        """Replace a JSON file of the run as a whole."""
        if self.writes:
            write_json(self.run / name, values)

    def parameters(self, model: Model, stage: Stage, groups: Sequence[Group]) -> None:
        """Note what the parts are and what learns in a stage, in `parameters.json`."""
        if not self.writes:
            return
        file = self.run / "parameters.json"
        known = json.loads(file.read_text()) if file.is_file() else {"stages": {}}
        total = sum(p.numel() for p in model.parameters())
        known["parts"] = [
            {
                "name": name,
                "class": type(getattr(part, "module", part)).__name__,
                "parameters": sum(p.numel() for p in part.parameters()),
            }
            for name, part in model.named_parts()
        ]
        known["tokens_per_image"] = model.tokens_per_image
        before = {e["group"]: e for e in known["stages"].get(stage.name, ())}
        known["stages"][stage.name] = [
            {
                "group": g.name,
                "parameters": g.num_total,
                "trainable": g.num_trainable,
                "learning_rate": g.learning_rate,
                "share": g.num_trainable / total,
                # What the first step moved is known from it alone, also when the run goes on.
                **{k: v for k, v in before.get(g.name, {}).items() if k == "moved"},
            }
            for g in groups
        ]
        self.write(file.name, known)

    def groups(
        self, model: Model, stage: Stage, groups: Sequence[Group], moved: dict[str, Moved]
    ) -> None:
        """Show what learns, after the first step has proven it, and note how much of it moved."""
        if not self.writes:
            return
        file = self.run / "parameters.json"
        known = json.loads(file.read_text())
        for entry in known["stages"][stage.name]:
            entry["moved"] = asdict(moved[entry["group"]])
        self.write(file.name, known)
        table = Table(title=f"what learns in stage {stage.name} (checked after step 1)")
        for column in ("part", "parameters", "learning", "rate", "tensors moved", "numbers moved"):
            table.add_column(column, justify="left" if column == "part" else "right")
        for group in groups:
            found = moved[group.name]
            table.add_row(
                group.name,
                f"{group.num_total:,}",
                f"{group.num_trainable:,}",
                f"{group.learning_rate:.2e}",
                f"{found.tensors} of {len(group.parameters)}",
                f"{found.share:.1%}",
            )
        learning = {g.name for g in groups}
        for name, part in model.named_parts():
            if name not in learning:
                count = sum(p.numel() for p in part.parameters())
                table.add_row(name, f"{count:,}", "0", "-", "frozen, unchanged", "0.0%")
        self.progress.note(table)


def of_all(ledger: Ledger) -> Ledger:
    """What all processes counted."""
    total = Ledger()
    for counted in processes.gathered(ledger.to_dict()):
        total.merge(Ledger.from_dict(counted))
    return total


def available(tracker: str) -> bool:
    """Whether a tracker's package is installed; says so where it is not."""
    from importlib.util import find_spec

    if find_spec(tracker) is None:
        log.warning("tracker %s is not installed and left out (pip install %s)", tracker, tracker)
        return False
    return True
