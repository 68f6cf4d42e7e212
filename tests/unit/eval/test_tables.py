"""What `diptych eval` and `diptych compare` show: every control, and what does not simply count."""

from __future__ import annotations

import io

from eval_fake_model import FakeModel, question
from rich.console import Console

from diptych.cli.measure import comparison_table, result_table
from diptych.errors import ModelError, SampleTooLong
from diptych.eval.benchmarks.questions import Questions
from diptych.eval.compare import compare
from diptych.eval.runner import evaluate

ROWS = [question(i, "yes" if i % 4 else "no", image=f"{i}.png", kind="k", text=f"{i % 2}?")
        for i in range(8)]  # fmt: skip


def shown(table) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table)
    return " ".join(console.export_text().split())


def result(**outputs):
    said = {str(i): "yes" for i in range(8)} | {key[1:]: value for key, value in outputs.items()}
    blind = dict.fromkeys(said, "no")
    model = FakeModel(said, blind)
    return evaluate(model, Questions(ROWS), train=ROWS, max_failure_share=0.2, progress=False)


def test_a_result():
    text = shown(result_table(result(_1=SampleTooLong("9 tokens"), _2=ModelError("odd"))))
    for part in ("model", "blind", "majority", "look-up", "over the best control (look-up)"):
        assert part in text
    assert "1 prompts are longer than the context and count as wrong: 1" in text
    assert "1 more could not be answered and do not count" in text


def test_a_comparison():
    text = shown(comparison_table(compare(result(), result(_0="no", _4="no"))))
    assert "before: +0.0% over the best control" in text
    assert "after: +25.0% over the best control" in text
