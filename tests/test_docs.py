"""Documentation that can go stale is compared with the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from diptych import errors

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.slow
def test_generated_pages_are_fresh():
    done = subprocess.run(
        [sys.executable, str(DOCS / "generate.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_every_error_has_an_entry_and_every_entry_an_error():
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    entries = re.findall(r"^## (\w+)$", text, re.MULTILINE)
    names = [n for n, c in vars(errors).items() if isinstance(c, type) and issubclass(c, Exception)]
    assert entries == names
    for entry in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        assert "- Usual causes: " in entry and "- Way out: " in entry, entry.split("\n")[0]
