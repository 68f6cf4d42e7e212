"""What became of every sample: used, rejected and why, truncated and by how much."""

from __future__ import annotations

from typing import Any

from diptych.report.run_folder import RunFolder, dicts, mapping, number, text
from diptych.report.wording import count, percent

TITLE = "Every sample accounted for"
LABEL = "Samples"
ORDER = 70
NEEDS = ("ledger.json",)

MAX_EXAMPLES = 40


def view(run: RunFolder) -> dict[str, Any] | None:
    """One account a stage; a ledger without stages is one account."""
    fields = run.tree("ledger.json")
    stages = mapping(fields.get("stages")) or {"all data": fields}
    accounts = [_account(text(name, 60), mapping(value)) for name, value in stages.items()]
    known = [account for account in accounts if account is not None]
    return {"accounts": known} if known else None


def _account(name: str, fields: dict[str, Any]) -> dict[str, Any] | None:
    num_read, used = number(fields.get("read")), number(fields.get("used"))
    if num_read is None and used is None:
        return None
    reasons = {
        text(reason, 80): number(n) or 0 for reason, n in mapping(fields.get("rejected")).items()
    }
    rejected = sum(reasons.values())
    truncated = mapping(fields.get("truncated"))
    cut = number(truncated.get("samples")) or 0
    num_read = num_read if num_read is not None else (used or 0) + rejected
    used = used if used is not None else num_read - rejected
    examples = dicts(fields.get("examples"))
    return {
        "name": name,
        "read": count(num_read),
        "used": count(used),
        "used_share": _share(used, num_read),
        "rejected": count(rejected),
        "rejected_label": percent(_share(rejected, num_read)),
        "rejected_share": _share(rejected, num_read),
        "reasons": sorted(
            ((reason, count(n)) for reason, n in reasons.items()),
            key=lambda row: (-reasons[row[0]], row[0]),
        ),
        "truncated": count(cut),
        "truncated_tokens": count(number(truncated.get("tokens")) or 0),
        "supervised_tokens": count(number(fields.get("supervised_tokens"))),
        "missing": _missing(num_read, used, rejected, cut),
        "examples": [
            {key: text(row.get(key), 300) for key in ("where", "id", "error", "message")}
            for row in examples[:MAX_EXAMPLES]
        ],
        "num_more": max(0, len(examples) - MAX_EXAMPLES),
    }


def _share(part: float, whole: float) -> float:
    return min(1.0, max(0.0, part / whole)) if whole else 0.0


def _missing(num_read: float, used: float, rejected: float, cut: float) -> str:
    """The samples that no column accounts for; truncated ones may be counted as used or apart."""
    rest = num_read - used - rejected
    return "" if rest in (0, cut) else count(abs(rest))
