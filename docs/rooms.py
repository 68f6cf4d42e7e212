"""The rooms of the package, who may import whom, and the map of who does.

The architecture test holds every file to it (tests/test_architecture.py); `docs/generate.py` draws
`docs/images/rooms.svg` from it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "diptych"
LEVELS = (
    {"config", "errors", "parts", "progress", "machine", "json_text", "staging"},
    {"data"},
    {"synthetic"},
    {"model"},
    {"train", "eval", "embed", "convert"},
    {"recipe", "family", "families", "report"},
    {"cli"},
)
"""Rooms from the ground up; rooms of one level are siblings."""
GROUND_FLOOR = {
    ("config", "errors"), ("config", "parts"), ("parts", "errors"), ("machine", "errors"),
    ("staging", "errors"), ("staging", "json_text"),
}  # fmt: skip
"""The single files on the ground may use one another in this order."""
NEIGHBOURS = {("families", "recipe"), ("families", "family"), ("family", "recipe")}
"""What a recipe is stands in one file; presets fill it in, and it finds them by file name."""
DATA = (
    "sample", "reading", "pixels", "format", "formats", "shard_row", "sources", "source",
    "text", "checking", "batching",
)  # fmt: skip
"""Files and rooms of `data/` in the order in which a row walks: each imports only earlier ones.
`source` is the contract of `sources`, and finds them by file name."""
SAYS = {
    "data": "rows, pictures and words become batches",
    "synthetic": "charts and pictures that Diptych draws itself",
    "model": "encoder, connector, language model; composed, opened, asked",
    "train": "stages, objectives, the one loop",
    "eval": "benchmarks, metrics, controls",
    "embed": "vectors, places for them, search",
    "convert": "checkpoints of others",
    "recipe": "the whole tree of a run",
    "family": "what presets share",
    "families": "presets",
    "report": "the page of a run",
    "cli": "commands: where all rooms meet",
    "ground": "config  errors  parts  progress  machine  json_text  staging",
}


def sources() -> list[Path]:
    """Every file of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def room_of(file: Path) -> str:
    """The folder, or single file, of the package that a file belongs to."""
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def level_of(room: str) -> int:
    """Number of a room's level, from the ground up."""
    found = [number for number, rooms in enumerate(LEVELS) if room in rooms]
    assert found, f"the room '{room}' is declared nowhere; say where it stands in LEVELS"
    return found[0]


def imports(file: Path, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import of Diptych, in functions, under TYPE_CHECKING and
    relative ones too."""
    package = ("diptych", *file.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join([*start, *([node.module] if node.module else [])])
            names = [f"{stem}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            words = name.split(".")
            if words[0] == "diptych" and len(words) > 1 and words[1] not in ("__version__", "load"):
                yield node.lineno, name


def used() -> set[tuple[str, str]]:
    """(room, room that it imports), but for the ground floor, which all use."""
    found = set()
    for file in sources():
        room = room_of(file)
        if room in ("__init__", "__main__") or room in LEVELS[0]:
            continue
        for _, name in imports(file, ast.parse(file.read_text(encoding="utf-8"))):
            other = name.split(".")[1]
            if other != room and other not in LEVELS[0]:
                found.add((room, other))
    return found


WIDTH, ROW, BOX = 960, 88, 46


def drawn() -> str:
    """The map as SVG: rooms from the ground up, a line for every use of one by another."""
    order = [["ground"], ["data"], ["synthetic"], ["model"], ["train", "eval", "embed", "convert"],
             ["recipe", "family", "families", "report"], ["cli"]]  # fmt: skip
    height = ROW * len(order) + 20
    boxes: dict[str, tuple[float, float, float]] = {}
    for level, rooms in enumerate(order):
        span = WIDTH / len(rooms)
        for place, room in enumerate(rooms):
            width = min(span - 24, 420) if room != "ground" else 620
            boxes[room] = (span * (place + 0.5), height - 20 - ROW * level - BOX / 2, width)
    boxes["synthetic"] = (160, boxes["synthetic"][1], 290)  # aside: nothing general imports it
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="system-ui, sans-serif">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
    ]
    for room, other in sorted(used()):
        x, y, _ = boxes[room]
        to_x, to_y, _ = boxes[other]
        if y == to_y:
            continue
        bend = (y + to_y) / 2
        lines.append(
            f'<path d="M{x:.0f} {y + BOX / 2:.0f} C{x:.0f} {bend:.0f} {to_x:.0f} {bend:.0f} '
            f'{to_x:.0f} {to_y - BOX / 2:.0f}" fill="none" stroke="#9aa6b8"/>'
        )
    for room, (x, y, width) in boxes.items():
        left, top = x - width / 2, y - BOX / 2
        lines += [
            f'<rect x="{left:.0f}" y="{top:.0f}" width="{width:.0f}" height="{BOX}" rx="6" '
            'fill="#f4f6fa" stroke="#4a5a78"/>',
            f'<text x="{x:.0f}" y="{y - 3:.0f}" text-anchor="middle" font-size="15" '
            f'font-weight="600" fill="#1c2434">{room}</text>',
            f'<text x="{x:.0f}" y="{y + 14:.0f}" text-anchor="middle" font-size="11" '
            f'fill="#44506a">{SAYS[room]}</text>',
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"
