"""Where the conformance data lie, and a loud word when they are missing.

They lie in `data/` beside this file; the environment variable DIPTYCH_CONFORMANCE names another
folder. Each test takes sizes and cases from the files, so another set of the same layout can be
put in its place.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

_DATA = Path(__file__).resolve().parent / "data"
_missing: set[str] = set()


def conformance_root() -> Path:
    """The folder that holds one folder per fixture."""
    given = os.environ.get("DIPTYCH_CONFORMANCE")
    return Path(given) if given else _DATA


@pytest.fixture(scope="session")
def conformance() -> Callable[[str], Path]:
    """`conformance("vqa_metrics")` is that fixture's folder; without it the test is skipped."""

    def folder(name: str) -> Path:
        path = conformance_root() / name
        if not path.is_dir():
            _missing.add(name)
            pytest.skip(f"conformance data '{name}' not found at {path}; set DIPTYCH_CONFORMANCE")
        return path

    return folder


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    # Parallel workers collect `_missing` in their own process, so skip reasons are read as well.
    skipped = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    if _missing or any("conformance data '" in reason for reason in skipped):
        terminalreporter.section("CONFORMANCE NOT CHECKED", sep="!", red=True, bold=True)
        terminalreporter.write_line(
            "WARNING: reference data were not found, so agreement with the published "
            "implementations was NOT tested in this run.",
            red=True,
        )
        terminalreporter.write_line(
            f"Looked in {conformance_root()}; point DIPTYCH_CONFORMANCE at the folder.", red=True
        )
