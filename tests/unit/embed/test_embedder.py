"""What an embedder takes from each kind of model, and how it is pooled and stored."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diptych.data.batching.picture_loader import Item
from diptych.data.sample import Image, Sample, Text, Turn
from diptych.embed.embedder import EmbedConfig, Embedder, Vectors, pooled, stored
from diptych.embed.vector_index import Nearest
from diptych.errors import ConfigError
from diptych.model.architecture import config_from_dict
from diptych.model.folder import build
from tests.parity.test_dual_encoder import pictures

TEXTS = ("a red square", "two large blue squares and more", "yes")


def items():
    return [
        Item(
            Sample(str(n), (Turn("user", (Image(f"{n}.png", data),)),
                            Turn("assistant", (Text(text),)))),
            lambda image: image.data,
        )
        for n, (data, text) in enumerate(zip(pictures(), TEXTS, strict=False))
    ]  # fmt: skip


def embedded(model, rows=None, **settings):
    embedder = Embedder(model, EmbedConfig(**settings))
    prepared = embedder.prepare(rows or items())
    assert not prepared.rejected
    found = {}
    for batch in prepared.batches:
        vectors = embedder.embed(batch)
        found.update(zip(batch.sample_ids, vectors.numbers(), strict=True))
    return [found[key] for key in sorted(found)]


@pytest.fixture(params=["dual", "query", "captioner"])
def compared(request, tiny_dual, tiny_query, tiny_captioner):
    values = {"dual": lambda: tiny_dual("clip"), "query": tiny_query, "captioner": tiny_captioner}
    return build(config_from_dict(values[request.param]()), seed=1).eval()


def test_the_shared_space_is_the_one_the_model_compares_in(compared):
    shown = list(pictures())
    images = compared.encode_images(shown)
    if images.ndim == 3:  # several vectors a picture count by their mean, made a unit vector again
        images = torch.nn.functional.normalize(images.mean(1), dim=-1)
    torch.testing.assert_close(torch.tensor(np.stack(embedded(compared))), images)
    texts = torch.tensor(np.stack(embedded(compared, what="text")))
    torch.testing.assert_close(texts, compared.encode_texts(TEXTS))


def test_states_are_pooled_over_real_tokens_only(compared):
    """Alone or beside longer texts, a text has the same vector."""
    together = embedded(compared, what="text", space="states", pool="max")
    for n, item in enumerate(items()):
        (alone,) = embedded(compared, [item], what="text", space="states", pool="max")
        np.testing.assert_allclose(alone, together[n], atol=1e-5)


@pytest.mark.parametrize("what", ["image", "text", "multimodal"])
def test_a_language_model_gives_hidden_states(what, tiny_model):
    model = tiny_model().eval()
    last = embedded(model, what=what, space="states")
    assert all(abs(float(np.linalg.norm(v)) - 1) < 1e-5 for v in last)
    if what == "image":
        return
    first = embedded(model, what=what, space="states", layer=0)
    assert not np.allclose(first[0], last[0], atol=1e-3)
    for n, item in enumerate(items()):
        (alone,) = embedded(model, [item], what=what, space="states")
        np.testing.assert_allclose(alone, last[n], atol=1e-5)
    with pytest.raises(ConfigError, match="hidden states"):
        embedded(model, what=what, space="states", layer=99)


def test_pictures_change_what_is_multimodal_and_not_what_is_text(tiny_model):
    model = tiny_model().eval()
    rows = items()
    other = [Item(Sample(r.sample.id, (
        Turn("user", (Image("x.png", list(pictures())[2 - n]),)), r.sample.turns[1]
    )), r.read) for n, r in enumerate(rows)]  # fmt: skip
    both = [embedded(model, r, what="multimodal", space="states")[0] for r in (rows, other)]
    text = [embedded(model, r, what="text", space="states")[0] for r in (rows, other)]
    assert not np.allclose(*both, atol=1e-4)
    np.testing.assert_array_equal(*text)


def test_what_a_model_has_not_is_named(tiny_dual, tiny_query, tiny_model):
    dual = build(config_from_dict(tiny_dual("clip")))
    with pytest.raises(ConfigError, match="no multimodal"):
        Embedder(dual, EmbedConfig(what="multimodal"))
    for model in (tiny_model(), build(config_from_dict(tiny_query()))):
        with pytest.raises(ConfigError, match="no shared space"):
            embedded(model, what="multimodal", space="shared")


def test_pooling_by_hand():
    states = torch.tensor([[[1.0, 5.0], [3.0, -1.0], [9.0, 9.0]]])
    mask = torch.tensor([[1, 1, 0]])
    settings = {"normalize": False, "space": "states"}
    wanted = {"mean": [2.0, 2.0], "max": [3.0, 5.0], "cls": [1.0, 5.0]}
    for pool, expected in wanted.items():
        found = pooled(states, mask, EmbedConfig(pool=pool, **settings))
        assert found.tolist() == [expected], pool
    kept = stored(pooled(states, mask, EmbedConfig(pool="none", **settings)), mask, EmbedConfig())
    assert kept.values.tolist() == [[[1.0, 5.0], [3.0, -1.0], [0.0, 0.0]]]
    assert kept.lengths.tolist() == [2]


def test_what_has_no_direction_is_never_near():
    nearest = Nearest(np.array([[1.0, 0.0], [0.0, 1.0]], np.float32), 4)
    rows = np.array([[-1, 0], [0, 0], [np.nan, 1], [np.inf, 0], [-1, 1]], np.float32)
    nearest.add(rows, "abcde".__getitem__)
    first, second = nearest.found()
    assert [name for _, name in first] == ["e", "a"] and [name for _, name in second] == ["e", "a"]
    assert first[1][0] == pytest.approx(-1)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_vectors_without_a_direction_are_known(dtype):
    rows = torch.tensor([[1.0, -2.0], [0.0, 0.0], [torch.nan, 1.0], [torch.inf, 1.0], [1e-9, 0.0]])
    found = stored(rows, None, EmbedConfig(dtype=dtype))
    # In sixteen bits the last one is zero.
    assert found.directed().tolist() == [True, False, False, False, dtype != "float16"]
    assert found.take(found.directed()).numbers()[0].tolist() == pytest.approx([1, -2], abs=0.02)


def test_eight_bits_have_a_scale_a_vector():
    vectors = torch.tensor([[0.5, -1.0, 0.25], [0.0, 0.0, 0.0]])
    found = stored(vectors, None, EmbedConfig(dtype="int8"))
    assert found.values.dtype == np.int8 and found.values[0].tolist() == [64, -127, 32]
    assert found.scales.tolist() == pytest.approx([1 / 127, 1.0])
    np.testing.assert_allclose(found.numbers(), vectors.numpy(), atol=1 / 254)
    assert Vectors(np.ones((1, 2), np.float16)).numbers().dtype == np.float32
