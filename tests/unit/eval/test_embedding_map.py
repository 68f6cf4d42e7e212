"""The map of a shared space: neighbours stay neighbours, and it is the same every time."""

from __future__ import annotations

import pytest
import torch

from diptych.eval.embedding_map import MAX_PAIRS, Vectors, draw


def vectors(count=40, noise=0.05, several=False):
    """Pairs in four tight groups; a text lies beside its picture."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(8)[:4].repeat_interleave(count // 4, 0)
    images = centres + noise * torch.randn(count, 8, generator=generator)
    texts = images + 0.01 * torch.randn(count, 8, generator=generator)
    names = [f"{n}.png" for n in range(count)]
    if several:
        images = images[:, None].expand(-1, 3, -1)
    return Vectors(images, texts, range(count), names, [f"text {n}" for n in range(count)])


@pytest.mark.parametrize("several", [False, True])
def test_groups_stay_together_and_coordinates_fit_the_box(several):
    found = draw(vectors(several=several))
    assert len(found["pairs"]) == 40 and found["share_nearest"] > 0.8
    places = torch.tensor([p["image_at"] for p in found["pairs"]])
    assert places.min() >= 0 and places.max() <= 1
    middles = places.view(4, 10, 2).mean(1)
    within = (places.view(4, 10, 2) - middles[:, None]).norm(dim=-1).mean()
    between = torch.pdist(middles).min()
    assert between > 2 * within
    texts = torch.tensor([p["text_at"] for p in found["pairs"]])
    assert (places - texts).norm(dim=-1).mean() < 0.5 * torch.pdist(places).mean()


def test_the_same_map_every_time_and_only_so_many_pairs():
    assert draw(vectors(), seed=3) == draw(vectors(), seed=3)
    assert len(draw(vectors(count=MAX_PAIRS + 150))["pairs"]) == MAX_PAIRS


def test_a_picture_with_several_texts_is_shown_with_its_first():
    given = vectors()
    owners = [n // 2 for n in range(40)]
    found = draw(Vectors(given.images[:20], given.texts, owners, given.names[:20], given.written))
    assert [p["text"] for p in found["pairs"]] == [f"text {n}" for n in range(0, 40, 2)]


def test_two_pairs_are_enough():
    few = vectors()
    found = draw(Vectors(few.images[:2], few.texts[:2], [0, 1], few.names[:2], few.written[:2]))
    assert len(found["pairs"]) == 2
