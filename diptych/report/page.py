"""Write `report.html`: one file that shows what a run composed, learned and forgot.

The page loads nothing from anywhere: styles, script and pictures are inside, and its
Content-Security-Policy admits exactly that style and that script, by hash. Everything that came
from a run's files (questions, answers, names, recipe values) is escaped by the template engine,
never marked as safe.
"""

from __future__ import annotations

import base64
import hashlib
import math
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from diptych import json_text
from diptych.errors import InputError
from diptych.report import evaluation, wording
from diptych.report.font import chinese_font
from diptych.report.run_folder import RunFolder, number, text
from diptych.report.section import PAGE, Filled, fill_all
from diptych.staging import write_text

NAME = "report.html"
_TEMPLATES = Path(__file__).parent / "template"
# NUL and its kin have no place in HTML; Unicode has a picture for each.
_CONTROL_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}
_CONTROL_PICTURES[0x7F] = 0x2421


def write(run: Path) -> Path:
    """Write `<run>/report.html` and return its path.

    Sections whose files are missing or damaged are left out; the page says which and why. An
    existing report is replaced only when the new one is complete.

    Raises:
        InputError: `run` is not a folder.
    """
    if not run.is_dir():
        raise InputError(
            "there is no run folder",
            where=str(run),
            fix="give the folder that a training run wrote (it holds recipe.json)",
        )
    target = run / NAME
    write_text(target, render(run))
    return target


def render(run: Path) -> str:
    """The page as text."""
    folder = RunFolder(run)
    sections = fill_all(folder)
    style = (_TEMPLATES / "style.css").read_text(encoding="utf-8")
    script = (_TEMPLATES / "page.js").read_text(encoding="utf-8")
    template = _environment(evaluation.read(folder).names).get_template("page.html.j2")
    about = {
        "name": text(folder.tree("recipe.json").get("name"), 120) or run.resolve().name,
        "script": Markup(script),
        "hero": _hero(folder),
        "sections": [section for section in sections if section.view is not None],
        "left_out": [section for section in sections if section.view is None],
        "hover": _hover(sections),
    }

    def page(style: str) -> str:
        return template.render(policy=_policy(style, script), style=Markup(style), **about)

    whole = page(style)
    # A page that is opened elsewhere may find no Chinese font there.
    font = chinese_font(whole)
    return page(style + font) if font else whole


def _hero(run: RunFolder) -> dict[str, Any]:
    found = evaluation.read(run)
    before = found.scores.get("before")
    parameters = run.tree("parameters.json").get("parts")
    listed = parameters if isinstance(parameters, list) else []
    sizes = [number(part.get("parameters")) for part in listed if isinstance(part, dict)]
    total = sum(size for size in sizes if size)
    timings = run.tree("timings.json")
    facts = [
        ("Parameters", wording.short_count(total) if total else ""),
        ("Stages", " \u2192 ".join(run.stage_names)),
        ("Held-out questions", wording.count(evaluation.num_questions(found.scores) or None)),
        ("Whole run", wording.duration(number(timings.get("seconds")))),
        ("Peak memory", wording.size(number(timings.get("peak_memory_bytes")))),
    ]
    about = run.tree(PAGE) if (run.path / PAGE).exists() else {}
    return {
        "kind": text(about.get("kind"), 40) or "Run",
        "headline": evaluation.headline(run),
        "verdict": evaluation.verdict(found),
        "scores": found.scores,
        "before": wording.percent(before.score) if before else "",
        "questions": evaluation.questions(found),
        "facts": [fact for fact in facts if fact[1] not in ("", wording.NOTHING)],
    }


def _hover(sections: list[Filled]) -> list[dict[str, Any]]:
    """Hover values of the charts, in the order in which they stand on the page."""
    views = (section.view for section in sections if section.name == "curves")
    return [chart.hover for view in views if view for chart in view["charts"]]


def _policy(style: str, script: str) -> str:
    """Nothing may load or run but data: pictures, this style and this script."""
    return "; ".join(
        (
            "default-src 'none'",
            "img-src data:",
            "font-src data:",
            f"style-src {_hash(style)}",
            f"script-src {_hash(script)}",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


def _hash(content: str) -> str:
    digest = hashlib.sha256(content.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _environment(contenders: dict[str, str]) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    environment.filters["across"] = _across
    environment.filters["inert_json"] = _inert_json
    environment.filters["percent"] = wording.percent
    environment.filters["interval"] = lambda score: wording.interval(score.low, score.high)
    environment.globals["contenders"] = contenders
    return environment


def _printable(value: Any) -> Any:
    """What an expression in a template prints: control characters become their pictures."""
    if value is None:
        return wording.NOTHING
    if isinstance(value, str) and not isinstance(value, Markup):
        return value.translate(_CONTROL_PICTURES)
    return value


def _across(share: float) -> str:
    """A share in 0..1 as an SVG length; values outside stay at the edge of the plot."""
    return f"{100 * min(1.0, max(0.0, share if math.isfinite(share) else 0.0)):.2f}%"


def _inert_json(value: Any) -> Markup:
    """JSON for a script element: pure ASCII, and no character that could end the element."""
    written = json_text.dumps(value, ensure_ascii=True, separators=(",", ":"))
    for character in "<>&":
        written = written.replace(character, f"\\u{ord(character):04x}")
    return Markup(written)
