"""Retrieval of a data set: ranks, controls, intervals, examples."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diptych.data.sample import Image, Sample, Text, Turn
from diptych.errors import ConfigError, DataError
from diptych.eval.result import Result
from diptych.eval.retriever import IMAGE_TO_TEXT, TEXT_TO_IMAGE, retrieve


def pair(number: int, image: str, text: str) -> Sample:
    shown = (Turn("user", (Image(image),)), Turn("assistant", (Text(text),)))
    return Sample(str(number), shown if image else shown[1:], source=f"rows:{number}")


class Fake:
    """Vectors by name, so that similarities are known."""

    can = ("compare",)

    def __init__(self, images: dict, texts: dict):
        self.images, self.texts = images, texts

    def encode_images(self, images):
        return torch.tensor([self.images[data.decode()] for data in images])

    def encode_texts(self, texts):
        return torch.tensor([self.texts[t] for t in texts])

    def compare(self, images, texts):
        return images @ texts.T


SAMPLES = [pair(0, "a", "a1"), pair(1, "a", "a2"), pair(2, "b", "b1"), pair(3, "c", "c1")]
MODEL = Fake(
    {"a": [1.0, 0.0, 0.0], "b": [0.0, 1.0, 0.0], "c": [0.0, 0.0, 1.0]},
    {"a1": [0.2, 0.9, 0.0], "a2": [0.9, 0.1, 0.0], "b1": [0.3, 0.8, 0.4], "c1": [0.0, 0.5, 0.4]},
)


def found(**settings):
    return retrieve(MODEL, SAMPLES, images=lambda image: image.path.encode(), **settings)


def test_recall_both_ways_with_several_texts_a_picture():
    result, _ = found()
    # a: its best text a2 is first. b: a1 stands before b1. c: b1 and c1 tie at 0.4.
    kinds = result.by_kind
    assert kinds["image to text, recall@1"].score == pytest.approx(1 / 3)
    # a1 goes to b, a2 to a, b1 to b, c1 to b.
    assert kinds["text to image, recall@1"].score == pytest.approx(2 / 4)
    assert result.score == pytest.approx(3 / 7) and result.n == 7
    assert kinds["text to image, recall@5"].score == 1.0
    assert result.aggregates["text_retrieval_recall@1"] == pytest.approx(1 / 3)
    assert result.low <= result.score <= result.high


def test_chance_is_what_a_random_order_gets():
    kinds = found()[0].by_kind
    assert kinds["text to image, recall@1"].majority == pytest.approx(1 / 3)
    # Of four texts two belong to a, one each to b and c.
    assert kinds["image to text, recall@1"].majority == pytest.approx((2 / 4 + 1 / 4 + 1 / 4) / 3)
    assert kinds["image to text, recall@5"].majority == 1.0


def test_examples_mark_the_right_one():
    examples = found(num_examples=3)[1].examples
    ways = {
        kind: [e for e in examples if e.kind == kind] for kind in (IMAGE_TO_TEXT, TEXT_TO_IMAGE)
    }
    assert all(len(e) == 3 for e in ways.values())
    first = next(e for e in ways[IMAGE_TO_TEXT] if e.query == "a")
    assert first.found[0] == ("a2", True) and first.rank == 1
    assert {text for text, right in first.found if right} == {"a1", "a2"}


def test_it_is_a_result_like_any_other(tmp_path):
    result, _ = found()
    result.save(tmp_path)
    again = Result.load(tmp_path)
    assert again.by_kind == result.by_kind and again.majority_from == "chance"
    assert len({r.id for r in again.records}) == 7


class Matching(Fake):
    """Knows what belongs together when asked about a pair; counts the questions."""

    can = ("compare", "match")
    asked: list = []

    def match_scores(self, images, texts, pairs, *, logits):
        assert logits
        self.asked.append(list(pairs))
        return torch.tensor([float(images[i].decode() == texts[t][0]) for i, t in pairs])


def test_the_first_are_put_in_order_again_by_the_matching_head():
    model = Matching(MODEL.images, MODEL.texts)
    model.asked = []
    deep, _ = retrieve(model, SAMPLES, images=lambda i: i.path.encode(), rerank=4)
    assert deep.score == 1.0
    assert [len(p) for p in model.asked] == [3 * 4, 4 * 3]
    # Only the first find of each is asked about: the order of the others stays.
    one, _ = retrieve(model, SAMPLES, images=lambda i: i.path.encode(), rerank=1)
    assert (
        one.by_kind["text to image, recall@1"].score
        == found()[0].by_kind["text to image, recall@1"].score
    )
    with pytest.raises(ConfigError, match="no matching head"):
        found(rerank=2)


def test_a_limit_draws_pictures_with_all_their_texts():
    result, _ = found(limit=2)
    assert result.n == 2 + sum(r.kind.startswith("text") for r in result.records)
    assert found(limit=2)[0].records == result.records


@pytest.mark.parametrize("bad", [pair(9, "", "text"), pair(9, "d", " ")])
def test_a_row_that_is_no_pair_is_named(bad):
    with pytest.raises(DataError, match="sample '9'"):
        retrieve(MODEL, [*SAMPLES, bad], images=lambda image: b"a")


def test_a_list_of_captions_is_a_text_each():
    rows = [pair(0, "a", "a1"), pair(1, "b", "b1")]
    rows = [replace(rows[0], meta={"answers": ["a1", "a2"]}), rows[1]]
    result, _ = retrieve(MODEL, rows, images=lambda image: image.path.encode())
    apart, _ = retrieve(
        MODEL, [pair(0, "a", "a1"), pair(1, "a", "a2"), pair(2, "b", "b1")],
        images=lambda image: image.path.encode(),
    )  # fmt: skip
    assert result.by_kind["text to image, recall@1"].n == 3
    assert result.by_kind == apart.by_kind and result.aggregates == apart.aggregates


class Counting(Fake):
    """Remembers how much was compared at once, and all in all."""

    def __init__(self, images, texts):
        super().__init__(images, texts)
        self.blocks: list[int] = []
        self.encoded = 0

    def encode_texts(self, texts):
        texts = list(texts)
        self.encoded += len(texts)
        return super().encode_texts(texts)

    def compare(self, images, texts):
        self.blocks.append(len(images) * len(texts))
        return super().compare(images, texts)


def test_every_pair_is_compared_twice_in_blocks_and_none_is_kept(monkeypatch):
    count = 120
    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(6 * count, 8, generator=generator), dim=1)
    images = {f"p{i}": vectors[i].tolist() for i in range(count)}
    texts = {f"t{n}": vectors[count + n].tolist() for n in range(5 * count)}
    rows = [pair(n, f"p{n // 5}", f"t{n}") for n in range(5 * count)]
    asked = {"images": lambda image: image.path.encode(), "num_examples": 4}
    whole = Counting(images, texts)
    expected, _ = retrieve(whole, rows, **asked)
    for module in ("retrieval", "retriever"):
        monkeypatch.setattr(f"diptych.eval.{module}.BLOCK_ELEMENTS", 5000)
    model = Counting(images, texts)
    result, _ = retrieve(model, rows, **asked)
    assert result.records == expected.records and result.by_kind == expected.by_kind
    assert max(model.blocks) <= 5000
    assert sum(model.blocks) == 2 * count * 5 * count + 4 * 5 * count + 4 * count


def test_the_same_text_and_the_same_picture_are_encoded_once_and_tie():
    rows = [pair(0, "a", "a2"), pair(1, "b", "b1"), pair(2, "c", "a2"), pair(3, "copy", "c1")]
    images = {"a": "a", "copy": "a", "b": "b", "c": "c"}
    model = Counting(MODEL.images, MODEL.texts)
    result, _ = retrieve(model, rows, images=lambda image: images[image.path].encode())
    assert model.encoded == 3
    ranks = {r.question: r.score for r in result.records if r.kind.startswith("text")}
    assert ranks["a2"] == 0.0  # two texts that nobody can tell apart, two pictures as well
    # What is shown as found is a wrong one where the right one is not counted as found.
    found = [r for r in result.records if r.kind.startswith("text") and r.score == 0]
    assert found and all(r.output != r.truth for r in found)


def test_a_model_that_says_the_same_of_everything_finds_nothing():
    same = [1.0, 0.0]
    flat = Fake({name: same for name in "abc"}, {text: same for text in MODEL.texts})
    result, shown = retrieve(flat, SAMPLES, images=lambda image: image.path.encode())
    assert result.score == 0.0 and result.gain.score < 0
    assert not any(example.found[0][1] for example in shown.examples)


@pytest.mark.parametrize("rerank", [None, 2])
def test_a_similarity_that_is_no_number_is_refused(rerank):
    broken = Matching({**MODEL.images, "b": [float("nan")] * 3}, MODEL.texts)
    with pytest.raises(ConfigError, match="not a number"):
        retrieve(broken, SAMPLES, images=lambda image: image.path.encode(), rerank=rerank)
