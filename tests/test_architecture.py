"""The two rules of the house, read from the source: who may import whom, and what files are."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))
from rooms import (
    DATA,
    GROUND_FLOOR,
    NEIGHBOURS,
    PACKAGE,
    imports,
    level_of,
    room_of,
    sources,
)

FORBIDDEN = {"utils", "common", "helpers", "misc", "manager", "base", "v2", "legacy"}
MAX_LINES = 450
LONGER = {"train/trainer.py": 720, "cli/main.py": 460}
"""One idea that needs more lines: the only loop; the table of all commands."""

SOURCES = sources()


def data_violations(file: Path, line: int, name: str) -> list[str]:
    own = file.relative_to(PACKAGE).with_suffix("").parts[1]
    other = name.split(".")[2]
    if own == other or (DATA.index(other) < DATA.index(own)):
        return []
    return [f"{file.relative_to(PACKAGE)}:{line} imports {name}"]


def circles(graph: dict[str, set[str]]) -> list[tuple[str, ...]]:
    """Groups of files that import each other, directly or in a round."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        seen: set[str] = set()
        waiting = list(graph[start])
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting += graph.get(name, ())
        reached[start] = seen
    inside = [name for name in graph if name in reached[name]]
    return sorted({tuple(sorted(n for n in inside if n in reached[name] and name in reached[n]))
                   for name in inside})  # fmt: skip


def files_that_import() -> dict[str, set[str]]:
    """Every file of the package with the files that it imports."""
    names = {
        ".".join(("diptych", *f.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): f
        for f in SOURCES
    }
    graph: dict[str, set[str]] = {}
    for name, file in names.items():
        found = set()
        for _, other in imports(file, ast.parse(file.read_text(encoding="utf-8"))):
            while other not in names:
                other = other.rpartition(".")[0]
            if other not in (name, "diptych"):
                found.add(other)
        graph[name] = found
    return graph


def violations(file: Path, text: str) -> list[str]:
    room = room_of(file)
    if room in ("__init__", "__main__"):
        return []
    wrong = []
    for line, name in imports(file, ast.parse(text)):
        other = name.split(".")[1]
        if other == room == "data":
            wrong += data_violations(file, line, name)
        if other == room or (room, other) in GROUND_FLOOR | NEIGHBOURS:
            continue
        if level_of(other) >= level_of(room):
            wrong.append(f"{file.relative_to(PACKAGE)}:{line} imports {other}")
    return wrong


def test_rooms_import_only_rooms_below():
    assert [v for f in SOURCES for v in violations(f, f.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("data/x.py", "from diptych.model.architectures.vlm import Vlm"),
        ("eval/x.py", "def f():\n    import diptych.train.trainer"),
        ("data/formats/x.py", "from ...model import vlm"),
        ("model/x.py", "from diptych import cli"),
        ("errors.py", "import diptych.config"),
        ("data/reading/x.py", "from diptych.data.format import read"),
        ("data/text/x.py", "if TYPE_CHECKING:\n    from diptych.data.batching.batch import Batch"),
    ],
)
def test_the_rule_sees_every_kind_of_import(place, text):
    assert violations(PACKAGE / place, text)


def test_no_files_import_each_other_in_a_round():
    assert circles(files_that_import()) == []


def test_a_round_is_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d", "a"}}) == [("b", "c"), ("d",)]


def test_an_undeclared_room_fails():
    with pytest.raises(AssertionError, match="declared nowhere"):
        violations(PACKAGE / "extras" / "x.py", "import diptych.data.sample")


def test_names_and_sizes_of_files():
    for file in SOURCES:
        name = str(file.relative_to(PACKAGE))
        assert not FORBIDDEN & set(file.stem.split("_")), name
        lines = len(file.read_text(encoding="utf-8").splitlines())
        assert lines <= LONGER.get(name, MAX_LINES), f"{name} has {lines} lines"


@pytest.mark.parametrize(
    "module", ["diptych", "diptych.errors", "diptych.data.sample", "diptych.cli.main"]
)
def test_light_modules_stay_light(module):
    heavy = ("torch", "transformers", "accelerate", "matplotlib", "pyarrow")
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
