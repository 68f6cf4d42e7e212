"""What the sections claim, held against the numbers in the run's files."""

from __future__ import annotations

import json
import subprocess

import pytest

from diptych import parts
from diptych.report import evaluation
from diptych.report.run_folder import RunFolder
from diptych.report.section import FOLDER, fill_all
from diptych.report.sections import (
    comparison,
    composed,
    cost,
    curves,
    environment,
    forgotten,
    gallery,
    kinds,
    ledger,
    repeat,
)


def folder(path, **files) -> RunFolder:
    for name, value in files.items():
        lines = value if name.startswith(("records", "metrics")) else [value]
        suffix = ".jsonl" if lines is value else ".json"
        (path / (name + suffix)).write_text("\n".join(json.dumps(line) for line in lines))
    return RunFolder(path)


def score(value, low=None, high=None, n=100):
    return {"score": value, "low": low, "high": high, "n": n}


def said(run) -> str:
    return "".join(words for words, _ in evaluation.headline(run)).replace("\u00a0", " ")


def test_every_section_keeps_the_contract():
    modules = [parts.find(FOLDER, name) for name in parts.names(FOLDER)]
    assert len({module.ORDER for module in modules}) == len(modules)
    assert all(module.TITLE and module.LABEL and module.__doc__ for module in modules)


def test_sections_stand_in_order(built):
    filled = fill_all(RunFolder(built))
    assert [s.name for s in filled][:4] == ["comparison", "kinds", "forgotten", "gallery"]
    assert all(section.view for section in filled)


@pytest.mark.parametrize(
    ("scores", "sentence"),
    [
        (
            {"after": score(0.5, 0.45, 0.55), "majority": score(0.48, 0.43, 0.53)},
            "The model answers 50 % of unseen questions correctly, only 2 points above the "
            "majority answer: too close to call.",
        ),
        (
            {"after": score(0.2, 0.1, 0.3), "blind": score(0.3, 0.2, 0.4)},
            "The model answers 20 % of unseen questions correctly, 10 points below the blind "
            "control.",
        ),
        (
            {"after": score(0.9, 0.8, 0.95)},
            "The model answers 90 % of unseen questions correctly. No control was measured.",
        ),
        (
            {"metric": "vqa", "after": score(0.9, 0.8, 0.95), "blind": score(0.4, 0.3, 0.5)},
            "The model scores 90 % (vqa) on unseen questions, 50 points above the blind control.",
        ),
        (
            {
                "metric": "recall@1",
                "names": {"majority": "Chance"},
                "after": score(0.13, 0.1, 0.16),
                "majority": score(0.002, 0.002, 0.002),
            },
            "The right one stands first for 13 % of unseen queries, 65 times chance.",
        ),
        (
            # easy-VQA: better than the majority is not better than a table of its questions.
            {
                "after": score(0.6, 0.58, 0.62),
                "blind": score(0.2, 0.18, 0.22),
                "majority": score(0.39, 0.37, 0.41),
                "lookup": score(0.67, 0.65, 0.69),
            },
            "The model answers 60 % of unseen questions correctly, 7 points below the look-up of "
            "the question.",
        ),
        ({"before": score(0.1)}, "The model is ready, but nobody has tested it yet."),
    ],
)
def test_headline_claims_no_more_than_was_measured(tmp_path, scores, sentence):
    assert said(folder(tmp_path, evaluation=scores)) == sentence


def test_headline_time_is_the_stages_time(tmp_path):
    phases = [{"name": "draw", "seconds": 100}, {"name": "stage align", "seconds": 30}]
    timings = {"phases": phases, "seconds": 700}
    run = folder(tmp_path, timings=timings, parameters={"stages": {"align": []}})
    assert said(run).startswith("After 30 seconds of training, ")
    other = folder(tmp_path, timings=timings, parameters={})
    assert said(other).startswith("In a run of 12 minutes, ")


def test_the_verdict_needs_every_control(tmp_path):
    fields = {
        "after": score(0.6, 0.55, 0.65),
        "blind": score(0.3, 0.2, 0.56),
        "majority": score(0.4, 0.35, 0.45),
    }
    assert evaluation.Evaluation(fields).clear_of_controls is False
    fields["blind"] = score(0.3, 0.2, 0.4)
    assert evaluation.Evaluation(fields).clear_of_controls is True
    fields["blind"] = 0.3
    assert evaluation.Evaluation(fields).clear_of_controls is None


def test_the_look_up_is_a_control_like_the_others(tmp_path):
    fields = {
        "after": score(0.6, 0.55, 0.65),
        "majority": score(0.4, 0.35, 0.45),
        "lookup": score(0.5, 0.44, 0.56),
        "lookup_method": "training answers to the same question text",
        "too_long": ["a/7", "b<i>"],
        "ties": 3,
        "by_kind": {"count": {"after": score(0.5), "majority": 0.3, "lookup": 0.6}},
    }
    found = evaluation.Evaluation(fields)
    assert found.clear_of_controls is False and found.best_control == "lookup"
    run = folder(tmp_path, evaluation=fields)
    view = comparison.view(run)
    assert [row["name"] for row in view["rows"]] == ["after", "majority", "lookup"]
    assert (
        "lookup",
        "the most frequent of the training answers to the same question text",
    ) in view["methods"]
    assert view["notes"] == [
        "2 prompts are longer than the context and count as wrong: a/7, b<i>.",
        "3 ties between candidates count against the model.",
    ]
    [row] = kinds.view(run)["rows"]
    assert row["lookup"].startswith("60")
    assert row["below"]
    from diptych.report.page import write

    page = write(tmp_path).read_text(encoding="utf-8")
    assert "b&lt;i&gt;" in page and "Look-up of the question" in page


def test_kinds_name_those_without_gain(built):
    view = kinds.view(RunFolder(built))
    assert view["summary"] == "No better than a control: sum or difference."
    assert [row["kind"] for row in view["rows"]][::8] == ["chart type", "sum or difference"]


def test_forgotten_says_how_much(tmp_path):
    text = {"perplexity_before": 20.0, "perplexity_after": 22.0, "choices_before": {"score": 0.3}}
    measures = forgotten.view(folder(tmp_path, evaluation={"text": text}))["measures"]
    assert measures[0]["verdict"] == "10.0\u00a0% higher"
    assert (measures[1]["before"], measures[1]["after"]) == ("30.0\u00a0%", "\u2013")


def test_ledger_books_must_balance(tmp_path):
    entry = {"read": 100, "used": 90, "rejected": {"EmptyImage": 4, "NotAnImage": 5}}
    account = ledger.view(folder(tmp_path, ledger=entry))["accounts"][0]
    assert account["missing"] == "1"
    assert account["reasons"] == [("NotAnImage", "5"), ("EmptyImage", "4")]
    entry["truncated"] = {"samples": 1, "tokens": 7}
    account = ledger.view(folder(tmp_path, ledger=entry))["accounts"][0]
    assert account["missing"] == "" and account["truncated_tokens"] == "7"


def test_composed_counts_what_learns(built):
    view = composed.view(RunFolder(built))
    learns = {part["name"]: [s["trainable"] for s in part["learns"]] for part in view["parts"]}
    assert learns["language_model"] == [0, 2_442_240]
    assert sum(part["share"] for part in view["parts"]) == pytest.approx(1)
    assert view["tokens_per_image"] == "49"


def test_curves_have_one_loss_chart_a_stage(built):
    view = curves.view(RunFolder(built))
    titles = [chart.title for chart in view["charts"]]
    assert titles == ["Loss, align", "Loss, instruct", "Learning rate", "Speed"]
    assert [name for name, _, _ in view["charts"][0].curves] == ["loss", "contrastive", "caption"]
    assert view["charts"][2].boundaries[1] == (
        pytest.approx(100 * 400 / 1299, abs=0.01),
        "instruct",
        0,
    )


def test_steps_repeated_after_a_resume_count_once(tmp_path):
    steps = [1, 2, 3, 4, 3, 4, 5]
    rows = [{"stage": "a", "step": s, "loss": k, "samples": 10} for k, s in enumerate(steps)]
    view = curves.view(folder(tmp_path, metrics=rows))
    assert view["facts"][:2] == [("Optimizer steps", "5"), ("Samples", "50")]
    assert view["charts"][0].hover["step"] == ["1", "2", "3", "4", "5"]


def test_gallery_puts_wrong_first_and_keeps_right_ones_and_all_kinds(built, fake_run):
    view = gallery.view(RunFolder(built))
    cards = view["cards"]
    flags = [card["is_right"] for card in cards]
    assert len(cards) == gallery.MAX_ITEMS and flags == sorted(flags)
    assert flags.count(False) == gallery.MAX_WRONG
    assert set(fake_run.KINDS) <= {card["kind"] for card in cards}
    assert {"lost", "wrong", "gained", "right"} == {card["change"] for card in cards}
    assert cards[0]["change"] == "lost"


def test_gallery_reads_pictures_from_where_the_evaluation_says(tmp_path, built):
    rows = [{"id": "a", "score": 1, "image": "chart_001.png"}]
    run = folder(tmp_path, records_after=rows, evaluation={"images": str(built / "images")})
    assert gallery.view(run)["cards"][0]["picture"].uri.startswith("data:image/png")
    run = folder(tmp_path, records_after=rows, evaluation={})
    assert "missing" in gallery.view(run)["cards"][0]["picture"].fault


def test_command_pasted_in_a_shell_gives_the_same_words(tmp_path):
    words = ["echo it's", "$HOME `id`", "x\u202ey", "tab\t\\new\nline'", "", "图"]
    command = repeat.view(folder(tmp_path, environment={"command": words}))["command"]
    assert command.isprintable()
    out = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, env={"LC_ALL": "C.UTF-8"}
    ).stdout
    assert out.decode().split("\0")[:-1] == words


def test_recipe_tree_is_bounded(tmp_path):
    wide = repeat.view(folder(tmp_path, recipe={"k": list(map(str, range(9000)))}))
    assert wide["is_cut"] and len(wide["recipe"][0].children) < repeat.MAX_NODES
    deep: dict = {}
    for _ in range(200):
        deep = {"k": deep}
    node, depth = repeat.view(folder(tmp_path, recipe=deep))["recipe"][0], 0
    while node.children:
        node, depth = node.children[0], depth + 1
    assert depth == repeat.MAX_DEPTH


def test_environment_and_cost(built):
    entries = dict(environment.view(RunFolder(built))["entries"])
    assert entries["memory"] == "16.7\u00a0GB" and "command" not in entries
    assert entries["extra.bf16"] == "yes" and entries["gpu"] == "none"
    view = cost.view(RunFolder(built))
    assert view["total"] == "9\u00a0min 01\u00a0s"
    assert sum(row["width"] for row in view["rows"]) <= 1
