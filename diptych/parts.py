"""Find a part by folder and file stem.

One file in a plural folder (`model/connectors/mlp.py`) is one part; its stem is its name.
There is no registry: adding the file is adding the part. A name with a dot
(`my_package.my_connector`) is a module outside Diptych. Recipes and model folders come from
anywhere and importing runs code, so such a module is imported only when its top-level package
is listed in the environment variable `DIPTYCH_PARTS` (comma separated).
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

from diptych.errors import PartNotFound

_ROOT = Path(__file__).parent
OWN = "diptych.synthetic."
"""Parts of what Diptych draws itself, which general rooms do not know, have dotted names, too."""


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
        PartNotFound: there is no such file, or a dotted name is not allowed or not installed;
            the message lists the names that exist.
        Errors raised while the part is imported propagate unchanged.
    """
    if "." in name:
        return _outside(name)
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


def _outside(name: str) -> ModuleType:
    """A part of another package, when the user has allowed that package."""
    if name.startswith(OWN):
        return importlib.import_module(name)
    package = name.partition(".")[0]
    allowed = [p.strip() for p in os.environ.get("DIPTYCH_PARTS", "").split(",") if p.strip()]
    if package not in allowed:
        raise PartNotFound(
            f"'{name}' is a module outside Diptych and is not imported unless you allow it",
            fix=f"if you trust the package '{package}', set DIPTYCH_PARTS={package}",
        )
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise PartNotFound(f"there is no module '{name}'", fix="install it, or check the name")
    return importlib.import_module(name)


def folders() -> list[str]:
    """Every folder of parts: a plural folder beside the singular file that is its contract."""
    found = []
    for folder in _ROOT.rglob("*s"):
        if folder.is_dir() and folder.with_name(folder.name.removesuffix("s") + ".py").is_file():
            found.append(".".join(folder.relative_to(_ROOT).parts))
    return sorted(found)


def describe(folder: str) -> dict[str, str]:
    """Name -> first line of the docstring of every part, read without importing."""
    return {name: _first_line(_source(folder, name)) for name in names(folder)}


def declared(folder: str, constant: str) -> dict[str, Any]:
    """Name -> value of a literal constant of every part that has it, read without importing.

    So a contract can ask all of its parts what each is for, and open the one that is wanted.
    """
    found = {}
    for name in names(folder):
        for node in _source(folder, name).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == constant:
                found[name] = ast.literal_eval(node.value)
    return found


def functions(folder: str, returns: str) -> dict[str, tuple[str, str]]:
    """Public functions of all parts that take nothing and say that they return so, unimported.

    Returns:
        Name -> (part, first line of the docstring), in the order of the files.
    """
    return {
        node.name: (name, _first_line(node))
        for name in names(folder)
        for node in _source(folder, name).body
        if isinstance(node, ast.FunctionDef)
        and isinstance(node.returns, ast.Name)
        and node.returns.id == returns
        and not node.name.startswith("_")
        and ast.unparse(node.args) == ""
    }


@functools.cache
def _source(folder: str, name: str) -> ast.Module:
    path = _ROOT.joinpath(*folder.split("."))
    file = path / f"{name}.py"
    if not file.is_file():
        file = path / name / "__init__.py"
    return ast.parse(file.read_text(encoding="utf-8"))


def _first_line(node: ast.Module | ast.FunctionDef) -> str:
    return (ast.get_docstring(node) or "").split("\n", 1)[0]
