"""Writes the generated pages: commands.md, configuration.md, recipes.md, parts.md.

python docs/generate.py            writes them
python docs/generate.py --check    exit 1 when one is stale
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import fields
import rooms
import typer

from diptych import parts
from diptych.cli.main import app
from diptych.recipe import named

FOLDER = Path(__file__).parent
NOTE = "<!-- Written by docs/generate.py; change the code, then run it again. -->\n"
TITLES = {
    "data.formats": "Data formats",
    "data.sources": "Kinds of shards",
    "synthetic.charts.kinds": "Kinds of charts",
    "synthetic.pictures.collections": "Picture collections",
    "convert.layouts": "Checkpoint layouts",
    "embed.sinks": "Places for vectors",
    "embed.engines": "Engines of the embedding job",
    "report.sections": "Sections of the report",
}
"""Where the folder's own name says too little."""
PARTS = {f: TITLES.get(f, f.rpartition(".")[2].capitalize()) for f in parts.folders()}


def commands() -> str:
    """Every command with its arguments and options."""
    lines = [NOTE, "# Commands", ""]
    lines += [
        "Exit codes: 0 done, 1 failed, 2 bad input or usage, 75 stopped and resumable. With "
        "`--json`, standard output is exactly one JSON object; logs go to standard error.",
    ]
    root: Any = typer.main.get_command(app)
    _group(root, "diptych", lines)
    return "\n".join(lines) + "\n"


def _group(group: Any, name: str, lines: list[str]) -> None:
    for word, command in group.commands.items():
        whole = f"{name} {word}"
        if hasattr(command, "commands"):
            _group(command, whole, lines)
            continue
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = [p for p in command.params if p.param_type_name == "option"]
        usage = " ".join(f"{_metavar(a)}" if a.required else f"[{_metavar(a)}]" for a in arguments)
        lines += ["", f"## {whole}", "", f"`{whole} {usage} [options]`".replace("  ", " "), ""]
        lines += [inspect.cleandoc(command.help or ""), ""]
        lines += ["| argument or option | default | meaning |", "|---|---|---|"]
        for one in (*arguments, *options):
            label = _metavar(one) if one in arguments else ", ".join(one.opts)
            hidden = one.default is None or one.default is False or one.required
            default = "" if hidden else f"`{one.default}`"
            lines.append(f"| `{label}` | {default} | {_cell(getattr(one, 'help', '') or '')} |")


def _metavar(argument: Any) -> str:
    return str(argument.metavar or argument.name).upper()


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def recipes() -> str:
    """Every recipe with what it composes and its stages."""
    lines = [NOTE, "# Recipes", ""]
    lines += ["`diptych show NAME` prints the whole tree; `--plan` says what a run takes.", ""]
    for name, function in sorted(named().items()):
        if (whole := getattr(function, "published", None)) is not None:
            # What it is composed of stands in the hub's configs.
            lines += [f"## {name}", "", inspect.cleandoc(function.__doc__ or ""), ""]
            lines += [f"- goes on from `{whole}`, whole", ""]
            continue
        recipe = function()
        model = recipe.model
        lines += [f"## {name}", "", inspect.cleandoc(function.__doc__ or ""), ""]
        lines += [
            f"- architecture: {model.name}",
            *(
                f"- {name.replace('vision', 'image').replace('_', ' ')}: {_source(part)}"
                for name in model.parts
                if (part := getattr(model, name, None)) is not None
            ),
            "",
            "| stage | objective | learns | rate | samples a step | length |",
            "|---|---|---|---|---|---|",
        ]
        for stage in recipe.stages:
            learns = ", ".join(
                f"{part}{' (LoRA)' if how.how == 'lora' else ''}"
                + (f" at {how.learning_rate:g}" if how.learning_rate else "")
                for part, how in stage.learn.items()
            )
            length = (
                f"{stage.num_steps} steps"
                if stage.num_steps
                else f"{stage.num_epochs or 1:g} epoch{'' if (stage.num_epochs or 1) == 1 else 's'}"
            )
            lines.append(
                f"| {stage.name} | {stage.objective.name} | {learns} | {stage.learning_rate:g} "
                f"| {stage.global_batch_size} | {length} |"
            )
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _source(part: Any) -> str:
    if not hasattr(part, "weights"):
        return part.name
    if part.weights:
        return f"`{part.weights}`"
    kind = (part.config or {}).get("model_type")
    return f"{kind}, from scratch" if kind else "from scratch"


def part_tables() -> str:
    """Every part by folder; a connector or objective also with its settings."""
    lines = [NOTE, "# Parts", ""]
    lines += [
        "One file is one part; its stem is its name (commands take `hf-llava` for `hf_llava`). "
        "Adding the file adds the part.",
        "",
    ]
    for folder, title in PARTS.items():
        lines += [
            f"## {title} (`{folder.replace('.', '/')}`)",
            "",
            "| name | meaning |",
            "|---|---|",
        ]
        lines += [f"| `{n}` | {_cell(text)} |" for n, text in parts.describe(folder).items()]
        lines.append("")
        if folder not in ("model.connectors", "train.objectives"):
            continue
        for name in parts.names(folder):
            fields = parts.find(folder, name).Config.model_fields
            rows = [
                f"| `{key}` | `{field.default}` | {_cell(field.description or '')} |"
                for key, field in fields.items()
                if key != "name"
            ]
            if rows:
                lines += [
                    f"Settings of `{name}`:",
                    "",
                    "| key | default | meaning |",
                    "|---|---|---|",
                ]
                lines += [*rows, ""]
    return "\n".join(lines).rstrip() + "\n"


PAGES = {
    "commands.md": commands,
    "configuration.md": lambda: fields.page(NOTE),
    "recipes.md": recipes,
    "parts.md": part_tables,
    "images/rooms.svg": rooms.drawn,
}


def main() -> int:
    stale = []
    for name, write in PAGES.items():
        file, text = FOLDER / name, write()
        if file.is_file() and file.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if "--check" not in sys.argv:
            file.write_text(text, encoding="utf-8")
    if stale and "--check" in sys.argv:
        print(f"stale: {', '.join(stale)}; run python docs/generate.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
