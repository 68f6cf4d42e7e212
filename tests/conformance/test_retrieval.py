"""Retrieval recall is CLIP_benchmark's."""

from __future__ import annotations

import json
import re

from safetensors.torch import load_file

from diptych.eval.retrieval import ranks


def test_recall_and_ranks(conformance):
    folder = conformance("retrieval")
    tensors = load_file(folder / "tensors.safetensors")
    found = ranks(tensors["similarity"], tensors["text_image_index"])
    assert found.image_of_text.equal(tensors["rank_image_per_text"])
    assert found.text_of_image.equal(tensors["rank_best_text_per_image"])
    expected = json.loads((folder / "meta.json").read_text())["metrics"]
    checked = 0
    for name, value in expected.items():
        if match := re.fullmatch(r"(?:image|text)_retrieval_recall@(\d+)", name):
            total = len(tensors["similarity" if "text" in name else "text_image_index"])
            share = found.recall(int(match[1]))[name]
            assert round(share * total) == round(value * total), name
            checked += 1
    assert checked >= 6
