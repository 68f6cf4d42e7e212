"""How to repeat it: the command, and the frozen recipe as a tree."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import Any

from diptych.report.run_folder import RunFolder, text

TITLE = "Do it again"
LABEL = "Again"
ORDER = 100
NEEDS = ()

MAX_NODES = 3000
MAX_DEPTH = 24


@dataclass
class Node:
    """A key of the recipe: with children, or with a value."""

    key: str
    value: str = ""
    type: str = ""
    children: list[Node] = field(default_factory=list)


def view(run: RunFolder) -> dict[str, Any] | None:
    """The command as a shell takes it, and the recipe."""
    command = run.tree("environment.json").get("command")
    argv = [text(word, 4000) for word in command] if isinstance(command, list) else []
    recipe = run.tree("recipe.json")
    budget = [MAX_NODES]
    nodes = _children(recipe, 0, budget)
    if not argv and not nodes:
        return None
    return {
        "command": " ".join(map(quote, argv)),
        "from_recipe": "diptych train " + quote(str(run.path / "recipe.json")) if nodes else "",
        "recipe": nodes,
        "is_cut": budget[0] <= 0,
        "missing": [run.notes[f] for f in ("environment.json", "recipe.json") if f in run.notes],
    }


def quote(word: str) -> str:
    """One word for a POSIX shell; characters that cannot be seen are spelled out.

    A right-to-left override in a file name could otherwise show another command than it copies.
    """
    if all(c.isprintable() for c in word):
        return shlex.quote(word)
    return "$'" + "".join(map(_spell, word)) + "'"


def _spell(character: str) -> str:
    if character in "'\\":
        return "\\" + character
    if character.isprintable():
        return character
    code = ord(character)
    return (
        f"\\x{code:02x}"
        if code < 0x80
        else f"\\u{code:04x}"
        if code < 0x10000
        else f"\\U{code:08x}"
    )


def _children(value: Any, depth: int, budget: list[int]) -> list[Node]:
    """Nodes of a dict or list; `budget[0]` is how many more may be made."""
    pairs: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        pairs = [(text(key, 120), item) for key, item in value.items()]
    elif isinstance(value, list):
        pairs = [(_name(item, k), item) for k, item in enumerate(value)]
    nodes = []
    for key, item in pairs:
        budget[0] -= 1
        if budget[0] <= 0:
            break
        is_plain = not isinstance(item, dict | list) or not item or depth >= MAX_DEPTH
        if is_plain or _is_short_list(item):
            nodes.append(Node(key, _written(item), type(item).__name__))
        else:
            nodes.append(Node(key, children=_children(item, depth + 1, budget)))
    return nodes


def _name(item: Any, index: int) -> str:
    """List items that carry a name are shown by it."""
    named = item.get("name") if isinstance(item, dict) else None
    return f"{index}: {text(named, 80)}" if isinstance(named, str) else str(index)


def _is_short_list(item: Any) -> bool:
    scalars = isinstance(item, list) and not any(isinstance(x, dict | list) for x in item)
    return scalars and len(item) <= 12


def _written(item: Any) -> str:
    if item is None:
        return "none"
    if isinstance(item, str):
        return f"\u201c{text(item, 2000)}\u201d"
    return f"[{text(item, 2000)}]" if isinstance(item, list) else text(item, 2000)
