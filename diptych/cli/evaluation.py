"""How a run, or `diptych eval`, measures a model, and what is written down about it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych import json_text
from diptych.data.checking.index import Index
from diptych.data.sample import Image, Sample
from diptych.data.text.working import split_working
from diptych.errors import ConfigError
from diptych.eval import benchmark as benchmarks
from diptych.eval.asking import inline_bytes
from diptych.eval.benchmark import Asked
from diptych.eval.compare import Comparison
from diptych.eval.result import Result
from diptych.eval.retriever import Found, retrieve
from diptych.eval.runner import evaluate
from diptych.eval.text import TextAbility, text_ability
from diptych.recipe import EvaluationConfig
from diptych.staging import write_json, write_text

log = logging.getLogger(__name__)


def evaluate_data(
    model: Any,
    config: EvaluationConfig,
    cache: Path,
    *,
    train: Iterator[Sample] | None = None,
    seed: int = 0,
    blind: bool = True,
) -> tuple[Result, Found | None]:
    """Ask a model every question of a benchmark, or let it search in a data set.

    Args:
        train: what it learned from, for controls over rows of a data set.

    Returns:
        The result, and for retrieval what else there is to be seen.

    Raises:
        ConfigError: the model cannot be measured so.
    """
    rows = _Rows(config, cache)
    answers = "answer" in model.can
    if config.how == "retrieval":
        assert config.data is not None, "retrieval needs data"
        if "compare" not in model.can:
            raise ConfigError(
                f"a {model.config.name} has no vectors to search with",
                where="evaluation.how",
                fix="use generate or likelihood",
            )
        return retrieve(
            model,
            rows(),
            images=rows.image_bytes,
            name=config.name or Path(config.data.path).stem,
            seed=seed,
            limit=config.limit,
            rerank=config.rerank,
        )
    kind = benchmarks.find(config.benchmark)
    if config.how == "generate" and kind.how == "generate" and not answers:
        raise ConfigError(
            f"a {model.config.name} writes no answers",
            where="evaluation.how",
            fix="use retrieval, or likelihood (zero-shot classification)",
        )
    asked = Asked(
        path=config.data.path if config.data else None,
        rows=rows,
        name=config.name,
        metric=config.metric,
        how=config.how,
        max_new_tokens=config.max_new_tokens,
        num_beams=config.num_beams,
        answer_after=config.answer_after or getattr(model, "answer_after", None),
    )
    benchmark = kind.open(asked)
    if config.templates != ("{}",):
        model = _Filled(model, config.templates)
    result = evaluate(
        model,
        benchmark,
        images=rows.image_bytes,
        train=train if kind.reads_rows else None,
        limit=config.limit,
        seed=seed,
        # Without a picture a dual encoder has nothing to say at all.
        blind=blind and answers,
        batch_size=config.batch_size,
        max_failure_share=config.max_failure_share,
    )
    return result, None


class _Rows:
    """The rows of an evaluation's data, read when they are asked for, and their pictures."""

    def __init__(self, config: EvaluationConfig, cache: Path):
        self.config = config
        self.cache = cache
        self.index: Index | None = None

    def __call__(self) -> list[Sample]:
        data = self.config.data
        assert data is not None, "rows are asked for by benchmarks that need data"
        self.index = index = Index.build(
            data.path, self.cache, format=data.format, images=data.images, unique=True
        )
        index.ledger.enforce(
            self.config.max_failure_share, advice="a score over fewer questions is another one"
        )
        if index.ledger.num_rejected:
            log.warning(
                "%d rows of %s cannot be read; they are not asked and in no score",
                index.ledger.num_rejected,
                data.path,
            )
        return [index[row] for row in range(len(index))]

    def image_bytes(self, image: Image) -> bytes:
        """The encoded bytes of a picture; a benchmark that brings its own holds them itself."""
        return inline_bytes(image) if self.index is None else self.index.image_bytes(image)


@dataclass(frozen=True)
class _Filled:
    """A dual encoder whose classes stand in templates."""

    model: Any
    templates: tuple[str, ...]

    def log_likelihoods(self, *args: Any, **settings: Any) -> list[list[float]]:
        return self.model.log_likelihoods(*args, templates=self.templates, **settings)

    def generate(self, *args: Any, **settings: Any) -> list[str]:
        raise ConfigError("templates are for classes to choose from", where="evaluation.templates")

    def text_log_likelihood(self, text: str) -> tuple[float, int]:
        return self.model.text_log_likelihood(text)


def measure_text(model: Any, choices: str | None) -> TextAbility | None:
    """Text-only ability: perplexity on held-out text, and a multiple-choice file when given.

    None for a model that writes nothing, for an encoder-decoder, which reads no plain text, and for
    a language model that was new: it had nothing that it could forget.
    """
    if "predict_text" not in model.can or model.language_model.is_encoder_decoder:
        return None
    if choices is None and "language_model" not in model.origins:
        return None
    return text_ability(model, choices=choices)


def summarize(
    run: Path,
    results: dict[str, Result],
    comparison: Comparison | None,
    seconds: float,
    peak_memory_bytes: int,
    config: EvaluationConfig | None,
) -> dict[str, Any]:
    """Write `evaluation.json` and the records; returns the machine-readable summary."""
    summary: dict[str, Any] = {"run": str(run)}
    after = results.get("after")
    if after is not None:
        before = results.get("before")
        summary |= {
            "before": before.overall.to_dict() if before else None,
            "after": after.overall.to_dict(),
            "blind": after.blind.to_dict() if after.blind else None,
            "majority": after.majority.to_dict(),
            "majority_method": after.majority_from,
            "lookup": after.lookup.to_dict() if after.lookup else None,
            "best_control": after.best_control,
            "gain": after.gain.to_dict() if after.gain else None,
            "by_kind": _by_kind(before, after),
            "aggregates": after.aggregates,
        }
        evaluation = {
            **summary,
            "benchmark": after.benchmark,
            "metric": after.metric,
            "n": after.n,
            "blind_method": "the same trained model, image withheld" if after.blind else None,
            "names": {"majority": "Chance"} if after.majority_from == "chance" else {},
            "lookup_method": _lookup_method(after),
            "failures": after.failures,
            "too_long": after.too_long,
            "ties": after.ties,
            "images": _images_folder(config),
            "text": _text(before, after),
        }
        if comparison is not None:
            evaluation |= paired(comparison)
            summary["difference"] = evaluation["difference"]
        write_json(run / "evaluation.json", evaluation)
        _write_records(run, before, after)
    summary["text"] = _text(results.get("before"), after) if after else None
    summary["seconds"] = seconds
    summary["peak_memory_bytes"] = peak_memory_bytes
    return summary


def _by_kind(before: Result | None, after: Result) -> dict[str, Any]:
    kinds = {}
    for kind, score in after.by_kind.items():
        kinds[kind] = {
            "after": {"score": score.score, "low": score.low, "high": score.high, "n": score.n},
            "blind": {"score": score.blind, "n": score.n} if score.blind is not None else None,
            "majority": {"score": score.majority, "n": score.n},
            "lookup": {"score": score.lookup, "n": score.n} if score.lookup is not None else None,
        }
        if before is not None and kind in before.by_kind:
            old = before.by_kind[kind]
            kinds[kind]["before"] = {
                "score": old.score,
                "low": old.low,
                "high": old.high,
                "n": old.n,
            }
    return kinds


def _lookup_method(after: Result) -> str | None:
    if after.lookup is None:
        return None
    return (
        f"{after.majority_from} to the same question text; {after.lookup_found} of {after.n} "
        "questions were found, the others have the majority answer"
    )


def paired(comparison: Comparison) -> dict[str, Any]:
    """The difference after training, question by question."""
    overall = comparison.overall
    return {
        "difference": {
            "score": overall.difference,
            "low": overall.low,
            "high": overall.high,
            "n": overall.n,
        },
        "p_value": overall.p_value,
        "gained": len(comparison.gained_ids),
        "lost": len(comparison.lost_ids),
    }


def _text(before: Result | None, after: Result | None) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, result in (("before", before), ("after", after)):
        if result is not None and result.text is not None:
            values[f"perplexity_{name}"] = result.text.perplexity
            if result.text.choices is not None:
                values[f"choices_{name}"] = result.text.choices.score
    return values


def _images_folder(config: EvaluationConfig | None) -> str:
    """Where the pictures of the evaluated questions are, for the report's gallery."""
    if config is None or config.data is None:
        return "images"
    return config.data.images or str(Path(config.data.path).parent)


def _write_records(run: Path, before: Result | None, after: Result) -> None:
    def lines(result: Result, output: str, score: str) -> str:
        rows = []
        for record in result.records:
            working, answer = split_working(getattr(record, output) or "", result.answer_after)
            rows.append(
                json_text.dumps(
                    {
                        "id": record.id,
                        "question": record.question,
                        "truth": record.truth,
                        "output": answer,
                        **({"working": working} if working else {}),
                        "score": getattr(record, score),
                        "kind": record.kind,
                        "image": record.image,
                    }
                )
            )
        return "".join(row + "\n" for row in rows)

    if before is not None:
        text = lines(before, "output", "score")
        write_text(run / "records_before.jsonl", text)
    write_text(run / "records_after.jsonl", lines(after, "output", "score"))
    if after.blind is not None:
        text = lines(after, "blind_output", "blind_score")
        write_text(run / "records_blind.jsonl", text)
