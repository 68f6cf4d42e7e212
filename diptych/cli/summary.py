"""What a finished run says in the terminal."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table

from diptych.cli.measure import above_control
from diptych.cli.shell import out


def show_summary(summary: dict[str, Any]) -> None:
    """Scores with intervals and controls, by kind, and where everything is."""
    if summary.get("after"):
        table = Table(title="held-out questions", title_justify="left")
        for title in ("", "score", "95 % interval", "questions"):
            table.add_column(title, justify="left" if not title else "right")
        # Retrieval has chance where others have a majority answer, and nothing blind.
        guess = "chance" if summary["majority_method"] == "chance" else "majority"
        names = {"before": "before", "after": "after", "blind": "blind", "majority": guess}
        names["lookup"] = "look-up"
        names = {name: title for name, title in names.items() if summary.get(name)}
        for name, title in names.items():
            score = summary[name]
            interval = f"{score['low']:.1%} to {score['high']:.1%}"
            style = "bold green" if name == "after" else None
            table.add_row(title, f"{score['score']:.1%}", interval, str(score["n"]), style=style)
        if summary.get("gain"):
            method = summary["majority_method"]
            table.caption = above_control(summary["best_control"], summary["gain"], method)
        out.print(table)
        kinds = Table(title="by kind", title_justify="left")
        for title in ("kind", *names.values(), "questions"):
            kinds.add_column(title, justify="left" if title == "kind" else "right")
        for kind, entry in sorted(summary["by_kind"].items()):
            cells = [f"{entry[name]['score']:.0%}" if entry.get(name) else "-" for name in names]
            kinds.add_row(escape(kind), *cells, str(entry["after"]["n"]))
        out.print(kinds)
    others = summary.get("evaluations", ())
    if len(others) > 1:
        table = Table(title="all evaluations", title_justify="left")
        for title in ("", "before", "after", "95 % interval", "questions"):
            table.add_column(title, justify="left" if not title else "right")
        for one in others:
            before, after = one["before"], one["after"]
            interval = f"{after['low']:.1%} to {after['high']:.1%}" if after else "-"
            cells = [f"{score['score']:.1%}" if score else "-" for score in (before, after)]
            table.add_row(escape(one["name"]), *cells, interval, str(after["n"] if after else "-"))
        out.print(table)
    seconds = summary["seconds"]
    out.print(
        f"{seconds / 60:.1f} minutes, {summary['peak_memory_bytes'] / 1e9:.1f} GB at the peak",
        highlight=False,
    )
    out.print(f"report: {summary['run']}/report.html", highlight=False, soft_wrap=True)
    if summary["ask"]:
        out.print(f"ask:    {summary['ask']}", highlight=False, soft_wrap=True)
