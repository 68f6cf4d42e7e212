"""Find a part by folder and file stem.

One file in a plural folder (`model/connectors/mlp.py`) is one part; its stem is its name.
There is no registry: adding the file is adding the part. A name with a dot
(`my_package.my_connector`) is imported as it stands, so parts may live outside Diptych.
"""

from __future__ import annotations

import ast
import difflib
import importlib
from pathlib import Path
from types import ModuleType

from diptych.errors import PartNotFound

_ROOT = Path(__file__).parent


def names(folder: str) -> list[str]:
    """Names of all parts of a folder such as `"model.connectors"`, sorted, nothing imported."""
    path = _ROOT.joinpath(*folder.split("."))
    return sorted(
        p.stem if p.is_file() else p.name
        for p in path.iterdir()
        if (p.suffix == ".py" and p.stem != "__init__") or (p / "__init__.py").is_file()
    )


def find(folder: str, name: str) -> ModuleType:
    """The module that is the part `name` of `folder`.

    Raises:
        PartNotFound: there is no such file; the message lists the names that exist.
        Errors raised while the part is imported propagate unchanged.
    """
    if "." in name:
        return importlib.import_module(name)
    known = names(folder)
    if name not in known:
        kind = folder.rsplit(".", 1)[-1]
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise PartNotFound(
            f"there is no '{name}' in {kind}",
            fix=f"{hint}available: {', '.join(known)}",
        )
    return importlib.import_module(f"diptych.{folder}.{name}")


def describe(folder: str) -> dict[str, str]:
    """Name -> first line of the docstring of every part, read without importing."""
    path = _ROOT.joinpath(*folder.split("."))
    found = {}
    for name in names(folder):
        file = path / f"{name}.py"
        if not file.is_file():
            file = path / name / "__init__.py"
        doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        found[name] = doc.split("\n", 1)[0]
    return found
