"""What was composed: the parts, their sizes, and what learns in which stage."""

from __future__ import annotations

from typing import Any

from diptych.report.run_folder import RunFolder, dicts, mapping, number, text
from diptych.report.wording import NO_BREAK, count, percent, plain, short_count

TITLE = "The model"
LABEL = "Model"
ORDER = 50
NEEDS = ("parameters.json",)

ROLES = {
    "vision_encoder": ("Image encoder", "sees: pixels become features"),
    "connector": ("Connector", "joins: features become tokens"),
    "language_model": ("Language model", "speaks: tokens become an answer"),
}


def view(run: RunFolder) -> dict[str, Any] | None:
    """The diagram's parts and the table of parameter groups per stage."""
    fields = run.tree("parameters.json")
    listed = dicts(fields.get("parts"))
    stages = {
        text(name, 60): [_group(row) for row in dicts(rows)]
        for name, rows in mapping(fields.get("stages")).items()
    }
    parts = [_part(part, stages, run) for part in listed]
    if not parts and not stages:
        return None
    total = sum(part["parameters"] or 0 for part in parts)
    for part in parts:
        part["share"] = (part["parameters"] or 0) / total if total else 0.0
    num_tokens = number(fields.get("tokens_per_image"))
    return {
        "parts": parts,
        "total": short_count(total) if total else "",
        "stages": stages,
        "tokens_per_image": count(num_tokens) if num_tokens is not None else "",
        "tokens_unit": "token" if num_tokens == 1 else "tokens",
    }


def _part(
    part: dict[str, Any], stages: dict[str, list[dict[str, Any]]], run: RunFolder
) -> dict[str, Any]:
    name = text(part.get("name"), 60)
    role, does = ROLES.get(name, (name.replace("_", " ").capitalize(), ""))
    learns = []
    for stage, groups in stages.items():
        trainable = sum(g["num_trainable"] for g in groups if _belongs(g["group"], name))
        learns.append({"stage": stage, "trainable": trainable, "label": short_count(trainable)})
    model = mapping(run.tree("recipe.json").get("model"))
    num_parameters = number(part.get("parameters"))
    return {
        "name": name,
        "role": role,
        "does": does,
        "class": text(part.get("class"), 80),
        "chosen": text(mapping(model.get(name)).get("name"), 120),
        "parameters": num_parameters,
        "short": short_count(num_parameters),
        "exact": count(num_parameters),
        "learns": learns,
    }


def _group(row: dict[str, Any]) -> dict[str, Any]:
    parameters, trainable = number(row.get("parameters")), number(row.get("trainable"))
    ratio = trainable / parameters if parameters and trainable is not None else None
    learning_rate = number(row.get("learning_rate"))
    frozen = not trainable
    return {
        "group": text(row.get("group"), 80),
        "parameters": count(parameters),
        "trainable": count(trainable),
        "num_trainable": trainable or 0.0,
        "ratio": ratio or 0.0,
        "ratio_label": "frozen" if frozen else percent(ratio),
        "learning_rate": "" if frozen else plain(learning_rate),
        "share": percent(number(row.get("share")), 1).replace(NO_BREAK, " "),
        "frozen": frozen,
    }


def _belongs(group: str, part: str) -> bool:
    """Groups are named `connector` or, where a part has several, `language_model.lora`."""
    return group == part or group.startswith((part + ".", part + "/", part + " "))
