"""Contract of a section of the report: one file in `sections/`, one template of the same name.

A section module has

    TITLE   the heading
    LABEL   the word in the navigation
    ORDER   its place on the page; lower comes first
    NEEDS   files of the run folder without which it has nothing to say

and a function `view(run) -> dict | None` that turns the files into what
`template/<name>.html.j2` shows. None means that the files hold nothing to show. A section of a
kind of run has `OPTIONAL = True`: in other runs nothing is said of it. A folder that is no training
run says so with `page.json` (`kind`, `headline`); there all sections are optional.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, cast

from diptych import parts
from diptych.report.run_folder import RunFolder

FOLDER = "report.sections"
PAGE = "page.json"


class Section(Protocol):
    """What a module in `sections/` offers."""

    TITLE: str
    LABEL: str
    ORDER: int
    NEEDS: tuple[str, ...]

    def view(self, run: RunFolder) -> dict[str, Any] | None: ...


@dataclass(frozen=True)
class Filled:
    """A section with its content.

    Attributes:
        name: file stem; also the anchor and the template's name.
        view: values for the template, or None when the section is left out.
        reason: why it is left out, one line; empty when it is shown.
    """

    name: str
    title: str
    label: str
    view: dict[str, Any] | None
    reason: str = ""


def fill_all(run: RunFolder) -> list[Filled]:
    """Every section in page order, filled from the run or with the reason why it is not."""
    modules = {name: cast(Section, parts.find(FOLDER, name)) for name in parts.names(FOLDER)}
    ordered = sorted(modules.items(), key=lambda item: item[1].ORDER)
    return [
        _fill(name, module, run)
        for name, module in ordered
        if not (getattr(module, "OPTIONAL", False) or (run.path / PAGE).exists())
        or any((run.path / file).exists() for file in module.NEEDS)
    ]


def _fill(name: str, section: Section, run: RunFolder) -> Filled:
    missing = [file for file in section.NEEDS if not run.has(file)]
    view = None if missing else section.view(run)
    reason = ""
    if missing:
        reason = "; ".join(run.notes.get(file, f"{file} is empty") for file in missing)
    elif view is None:
        known = section.NEEDS or tuple(run.notes)
        reason = f"nothing to show ({', '.join(known)})"
    return Filled(name, section.TITLE, section.LABEL, view, reason)
