"""Recall of retrieval: ties, several texts a picture, bad input."""

from __future__ import annotations

import pytest
import torch

from diptych.errors import ConfigError
from diptych.eval.retrieval import ranked, ranks


def test_two_texts_of_a_picture_do_not_stand_in_each_others_way():
    similarity = torch.tensor([[0.9, 0.8, 0.1], [0.7, 0.95, 0.6]])
    found = ranks(similarity, [0, 0, 1])
    assert found.image_of_text.tolist() == [0, 1, 0]
    assert found.text_of_image.tolist() == [0, 2]
    assert found.recall(1) == {
        "image_retrieval_recall@1": pytest.approx(2 / 3),
        "text_retrieval_recall@1": 0.5,
    }


def test_a_model_that_says_the_same_of_everything_finds_nothing():
    found = ranks(torch.ones(4, 4), range(4))
    assert found.recall(1) == {"image_retrieval_recall@1": 0, "text_retrieval_recall@1": 0}
    assert found.recall(4) == {"image_retrieval_recall@4": 1, "text_retrieval_recall@4": 1}


@pytest.mark.parametrize(
    ("similarity", "owners", "message"),
    [
        (torch.ones(2, 3), [0, 1], "3 columns"),
        (torch.ones(2, 2), [0, 2], "not among the 2"),
        (torch.ones(2, 2), [0, 0], "1 pictures have no text, the first is row 1"),
        (torch.full((2, 2), torch.nan), [0, 1], "not a number"),
    ],
)
def test_bad_input_is_named(similarity, owners, message):
    with pytest.raises(ConfigError, match=message):
        ranks(similarity, owners)


@pytest.mark.parametrize("num_targets", [7, 256, 300, 700])
@pytest.mark.parametrize("transposed", [False, True])
def test_ranks_in_blocks_are_those_of_the_definition(monkeypatch, num_targets, transposed):
    """Against counting one by one, with many ties, several right targets and infinities."""
    monkeypatch.setattr("diptych.eval.retrieval.BLOCK_ELEMENTS", 3 * num_targets)
    generator = torch.Generator().manual_seed(num_targets)
    scores = torch.randint(0, 6, (20, num_targets), generator=generator).float()
    scores[0] = 1.0
    scores[1, 3] = torch.inf
    scores[2] = -torch.inf
    right = [
        torch.randperm(num_targets, generator=generator)[: 1 + q % 3].tolist() for q in range(20)
    ]
    held = scores.T.contiguous().T if transposed else scores
    places, first = ranked(lambda a, b: held[a:b], right, num_targets)
    for q, own in enumerate(right):
        best = max(float(scores[q, t]) for t in own)
        wrong = [t for t in range(num_targets) if t not in own]
        assert places[q] == sum(float(scores[q, t]) >= best for t in wrong)
        shown = int(first[q])
        assert (shown in own) == (places[q] == 0)
        assert scores[q, shown] == (best if shown in own else scores[q, wrong].max())
