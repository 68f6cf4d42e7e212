"""`diptych eval` and `diptych compare`."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from diptych.cli.evaluation import evaluate_data, measure_text
from diptych.convert.published import ready
from diptych.data.checking.index import Index
from diptych.data.sample import Sample
from diptych.errors import ConfigError, DataError
from diptych.eval import benchmark as benchmarks
from diptych.eval import metric as metrics
from diptych.eval.compare import Comparison, compare
from diptych.eval.result import Result
from diptych.model.opened import open_model
from diptych.recipe import EvaluationConfig


def named(what: str, data: str | None) -> tuple[str, str | None]:
    """Benchmark and data of `diptych eval MODEL WHAT [--data DATA]`.

    WHAT is a data set, or the name of a benchmark; with --data, and where there is no such file,
    a name that a benchmark has means the benchmark.
    """
    if data is not None:
        return what, data
    if benchmarks.is_name(what) and not Path(what).exists():
        return what, None
    return "questions", what


def measure(
    model: str,
    what: str,
    *,
    data: str | None = None,
    images: str | None,
    format: str | None,
    metric: str | None,
    train: str | None,
    limit: int | None,
    how: str,
    max_new_tokens: int | None,
    batch_size: int,
    choices: str | None,
    save: Path | None,
    seed: int,
    templates: tuple[str, ...] = (),
    rerank: int | None = None,
    num_beams: int = 1,
    answer_after: str | None = None,
    max_failure_share: float = 0.01,
    device: str | None = None,
    precision: str | None = None,
) -> Result:
    """Evaluate a model by a data set or a benchmark (see `named`); the index is temporary.

    A metric or a longest answer of None is the one that the run's own recipe measures by, and the
    recipe's default where `model` is no run or its recipe measures another benchmark.

    Raises:
        ConfigError: the settings contradict each other, or the model cannot be measured so.
        PartNotFound: there is no such benchmark.
    """
    if how not in ("generate", "likelihood", "retrieval"):
        raise ConfigError(f"--how is generate, likelihood or retrieval, not '{how}'")
    benchmark, path = named(what, data)
    told = {"metric": metric, "max_new_tokens": max_new_tokens}
    settings = {**as_run(model, benchmark), **{k: v for k, v in told.items() if v is not None}}
    metrics.find(settings["metric"])
    if benchmarks.find(benchmark).needs_data and path is None:
        raise ConfigError(
            f"the benchmark '{benchmark}' needs data", where="--data", fix="name them: --data PATH"
        )
    config = EvaluationConfig.from_dict(
        {
            "benchmark": benchmark,
            "data": path and {"path": path, "images": images, "format": format},
            "how": how, **settings,
            "num_beams": num_beams, "answer_after": answer_after, "batch_size": batch_size,
            "limit": limit, "templates": list(templates) or ["{}"], "rerank": rerank,
            "max_failure_share": max_failure_share,
        }
    )  # fmt: skip
    loaded = open_model(ready(model), device, precision)
    with tempfile.TemporaryDirectory() as cache:
        known = _samples(train, images, Path(cache)) if train else None
        result, _ = evaluate_data(loaded, config, Path(cache), train=known, seed=seed)
    result = replace(result, text=measure_text(loaded, choices))
    if save is not None:
        result.save(save)
    return result


def as_run(model: str, benchmark: str) -> dict[str, Any]:
    """Metric and longest answer by which a run measures this benchmark, or the defaults."""
    fields = EvaluationConfig.model_fields
    settings = {key: fields[key].default for key in ("metric", "max_new_tokens")}
    file = Path(model) / "recipe.json"
    if not file.is_file():
        return settings
    recipe = json.loads(file.read_text(encoding="utf-8"))
    for own in (recipe.get("evaluation"), *recipe.get("evaluations", ())):
        if own and own.get("benchmark", fields["benchmark"].default) == benchmark:
            return {key: own.get(key, default) for key, default in settings.items()}
    return settings


def compare_given(
    model: str,
    data: str | None,
    images: Sequence[str],
    texts: Sequence[str],
    device: str | None = None,
    precision: str | None = None,
) -> dict[str, Any]:
    """Cosines of given pictures and texts, and what share each text has of a picture.

    `truncated` is how many tokens of each text were cut off, as the text encoder reads no more.

    Raises:
        ConfigError: neither data nor both of pictures and texts, or a model without vectors.
    """
    if data is not None or not images or not texts:
        raise ConfigError(
            "say what to measure",
            fix="name a data set; or give --image FILE and --text TEXT, and no data set",
        )
    loaded = open_model(ready(model), device, precision)
    if "compare" not in loaded.can:
        raise ConfigError(
            f"a {loaded.config.name} has no vectors to compare",
            where=model,
            fix="use a dual encoder, or ask it with `diptych chat`",
        )
    cosines = loaded.similarity(images, texts)
    shares = (loaded.scale().detach().cpu() * cosines).softmax(1)
    return {
        "images": list(images),
        "texts": list(texts),
        "truncated": [loaded.text_tokens.ids(text)[1] for text in texts],
        "similarity": cosines.tolist(),
        "share": shares.tolist(),
    }


def similarity_table(found: dict[str, Any]) -> Table:
    """One row a picture and text, the closest text first."""
    table = Table(title="similarity", title_justify="left")
    for title in ("picture", "text", "cosine", "share"):
        table.add_column(title, justify="left" if title in ("picture", "text") else "right")
    for image, cosines, shares in zip(
        found["images"], found["similarity"], found["share"], strict=True
    ):
        rows = list(zip(cosines, shares, found["texts"], strict=True))
        rows.sort(key=lambda row: -math.inf if math.isnan(row[0]) else row[0], reverse=True)
        for cosine, share, text in rows:
            table.add_row(escape(image), escape(text), f"{cosine:.3f}", f"{share:.1%}")
    return table


def _samples(path: str, images: str | None, cache: Path) -> Iterator[Sample]:
    index = Index.build(path, cache, images=images, verify="none")
    for row in range(len(index)):
        yield index[row]


def compare_runs(a: Path, b: Path, seed: int) -> Comparison:
    """Pair two runs (or saved results) question by question."""
    return compare(_result(a), _result(b), seed=seed)


def _result(path: Path) -> Result:
    for folder in (path, path / "eval" / "after"):
        if (folder / "result.json").is_file():
            return Result.load(folder)
    raise DataError(
        "there is no evaluation here",
        where=str(path),
        fix="name a run folder, or a folder that `diptych eval --save` wrote",
    )


def result_table(result: Result) -> Group:
    """Score, controls and kinds."""
    table = Table(title=f"{result.benchmark}, metric {result.metric}", title_justify="left")
    for title in ("", "score", "95 % interval", "questions"):
        table.add_column(title, justify="left" if not title else "right")
    guess = "chance" if result.majority_from == "chance" else "majority"
    rows = {"model": result.overall, "blind": result.blind, guess: result.majority}
    rows["look-up"] = result.lookup
    for name, score in rows.items():
        if score is not None:
            interval = f"{score.low:.1%} to {score.high:.1%}"
            table.add_row(name, f"{score.score:.1%}", interval, str(score.n))
    kinds = Table(title="by kind", title_justify="left")
    for title in ("kind", "score", "95 % interval", "blind", guess, "look-up", "questions"):
        kinds.add_column(title, justify="left" if title == "kind" else "right")
    for kind, score in sorted(result.by_kind.items()):
        blind = "-" if score.blind is None else f"{score.blind:.1%}"
        interval = f"{score.low:.1%} to {score.high:.1%}"
        kinds.add_row(
            escape(kind),
            f"{score.score:.1%}",
            interval,
            blind,
            f"{score.majority:.1%}",
            "-" if score.lookup is None else f"{score.lookup:.1%}",
            str(score.n),
        )
    if result.text is not None:
        kinds.caption = f"text-only perplexity {result.text.perplexity:.2f}"
    table.caption = "\n".join(_notes(result)) or None
    if not result.aggregates or result.how == "retrieval":
        return Group(table, kinds)
    # Figures of the whole set, such as BLEU and CIDEr-D.
    whole = Table(title="the whole set", title_justify="left", show_header=False)
    whole.add_column()
    whole.add_column(justify="right")
    figures = dict(result.aggregates)
    official = figures.pop("official", None)
    for name, value in figures.items():
        whole.add_row(escape(name), f"{value:.3f}")
    if official is not None:
        whole.caption = (
            "words by the COCO evaluation's own tokenizer"
            if official
            else "words not by the COCO evaluation's tokenizer: not to be compared with published "
            "figures"
        )
    return Group(table, whole, kinds)


def _notes(result: Result) -> Iterator[str]:
    """What a reader of the score must know besides."""
    if result.gain is not None:
        yield above_control(result.best_control, result.gain.to_dict(), result.majority_from)
    if result.too_long:
        yield (
            f"{len(result.too_long)} prompts are longer than the context and count as wrong: "
            f"{escape(', '.join(result.too_long[:5]))}"
        )
    if result.ties:
        yield f"{result.ties} ties between candidates count against the model"
    if result.failures:
        yield f"{result.failures} more could not be answered and do not count"


def above_control(name: str | None, gain: dict[str, Any], majority_from: str = "") -> str:
    """How far a model is above the control that is hardest to beat, as a sentence."""
    names = {"lookup": "look-up", "majority": "chance" if majority_from == "chance" else "majority"}
    return (
        f"{gain['score']:+.1%} over the best control ({names.get(str(name), str(name))}), "
        f"{gain['low']:+.1%} to {gain['high']:+.1%}"
    )


def comparison_table(comparison: Comparison) -> Group:
    """Differences with intervals, overall and by kind."""
    table = Table(title="second minus first, paired by question", title_justify="left")
    for title in ("", "before", "after", "difference", "95 % interval", "p", "questions"):
        table.add_column(title, justify="left" if not title else "right")
    entries: dict[str, Any] = {"all": comparison.overall, **comparison.by_kind}
    for name, d in entries.items():
        table.add_row(
            escape(name),
            f"{d.before:.1%}",
            f"{d.after:.1%}",
            f"{d.difference:+.1%}",
            f"{d.low:+.1%} to {d.high:+.1%}",
            f"{d.p_value:.3g}",
            str(d.n),
        )
    gained, lost = len(comparison.gained_ids), len(comparison.lost_ids)
    table.caption = f"gained {gained} questions, lost {lost}"
    for name, control in comparison.controls.items():
        if control:
            table.caption += f"\n{name}: {above_control(control['best_control'], control['gain'])}"
    parts: list[Any] = [table]
    if comparison.forgotten:
        forgotten = Table(title="text-only ability", show_header=False, title_justify="left")
        forgotten.add_column()
        forgotten.add_column(justify="right")
        for key, value in comparison.forgotten.items():
            forgotten.add_row(key, f"{value:.4g}" if isinstance(value, float) else str(value))
        parts.append(forgotten)
    return Group(*parts)
