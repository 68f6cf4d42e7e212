"""Caption metrics are the COCO caption evaluation's."""

from __future__ import annotations

import json

import pytest

from diptych.eval.captions import (
    official_available,
    package_scores,
    score,
    score_words,
    tokenize,
)

TOLERANCE = {"CIDEr": 1e-6, "METEOR": 1e-6}
needs_java = pytest.mark.skipif(
    not official_available(), reason="the official tokenizer needs Java and pycocoevalcap"
)


@pytest.fixture(scope="module")
def golden(conformance):
    return json.loads((conformance("caption_metrics") / "captions.json").read_text())


def words_of(lines):
    return [line.split() for line in lines]


def check(corpus, per_image, expected, images):
    assert expected["corpus"]
    for name, value in expected["corpus"].items():
        if name in corpus:
            assert corpus[name] == pytest.approx(value, abs=TOLERANCE.get(name, 1e-9)), name
    for name, values in expected.get("per_image", {}).items():
        if name in per_image:
            listed = [values[i] for i in images] if isinstance(values, dict) else values
            assert per_image[name] == pytest.approx(listed, abs=TOLERANCE.get(name, 1e-9)), name


@pytest.mark.parametrize("which", ["A", "B"])
@pytest.mark.parametrize("first", [None, 7])
def test_scores_of_given_words(golden, which, first):
    images = [str(i) for i in golden["image_order"]][:first]
    told = golden["candidates"][which]
    hypotheses = words_of(told["tokenized"][i] for i in images)
    truths = [words_of(golden["references_tokenized"][i]) for i in images]
    corpus, per_image = score_words(hypotheses, truths)
    assert {"Bleu_1", "Bleu_4", "ROUGE_L", "CIDEr"} <= set(corpus)
    check(corpus, per_image, told if first is None else told["subset_first7"], images)


@pytest.mark.parametrize("which", ["A", "B"])
def test_our_scores_are_those_of_the_package(golden, which):
    pytest.importorskip("pycocoevalcap")
    images = [str(i) for i in golden["image_order"]]
    told = {**golden["candidates"][which]["tokenized"], images[3]: ""}
    hypotheses = words_of(told[i] for i in images)
    truths = [words_of(golden["references_tokenized"][i]) for i in images]
    ours, theirs = score_words(hypotheses, truths), package_scores(hypotheses, truths)
    for name, value in theirs[0].items():
        assert ours[0][name] == pytest.approx(value, abs=1e-9), name
        assert ours[1][name] == pytest.approx(theirs[1][name], abs=1e-9), name
    assert ours[0].keys() == theirs[0].keys() and ours[1].keys() == theirs[1].keys()


def test_a_caption_of_no_words_and_a_corpus_of_one_image(golden):
    images = [str(i) for i in golden["image_order"]]
    truths = [words_of(golden["references_tokenized"][i]) for i in images]
    edge = golden["edge_punctuation_only_candidate"]
    told = {**golden["candidates"]["A"]["tokenized"], str(edge["image"]): edge["tokenized"]}
    corpus, per_image = score_words(words_of(told[i] for i in images), truths)
    check(corpus, {}, edge, images)
    place = images.index(str(edge["image"]))
    for name, value in edge["per_image_of_that_image"].items():
        assert per_image[name][place] == pytest.approx(value, abs=1e-9)
    single = golden["edge_single_image_candidate_equals_first_reference"]
    own = words_of(golden["references_tokenized"][str(single["image"])])
    check(score_words([own[0]], [own])[0], {}, single, images)


@needs_java
def test_official_tokenizer(golden):
    lines = golden["tokenizer_lines"]
    found = tokenize([line["text"] for line in lines], "ptb")
    assert [" ".join(words) for words in found] == [line["tokenized"] for line in lines]


@pytest.mark.slow
@needs_java
@pytest.mark.parametrize("which", ["A", "B"])
def test_official_scores_from_raw_captions(golden, which):
    images = [str(i) for i in golden["image_order"]]
    told = golden["candidates"][which]
    found = score({i: told["captions"][i] for i in images}, golden["references"])
    assert found.official and "METEOR" in found.corpus
    check(found.corpus, found.per_image, told, images)


@needs_java
def test_a_line_end_inside_a_caption_moves_no_other_caption(golden):
    """The reference gives later captions the words of others; ours must not."""
    edge = golden["edge_carriage_return_shifts_lines"]
    found = tokenize([*edge["captions"], "one\u2028two", "one\x85two", ""], "ptb")
    assert len(found) == len(edge["captions"]) + 3
    assert [" ".join(w) for w in found] == [
        "first caption", "second one", "third caption", "fourth caption", "one two", "one two", "",
    ]  # fmt: skip
    assert "fourth caption" not in edge["tokenized"]  # the fault that this guards against
