"""Caption metrics without Java: words, errors, what a result says of itself."""

from __future__ import annotations

import pytest

from diptych.errors import ConfigError, DiptychError
from diptych.eval import captions
from diptych.eval.metrics import coco_captions


def test_simple_words_and_line_ends():
    texts = ["A man's dog doesn't eat 1,000 hot-dogs!", "one\r\ntwo\u2028three", " ... "]
    assert captions.tokenize(texts, "simple") == [
        ["a", "man", "'s", "dog", "does", "n't", "eat", "1,000", "hot-dogs"],
        ["one", "two", "three"],
        [],
    ]


def test_result_says_that_it_is_not_the_official_one():
    references = {"1": ["a red bird sings"], "2": ["two dogs run"], "3": ["unused"]}
    found = captions.score({"1": "A red bird sings.", "2": "a cat"}, references, tokenizer="simple")
    assert (found.tokenizer, found.official) == ("simple", False)
    assert found.per_image["Bleu_4"][0] == pytest.approx(1, abs=1e-6)
    assert found.per_image["CIDEr"] == pytest.approx([10, 0])
    assert "METEOR" not in found.corpus


def test_chinese_by_words():
    assert captions.tokenize(["一只 red 鸟。"], "simple") == [["一", "只", "red", "鸟", "。"]]
    pytest.importorskip("jieba")
    assert captions.fitting(["a bird", "一只鸟"]) == "jieba"
    # A name in Chinese among English captions does not make them Chinese.
    assert captions.fitting(["a bird", "two dogs", "the sign says 鸟"]) != "jieba"
    assert captions.tokenize(["一只红色的鸟。"], "jieba") == [["一只", "红色", "的", "鸟"]]


def test_bad_input_is_named(monkeypatch):
    with pytest.raises(ConfigError, match="no captions"):
        captions.score({}, {})
    with pytest.raises(ConfigError, match="1 of 2 captions have no reference.*image '9'"):
        captions.score({"1": "a", "9": "b"}, {"1": ["a"]}, tokenizer="simple")
    monkeypatch.setattr(captions, "find_spec", lambda name: None)
    assert not captions.official_available()
    assert captions.fitting(["a"]) == captions.fitting(["鸟"]) == "simple"
    for tokenizer, missing in (("ptb", "official caption metrics need"), ("jieba", "jieba")):
        with pytest.raises(ConfigError, match=missing):
            captions.tokenize(["a"], tokenizer)


def test_java_that_fails_costs_no_result(monkeypatch, caplog):
    monkeypatch.setattr(captions, "fitting", lambda references: "ptb")

    def broken(lines):
        raise DiptychError("Java stopped with code 1")

    monkeypatch.setattr(captions, "_ptb", broken)
    figures = coco_captions.aggregate(["a red bird"], [["a red bird", "one bird"]])
    assert figures["official"] == 0 and figures["Bleu_1"] == pytest.approx(1)
    assert "Java stopped with code 1" in caplog.text
