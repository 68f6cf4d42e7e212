"""Ledger: what became of every sample.

Every sample read ends exactly once: used whole, used after its end was cut off, or rejected
for a named reason. Reading and ending are counted apart, so a sample that vanishes on the
way makes `check` fail instead of going unnoticed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from diptych.data.reading.rows import Reject
from diptych.errors import DataError, TooManyRejects
from diptych.staging import replacing

MAX_EXAMPLES = 5
MAX_NOTES = 50


@dataclass
class Fault:
    """One kind of fault: how often it occurred, and the first places."""

    count: int = 0
    examples: list[dict[str, str | None]] = field(default_factory=list)

    def add(self, reject: Reject) -> None:
        """Count one more."""
        self.count += 1
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(
                {"where": reject.where, "id": reject.id, "message": reject.message}
            )


class Step(Protocol):
    """What a training step says about its samples (`diptych.data.batching.collate.Prepared`)."""

    used: list[str]
    rejected: list[tuple[str, dict[str, str | None]]]
    truncated: list[tuple[str, int]]
    notes: dict[str, int]

    @property
    def num_targets(self) -> int: ...


@dataclass
class Ledger:
    """Counts of samples by what became of them.

    Attributes:
        num_read: samples that entered.
        num_used: samples used whole.
        num_truncated: samples used without their end; `num_cut_tokens` is what they lost.
        num_supervised_tokens: tokens that carry a loss, over all samples used.
        rejected: error name -> how often, with the first examples.
        notes: what was seen in samples that are used and is not followed -> how often.
    """

    num_read: int = 0
    num_used: int = 0
    num_truncated: int = 0
    num_cut_tokens: int = 0
    num_supervised_tokens: int = 0
    rejected: dict[str, Fault] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    def note(self, what: str, count: int = 1) -> None:
        """Something about a sample that does not keep it from being used."""
        if what not in self.notes and len(self.notes) >= MAX_NOTES:
            what = "further things are not followed"
        self.notes[what] = self.notes.get(what, 0) + count

    def read(self) -> None:
        """A sample enters."""
        self.num_read += 1

    def use(self, supervised_tokens: int = 0) -> None:
        """A sample is used whole."""
        self.num_used += 1
        self.num_supervised_tokens += supervised_tokens

    def truncate(self, cut_tokens: int, supervised_tokens: int = 0) -> None:
        """A sample is used after `cut_tokens` of its tokens were cut off."""
        self.num_truncated += 1
        self.num_cut_tokens += cut_tokens
        self.num_supervised_tokens += supervised_tokens

    def reject(self, reject: Reject) -> None:
        """A sample is not used."""
        self.rejected.setdefault(reject.error, Fault()).add(reject)

    @property
    def num_rejected(self) -> int:
        """Samples that were not used."""
        return sum(fault.count for fault in self.rejected.values())

    def check(self) -> None:
        """Make sure that every sample read has ended exactly once.

        Raises:
            DataError: the sums disagree; gives all numbers. It means a mistake in Diptych or
                in a data source, never in the rows.
        """
        ended = self.num_used + self.num_truncated + self.num_rejected
        if ended != self.num_read:
            raise DataError(
                f"the ledger does not add up: {self.num_read} samples read, but {ended} ended "
                f"({self.num_used} used, {self.num_truncated} truncated, "
                f"{self.num_rejected} rejected)",
                fix="a sample was lost or counted twice; please report it with the data source",
            )

    def enforce(
        self,
        limit: float = 0.01,
        *,
        advice: str = "or allow them in the recipe with max_reject_share",
    ) -> None:
        """Stop when more than the share `limit` of all samples was rejected.

        Args:
            advice: what else the user can do.

        Raises:
            TooManyRejects: with the counts by reason and the first examples.
        """
        share = self.num_rejected / max(1, self.num_read)
        if share <= limit:
            return
        lines = [
            f"{self.num_rejected} of {self.num_read} samples were rejected "
            f"({share:.1%}, the limit is {limit:.1%}):"
        ]
        for name, fault in self._by_count():
            lines.append(f"  {name}: {fault.count}")
            lines += [f"    {e['where'] or e['id']}: {e['message']}" for e in fault.examples[:2]]
        raise TooManyRejects(
            "\n".join(lines),
            where=self._by_count()[0][1].examples[0]["where"],
            fix="see them all with `diptych data check PATH`, drop them with `--fix OUT`; "
            + advice,
        )

    def _by_count(self) -> list[tuple[str, Fault]]:
        return sorted(self.rejected.items(), key=lambda item: (-item[1].count, item[0]))

    def add(self, step: Step) -> None:
        """Count one training step: each sample of it is read anew, and ends anew."""
        # Counted, not looked up by id: two data sets, and two visits, may share one.
        self.num_read += len(step.used) + len(step.rejected)
        self.num_used += len(step.used) - len(step.truncated)
        for _, num_cut_tokens in step.truncated:
            self.truncate(num_cut_tokens)
        self.num_supervised_tokens += step.num_targets
        for what, count in step.notes.items():
            self.note(what, count)
        for id, error in step.rejected:
            reject = Reject(
                error.get("where") or "", id, error["error"] or "", error["message"] or ""
            )
            self.reject(reject)

    def merge(self, other: Ledger) -> None:
        """Count what the other ledger counted, too."""
        self.num_read += other.num_read
        self.num_used += other.num_used
        self.num_truncated += other.num_truncated
        self.num_cut_tokens += other.num_cut_tokens
        self.num_supervised_tokens += other.num_supervised_tokens
        for what, count in other.notes.items():
            self.note(what, count)
        for name, fault in other.rejected.items():
            total = self.rejected.setdefault(name, Fault())
            total.count += fault.count
            total.examples = (total.examples + fault.examples)[:MAX_EXAMPLES]

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `from_dict` gives an equal ledger back."""
        return {
            "read": self.num_read,
            "used": self.num_used,
            "truncated": {"samples": self.num_truncated, "tokens": self.num_cut_tokens},
            "rejected": {name: fault.count for name, fault in self._by_count()},
            "supervised_tokens": self.num_supervised_tokens,
            "notes": dict(self.notes),
            "examples": [
                {"where": e["where"], "id": e["id"], "error": name, "message": e["message"]}
                for name, fault in self._by_count()
                for e in fault.examples
            ],
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Ledger:
        """The ledger that `to_dict` described."""
        ledger = cls(
            values["read"],
            values["used"],
            values["truncated"]["samples"],
            values["truncated"]["tokens"],
            values["supervised_tokens"],
            {name: Fault(count) for name, count in values["rejected"].items()},
            dict(values.get("notes", {})),
        )
        for example in values["examples"]:
            place = {key: example[key] for key in ("where", "id", "message")}
            ledger.rejected[example["error"]].examples.append(place)
        return ledger

    def save(self, path: str | Path) -> None:
        """Write `ledger.json`, replacing it in one step."""
        with replacing(path) as temporary:
            text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False)
            temporary.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Ledger:
        """Read what `save` wrote."""
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))

    def table(self, title: str = "Ledger: what became of every sample") -> Any:
        """The ledger as a rich table."""
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=escape(title))
        table.add_column("")
        table.add_column("samples", justify="right")
        table.add_column("note")
        table.add_row("read", f"{self.num_read:,}", "")
        supervised = f"{self.num_supervised_tokens:,} supervised tokens"
        table.add_row("used", f"{self.num_used:,}", supervised)
        table.add_row("truncated", f"{self.num_truncated:,}", f"{self.num_cut_tokens:,} tokens cut")
        table.add_row("rejected", f"{self.num_rejected:,}", "")
        for name, fault in self._by_count():
            first = fault.examples[0]
            note = escape(f"{first['where']}: {first['message']}")
            table.add_row(f"  {name}", f"{fault.count:,}", note)
        for what, count in self.notes.items():
            table.add_row("  note", f"{count:,}", escape(what))
        return table


class RejectFile:
    """JSON lines of rejects with their rows; written beside the good rows.

    The file appears, complete, when the block ends without an error and there was a reject;
    without one, an older file of that name is removed, as it would speak of other data.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.num_rejects = 0
        self._file: IO[str] | None = None
        self._replacing: Any = None

    def __enter__(self) -> RejectFile:
        return self

    def add(self, reject: Reject) -> None:
        """Append one reject."""
        if self._file is None:
            self._replacing = replacing(self.path)
            temporary = self._replacing.__enter__()
            self._file = open(temporary, "w", encoding="utf-8")
        self._file.write(json.dumps(reject.to_dict(), ensure_ascii=False) + "\n")
        self.num_rejects += 1

    def __exit__(self, *error: Any) -> None:
        if self._file is not None:
            self._file.close()
            self._replacing.__exit__(*error)
        elif error[0] is None:
            self.path.unlink(missing_ok=True)
