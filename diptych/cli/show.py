"""Recipes, plans and lists of parts for people to read."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from diptych.recipe import Recipe
from diptych.report.wording import short_count


def print_tree(recipe: Recipe, console: Console) -> None:
    """The whole tree, one field a line with its meaning."""
    console.print(f"# {recipe.name}, fingerprint {recipe.fingerprint()}", highlight=False)
    _print(recipe, console, 0)


def _print(node: BaseModel, console: Console, depth: int) -> None:
    pad = "  " * depth
    for name, field in type(node).model_fields.items():
        value = getattr(node, name)
        meaning = " ".join((field.description or "").split())
        if isinstance(value, BaseModel):
            _line(console, f"{pad}{name}:", "", meaning)
            _print(value, console, depth + 1)
        elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
            _line(console, f"{pad}{name}:", "", meaning)
            for number, item in enumerate(value):
                label = getattr(item, "name", None) or str(number)
                console.print(f"{pad}  - {label}", highlight=False, style="bold")
                _print(item, console, depth + 2)
        elif (
            isinstance(value, dict) and value and isinstance(next(iter(value.values())), BaseModel)
        ):
            _line(console, f"{pad}{name}:", "", meaning)
            for key, item in value.items():
                console.print(f"{pad}  {key}:", highlight=False, style="bold")
                _print(item, console, depth + 2)
        else:
            _line(console, f"{pad}{name}:", repr(value), meaning)


def _line(console: Console, key: str, value: str, meaning: str) -> None:
    text = Text(f"{key} ", style="bold")
    text.append(value, style="cyan")
    if meaning:
        text.append(f"  # {meaning}", style="dim")
    console.print(text, soft_wrap=True, highlight=False)


def plan_table(plan: dict[str, Any]) -> Group:
    """A plan as two tables."""
    parameters = Table(title=f"{plan['recipe']} ({plan['fingerprint']})")
    parameters.add_column("part")
    parameters.add_column("parameters", justify="right")
    for name, count in plan["parameters"].items():
        parameters.add_row(name, f"{count:,}")
    rows, columns = plan["image_grid"]
    cut = plan["tiles_per_image"] > 1
    about = f"One {'tile' if cut else 'picture'}: {rows} x {columns} patches"
    if cut:
        width, height = plan["picture"]
        about += (
            f", {plan['tokens_per_tile']} tokens; a picture of {width} x {height} pixels: "
            f"{plan['tiles_per_image']} tiles, {plan['tokens_per_image']} tokens."
        )
    elif plan["tokens_per_image"] is not None:
        about += f", {plan['tokens_per_image']} tokens."
    else:
        about += f"; one text: up to {plan['tokens_per_text']} tokens."
    stages = Table()
    for title in ("stage", "learns", "samples", "steps", "memory", "TFLOP"):
        left = title in ("stage", "learns")
        stages.add_column(title, justify="left" if left else "right")
    unknown = False
    for stage in plan["stages"]:
        learns = "\n".join(f"{n} {short_count(c)}" for n, c in stage["trainable"].items())
        work = stage["floating_point_operations"]
        unknown = unknown or work is None
        stages.add_row(
            f"{stage['stage']}\n({stage['objective']})",
            learns,
            "?" if stage["samples"] is None else f"{stage['samples']:,}",
            "?" if stage["steps"] is None else f"{stage['steps']:,}",
            f"{stage['memory_bytes'] / 1e9:.1f} GB",
            "?" if work is None else f"{work / 1e12:,.1f}",
        )
    notes = [
        "Memory: weights, gradients, moments and activations by estimate; the process itself, its "
        "loaders and evaluation come on top."
    ]
    if unknown:
        notes.insert(0, "?: depends on data that is not there yet.")
    return Group(parameters, Text(about), stages, *(Text(n, style="dim") for n in notes))
