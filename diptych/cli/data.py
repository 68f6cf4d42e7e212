"""`diptych data check | convert | charts`."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.cli.shell import err, out
from diptych.errors import ConfigError
from diptych.progress import Progress

if TYPE_CHECKING:
    from diptych.data.checking.token_counter import TextCounter, TokenCounter


def check_data(
    path: str,
    images: str | None,
    format: str | None,
    model: str | None,
    context: int | None,
    fix: Path | None,
    *,
    show: bool,
) -> tuple[dict[str, Any], bool]:
    """Read everything once; returns the report and whether anything was rejected."""
    from diptych.data.checking.check import check

    measure: TokenCounter | TextCounter | None = None
    if model is not None:
        measure = counter_of(model)
    elif context is not None:
        raise ConfigError(
            "--context needs --model, whose tokenizer counts", fix="add --model FOLDER"
        )
    report = check(path, format=format, images=images, counter=measure, context=context)
    if fix is not None:
        report.fix(str(fix))
    if show:
        out.print(report.table())
        if fix is not None:
            kept = f", rejects: {fix}.rejects.jsonl" if report.rejects else "; nothing was rejected"
            err.print(f"good rows: {fix}{kept}", highlight=False)
    values = report.to_dict()
    return values, bool(values["rejects"])


def counter_of(model: str) -> TokenCounter | TextCounter:
    """Counts tokens of samples as a model, or a tokenizer with its template, would read them."""
    from diptych.convert.published import ready
    from diptych.data.checking.token_counter import TextCounter, TokenCounter
    from diptych.model.folder import load_model
    from diptych.model.weights import locate

    folder = Path(model)
    if (folder / "config.json").is_file() or (folder / "model" / "config.json").is_file():
        whole: Any = load_model(ready(model))
        if (encoder := getattr(whole, "chat_encoder", None)) is not None:
            return TokenCounter(encoder)
        return TextCounter(whole.text_tokens)
    from transformers import AutoTokenizer

    from diptych.data.text.chat import ChatEncoder

    return TokenCounter(ChatEncoder(AutoTokenizer.from_pretrained(locate(model))))


def convert_data(
    source: str, output: Path, from_: str | None, to: str, *, show: bool
) -> dict[str, Any]:
    """Rewrite a file in another format."""
    from diptych.data.format import convert

    ledger = convert(source, str(output), from_, to)
    if show:
        out.print(ledger.table())
    return {**ledger.to_dict(), "output": str(output)}


def draw_charts(
    output: Path, num: int, seed: int, writer: str | None, model: str | None, *, show: bool,
    **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """Draw a chart-question set with a progress bar; `options` as for `charts.draw`."""
    from diptych.synthetic.charts import Writer, draw

    if (writer is None) != (model is None):
        raise ConfigError(
            "--writer and --model belong together",
            fix="name the endpoint and the model it serves, or neither",
        )
    start = time.monotonic()
    with Progress().task("draw charts", num + options.get("pages", 0)) as task:
        done = 0

        def progress(now: int, wanted: int) -> None:
            nonlocal done
            for _ in range(now - done):
                task.advance()
            done = now

        chosen = Writer(writer, model) if writer and model else None
        summary = draw(output, num=num, seed=seed, writer=chosen, progress=progress, **options)
    summary["seconds"] = time.monotonic() - start
    if show:
        for key in ("charts", "questions", "chart_kinds", "question_kinds", "discarded"):
            counts = ", ".join(f"{k} {v}" for k, v in summary[key].items()) or "none"
            out.print(f"{key.replace('_', ' ')}: {counts}", highlight=False, soft_wrap=True)
        out.print(f"written to {output} in {summary['seconds']:.1f} s", highlight=False)
    return summary


def make_pictures(output: Path, *, show: bool, **options: Any) -> dict[str, Any]:
    """Make the picture corpus with progress bars; `options` as for `pictures.make`."""
    from diptych.synthetic.pictures import make

    start = time.monotonic()
    bars = Progress()
    with ExitStack() as open_bars:
        tasks: dict[str, Any] = {}

        def progress(what: str, done: int, wanted: int) -> None:
            if what not in tasks:
                tasks[what] = open_bars.enter_context(bars.task(f"{what} pictures", wanted))
            elif done:
                tasks[what].advance()

        summary = make(output, progress=progress, **options)
    summary["seconds"] = time.monotonic() - start
    if show:
        for key in ("pictures", "pairs", "collections", "licences", "rejected"):
            counts = ", ".join(f"{k} {v:,}" for k, v in summary[key].items()) or "none"
            out.print(f"{key}: {counts}", highlight=False, soft_wrap=True)
        out.print(f"left out, too like another: {summary['left_out_as_alike']:,}", highlight=False)
        out.print(f"written to {output} in {summary['seconds']:.1f} s", highlight=False)
    return summary
