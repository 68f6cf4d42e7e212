"""`diptych`: the commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from diptych import __version__
from diptych.cli.data_commands import data_app
from diptych.cli.embed_commands import embed
from diptych.cli.report_commands import report_app
from diptych.cli.shell import (
    Debug,
    Device,
    Format,
    Images,
    Json,
    Precision,
    Set,
    another_answers,
    command,
    err,
    explain_usage,
    out,
)
from diptych.cli.store_commands import query, search, store_app

app = typer.Typer(
    name="diptych",
    help="Compose, train, measure and use vision-language models of your own.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data_app, name="data")


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"diptych {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it and exit.")
    ] = False,
) -> None:
    """Compose, train, measure and use vision-language models of your own."""


Runs = Annotated[Path, typer.Option(help="Folder that holds the run folders.")]


@app.command()
@command
def quickstart(
    data: Annotated[
        str | None, typer.Option(help="Your own questions instead of drawn charts.")
    ] = None,
    images: Images = None,
    runs: Runs = Path("runs"),
    num: Annotated[int | None, typer.Option(min=20, help="Charts to draw.")] = None,
    seed: Annotated[int, typer.Option(help="Of charts, weights and order.")] = 0,
    minutes: Annotated[
        float, typer.Option(min=3, help="Time it may take; more of it makes a better model.")
    ] = 12,
    set: Set = None,
    device: Device = None,
    precision: Precision = None,
    json: Json = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Draw charts, compose a small model, train it, measure it, and show what changed.

    Takes at most twelve minutes on two idle cores: how fast they are is measured first, and decides
    how often the data is seen. A run that was stopped goes on where it was.

    Examples:

        diptych quickstart

        diptych quickstart --minutes 40
        diptych quickstart --minutes 3      # a smaller result, sooner

        diptych quickstart --data questions.json --images photos/
    """
    from diptych.cli.quickstart import run_quickstart
    from diptych.cli.summary import show_summary
    from diptych.train import processes

    with processes.on(device):
        summary = run_quickstart(
            data=data, images=images, runs=runs, num=num, seed=seed, minutes=minutes,
            overrides=set or [], precision=precision,
        )  # fmt: skip
    if not json:
        show_summary(summary)
    return summary


@app.command()
@command
def train(
    recipe: Annotated[
        str, typer.Argument(help="Recipe name, YAML or JSON file, or a run's recipe.json.")
    ],
    set: Set = None,
    runs: Runs = Path("runs"),
    run: Annotated[
        Path | None, typer.Option(help="Run folder; default: name and fingerprint in --runs.")
    ] = None,
    accept_changed_data: Annotated[
        bool,
        typer.Option(
            "--accept-changed-data",
            help="Where data, tokenizer or weights changed behind a stopped stage, start it anew.",
        ),
    ] = False,
    device: Device = None,
    precision: Precision = None,
    json: Json = False,
    debug: Debug = False,
) -> dict[str, Any] | None:
    """Run a recipe: compose, measure, train, measure again, write the report.

    The same command resumes a run that was stopped. --precision is that of measuring; training has
    the stages' `precision`.

    Examples:

        diptych train my-recipe.yaml

        diptych train llava-debug --set stages.instruct.learning_rate=1e-4

        diptych train runs/mine-0123456789ab/recipe.json

        torchrun --nproc-per-node 2 -m diptych train my-recipe.yaml
    """
    from diptych.cli.run import run_folder, run_recipe
    from diptych.cli.summary import show_summary
    from diptych.recipe import load
    from diptych.train import processes

    chosen = load(recipe).override(set or []).located(Path.cwd())
    folder = run or run_folder(chosen, runs)
    first = processes.is_first()
    if first:
        err.print(f"run folder: {folder}", highlight=False)
    try:
        with processes.on(device):
            summary = run_recipe(
                chosen, folder, accept_changed=accept_changed_data, precision=precision
            )
    except Exception as error:
        if first:
            raise
        another_answers()
        err.print(f"another process of this run: {error}", markup=False, highlight=False)
        raise typer.Exit(getattr(error, "exit_code", 1)) from None
    if not first:  # of several processes the first one speaks
        return None
    if not json:
        show_summary(summary)
    return summary


@app.command()
@command
def show(
    recipe: Annotated[str, typer.Argument(help="Recipe name or file.")],
    set: Set = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="What the run will take; no weights are fetched.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Print a recipe with the meaning of every field, or its plan.

    Examples:

        diptych show llava15-7b

        diptych show quickstart --plan
    """
    from diptych.cli import show as views
    from diptych.recipe import load

    chosen = load(recipe).override(set or [])
    if plan:
        from diptych.cli.plan import plan as make_plan

        planned = make_plan(chosen)
        if not json:
            out.print(views.plan_table(planned))
        return planned
    if not json:
        views.print_tree(chosen, out)
    return {"fingerprint": chosen.fingerprint(), **chosen.to_dict()}


@app.command("list")
@command
def list_(json: Json = False, debug: Debug = False) -> dict[str, Any]:
    """List recipes and all kinds of parts: connectors, objectives, formats, metrics and others.

    Example:

        diptych list
    """
    from diptych import parts
    from diptych.cli.parts_list import parts_table

    recipes = parts.functions("families", "Recipe")
    found = {"recipes": {n.replace("_", "-"): line for n, (_, line) in sorted(recipes.items())}}
    for folder in parts.folders():
        found[folder.rsplit(".", 1)[-1]] = parts.describe(folder)
    if not json:
        out.print(parts_table(found))
    return found


@app.command("eval")
@command
def eval_(
    model: Annotated[str, typer.Argument(help="Model or run folder.")],
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA|BENCHMARK",
            help="Questions with answers or captions in any format, or a benchmark by name.",
        ),
    ] = None,
    data: Annotated[str | None, typer.Option(help="Data of the benchmark that is named.")] = None,
    images: Images = None,
    format: Format = None,
    metric: Annotated[
        str | None,
        typer.Option(help="exact, relaxed, vqa_official ...; default: as the run was measured."),
    ] = None,
    train: Annotated[
        str | None, typer.Option(help="Training data, for the majority answer and the look-up.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many questions.")] = None,
    how: Annotated[str, typer.Option(help="generate, likelihood or retrieval.")] = "generate",
    template: Annotated[
        list[str] | None, typer.Option(help="Text with {} for a class; repeat for several.")
    ] = None,
    rerank: Annotated[
        int | None, typer.Option(min=1, help="Retrieval: re-rank so many by the matching head.")
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(help="A picture (file or address) to compare with --text; repeatable."),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="A text to compare with --image; repeatable.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer; default: as the run was measured.")
    ] = None,
    num_beams: Annotated[int, typer.Option(min=1, help="Beam search; 1 is greedy.")] = 1,
    answer_after: Annotated[
        str | None, typer.Option(help='Score what follows this, such as " =" behind working.')
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions asked at once.")] = 32,
    max_failure_share: Annotated[
        float, typer.Option(min=0, max=1, help="Of the questions; with more there is no score.")
    ] = 0.01,
    choices: Annotated[
        str | None, typer.Option(help="MMLU-style CSV for text-only ability.")
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Folder for result.json and records.")] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap and of --limit.")] = 0,
    device: Device = None,
    precision: Precision = None,
    json: Json = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Measure a model: score, interval, controls without a picture, split by kind.

    Examples:

        diptych eval runs/mine/model test.json --images photos --metric relaxed

        diptych eval runs/mine test.json --limit 200 --json

        diptych eval runs/mine choices --data mmlu/

        diptych eval runs/clip pictures/test.jsonl --how retrieval

        diptych eval runs/clip classes.jsonl --how likelihood --template "a picture of {}"

        diptych eval runs/clip --image cat.png --text "a cat" --text "a red umbrella"
    """
    from diptych.cli.measure import compare_given, measure, result_table, similarity_table

    if what is None or image or text:
        found = compare_given(model, what, image or [], text or [], device, precision)
        if not json:
            out.print(similarity_table(found))
        return found
    result = measure(
        model, what, data=data, images=images, format=format, metric=metric, train=train,
        limit=limit, how=how, max_new_tokens=max_new_tokens, batch_size=batch_size, choices=choices,
        save=save, seed=seed, templates=tuple(template or ()), rerank=rerank, num_beams=num_beams,
        answer_after=answer_after, max_failure_share=max_failure_share,
        device=device, precision=precision,
    )  # fmt: skip
    if not json:
        out.print(result_table(result))
    return result.to_dict()


@app.command()
@command
def compare(
    run_a: Annotated[Path, typer.Argument(help="Run folder or saved result of the first.")],
    run_b: Annotated[Path, typer.Argument(help="Run folder or saved result of the second.")],
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    json: Json = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Compare two runs question by question: what was gained, lost and forgotten.

    Example:

        diptych compare runs/before runs/after
    """
    from diptych.cli.measure import compare_runs, comparison_table

    comparison = compare_runs(run_a, run_b, seed)
    if not json:
        out.print(comparison_table(comparison))
    return comparison.to_dict()


@app.command()
@command
def chat(
    model: Annotated[str, typer.Argument(help="Model or run folder.")],
    image: Annotated[
        str | None, typer.Argument(help="A picture to talk about: a file or an address.")
    ] = None,
    ask: Annotated[
        str | None, typer.Option(help="Ask one question, print the answer and exit.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Nucleus sampling.")] = 1.0,
    device: Device = None,
    precision: Precision = None,
    json: Json = False,
    debug: Debug = False,
) -> dict[str, Any] | None:
    """Talk to a model in the terminal, with streaming, pictures and many turns.

    Inside: `/image PATH` shows another picture, `/reset` starts over, `/quit` leaves.

    Examples:

        diptych chat runs/mine chart.png

        diptych chat runs/mine chart.png --ask "Which bar is highest?"
    """
    from diptych.cli.chat import talk

    return talk(model, image, ask, json, max_new_tokens, temperature, top_p, device, precision)


@app.command()
@command
def convert(
    model: Annotated[str, typer.Argument(help="Model to convert.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    to: Annotated[
        str | None,
        typer.Option(help="Layout to write, such as hf-llava; same: the one in which it came."),
    ] = None,
    from_: Annotated[
        str | None, typer.Option("--from", help="Layout to read, such as hf-llava.")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Write a model in a layout that others load, or read one; compared before it is kept.

    Examples:

        diptych convert runs/mine/model exported --to hf-llava

        diptych convert runs/internvl3-1b-finetune-0123 exported --to same

        diptych convert exported imported --from hf-llava
    """
    from diptych.cli.leave import convert_model

    report = convert_model(model, output, to, from_)
    if not json:
        for key, value in report.items():
            out.print(f"{key}: {value}", highlight=False, markup=False)
    return report


@app.command()
@command
def doctor(json: Json = False, debug: Debug = False) -> dict[str, Any]:
    """Say what this machine has, and what is missing for which feature.

    Example:

        diptych doctor
    """
    from diptych.cli.doctor import examine, findings_table

    found = examine()
    if not json:
        out.print(findings_table(found))
    return found


app.command("embed")(embed)
app.command("search")(search)
app.command("query")(query)
app.add_typer(store_app, name="store")
app.add_typer(report_app, name="report")


def run() -> None:
    """Entry point of the `diptych` command."""
    try:
        with explain_usage("--json" in sys.argv):
            app()
    except BrokenPipeError:
        sys.exit(0)


if __name__ == "__main__":
    run()
