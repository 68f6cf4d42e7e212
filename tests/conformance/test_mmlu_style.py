"""Multiple-choice prompts and log-likelihoods against lm-evaluation-harness."""

from __future__ import annotations

import csv
import json

import pytest

from diptych.data.sample import Sample, Text, Turn
from diptych.eval.benchmarks.choices import CONTINUATIONS, LETTERS, Choices, Item, prompt_text
from diptych.eval.runner import evaluate


@pytest.fixture(scope="module")
def folder(conformance):
    return conformance("mmlu_style")


@pytest.fixture(scope="module")
def data(folder):
    return json.loads((folder / "items.json").read_text(encoding="utf-8"))


def as_item(row: dict) -> Item:
    gold = row["gold"] if "gold" in row else row["answer"]
    return Item(row["question"], tuple(row["choices"]), LETTERS[gold])


def test_prompts_are_exact(data):
    for row in data["items"]:
        shots = [as_item(shot) for shot in data["dev"][row["subject"]][: row["num_fewshot"]]]
        assert prompt_text(row["subject"], as_item(row), shots) == row["prompt"]
        assert list(CONTINUATIONS) == row["continuations"]


class TinyModel:
    """The evaluation protocol around a causal language model; texts only, nothing batched."""

    def __init__(self, folder):
        from tokenizers import Tokenizer
        from transformers import LlamaForCausalLM

        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.model = LlamaForCausalLM.from_pretrained(folder).eval()
        self.asked: dict[str, list[float]] = {}

    def log_likelihoods(self, samples, continuations, *, images, chat=True):
        import torch

        assert not chat
        rows = []
        for sample, texts in zip(samples, continuations, strict=True):
            (turn,) = sample.turns
            prompt = self.tokenizer.encode(turn.text).ids
            row = []
            for text in texts:
                ids = self.tokenizer.encode(turn.text + text).ids
                with torch.inference_mode():
                    logits = self.model(torch.tensor([ids])).logits[0]
                logs = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])
                row.append(float(logs[len(prompt) - 1 :].sum()))
            rows.append(row)
            self.asked[turn.text] = row
        return rows


def test_log_likelihoods_choice_and_accuracy(data, folder, tmp_path):
    """Through the whole path: CSV files, benchmark, runner, model."""
    model = TinyModel(folder / "tiny_lm")
    for shots in sorted({row["num_fewshot"] for row in data["items"]}):
        for subject in sorted({row["subject"] for row in data["items"]}):
            rows = [
                row
                for row in data["items"]
                if (row["subject"], row["num_fewshot"]) == (subject, shots)
            ]
            test, dev = tmp_path / f"{subject}_test.csv", tmp_path / f"{subject}_dev.csv"
            for path, items in ((test, rows), (dev, data["dev"][subject])):
                with path.open("w", encoding="utf-8", newline="") as file:
                    written = [as_item(item) for item in items]
                    csv.writer(file).writerows([i.question, *i.choices, i.answer] for i in written)

            result = evaluate(model, Choices(test, dev=dev, num_shots=shots), progress=False)

            assert result.n == len(rows)
            assert result.blind is None  # there are no pictures to withhold
            for row, record in zip(rows, result.records, strict=True):
                assert model.asked[row["prompt"]] == pytest.approx(
                    row["loglikelihoods"], abs=1e-4, rel=0
                )
                assert record.output == row["continuations"][row["argmax"]]
                assert record.score == row["acc"]
            expected = data["summary"][f"{subject}.{shots}shot"]["acc,none"]
            assert result.score == pytest.approx(expected, abs=1e-9)


@pytest.fixture(scope="module")
def own_model(folder):
    """Diptych's own model around the reference's language model."""
    from diptych.model.architecture import config_from_dict
    from diptych.model.folder import build

    eye = {"model_type": "clip_vision_model", "hidden_size": 8, "intermediate_size": 8,
           "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 14, "patch_size": 7}  # fmt: skip
    values = {
        "vision_encoder": {"config": eye, "image": {"resize": "exact", "size": [14, 14]}},
        "connector": "mlp",
        "language_model": {"weights": str(folder / "tiny_lm"), "template": "plain"},
    }
    return build(config_from_dict(values)).eval()


def test_prompts_that_are_read_once_give_the_same_numbers(data, own_model):
    """All prompts in one call, several subjects and numbers of worked examples after another."""
    rows = sorted(data["items"], key=lambda row: (row["num_fewshot"], row["subject"]))
    samples = [Sample(str(n), (Turn("user", (Text(r["prompt"]),)),)) for n, r in enumerate(rows)]
    found = own_model.log_likelihoods(samples, [r["continuations"] for r in rows], chat=False)
    for row, own in zip(rows, found, strict=True):
        assert own == pytest.approx(row["loglikelihoods"], abs=1e-4, rel=0)
        assert max(range(4), key=own.__getitem__) == row["argmax"]
