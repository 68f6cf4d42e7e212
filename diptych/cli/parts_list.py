"""`diptych list` for people to read; in a file of its own, so that nothing else is imported."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table


def parts_table(found: dict[str, dict[str, str]]) -> Group:
    """Lists of recipes and parts."""
    tables = []
    for title, entries in found.items():
        table = Table(title=title, title_justify="left", show_header=False, expand=False)
        table.add_column(style="bold")
        table.add_column()
        for name, meaning in entries.items():
            table.add_row(name, meaning)
        tables.append(table)
    return Group(*tables)
