"""Pictures of several tiles: everything that counts tokens asks the arrangement.

No tiling of Diptych cuts pictures yet; `halves.py` does, and shows that nothing general assumes one
array and one count a picture.
"""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
import torch
from PIL import Image as Pillow

import diptych
from diptych.convert.layout import export
from diptych.data.batching.budget import Budget
from diptych.data.batching.picture_loader import PictureLoader
from diptych.data.checking.index import Index
from diptych.data.sample import IMAGE_TOKEN, Image, Sample, Text, Turn
from diptych.embed.embedder import EmbedConfig, Embedder
from diptych.errors import ConfigError
from diptych.model.architectures.vlm import VlmConfig
from diptych.model.folder import build, save_model
from diptych.model.likelihood import log_likelihoods
from diptych.train import feature_cache
from tests.conftest import square
from tests.equivalence import tiny_run
from tests.equivalence.test_packing import items, losses_by_sample

TILING = {"name": "tests.equivalence.halves"}


def tall(colour: str) -> bytes:
    picture = Pillow.open(io.BytesIO(square(colour, seed=3))).resize((28, 56))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def sample(name: str, answer: str | None, *pictures: bytes) -> Sample:
    shown = [Image(f"{name}{n}.png", data) for n, data in enumerate(pictures)]
    turns = [Turn("user", (*shown, Text(f"{name}?")))]
    return Sample(name, (*turns, Turn("assistant", (Text(answer),))) if answer else tuple(turns))


SAMPLES = [
    sample("one", "red", tall("red")),
    sample("two", "it is blue", tall("red")),
    sample("three", "green and red", square("green"), tall("red")),
    sample("four", "nothing at all"),
    sample("five", "blue", square("blue")),
]
QUESTIONS = [replace(s, turns=s.turns[:1]) for s in SAMPLES]


def read(image):
    return image.data


@pytest.fixture
def values(tiny_config, monkeypatch):
    monkeypatch.setenv("DIPTYCH_PARTS", "tests")
    config = tiny_config()
    config["vision_encoder"]["image"]["tiling"] = TILING
    return config


@pytest.fixture
def model(values):
    return build(VlmConfig.from_dict(values), seed=0)


def test_tokens_follow_from_the_size(model):
    per_tile = model.arrangement.tokens_per_tile
    encode = model.chat_encoder.encode
    counts = [encode(s).tokens_of_images for s in SAMPLES]
    assert counts == [(3 * per_tile,), (3 * per_tile,), (per_tile, 3 * per_tile), (), (per_tile,)]
    assert [encode(s).ids.count(IMAGE_TOKEN) for s in SAMPLES] == [sum(c) for c in counts]
    assert [encode(s).num_tiles for s in SAMPLES] == [3, 3, 4, 0, 1]


@pytest.mark.parametrize("share", [True, False])
def test_packed_equals_alone(model, share):
    alone, _, _ = losses_by_sample(model, SAMPLES, packed=False)
    packed, _, prepared = losses_by_sample(model, SAMPLES, share_images=share, tokens_per_row=400)
    assert packed.keys() == alone.keys()
    for name, (loss, count) in alone.items():
        assert packed[name] == (pytest.approx(loss, abs=1e-5), count)
    [batch] = prepared.batches
    assert len(batch.pixel_values) == sum(map(len, batch.tiles))


def test_rows_hold_no_more_tiles_than_allowed(model):
    prepared = model.collator(Budget(tokens_per_row=400, tiles_per_row=4, share_images=False))(
        items(SAMPLES)
    )
    [batch] = prepared.batches
    assert len(batch.input_ids) == 3 and sum(map(len, batch.tiles)) == 11


def test_asking_together_equals_asking_alone(model):
    together = model.generate(QUESTIONS, max_new_tokens=8, images=read)
    alone = [model.generate([q], max_new_tokens=8, images=read)[0] for q in QUESTIONS]
    assert together == alone and any(together)
    choices = [["red", "blue"]] * len(QUESTIONS)
    sums = log_likelihoods(model, QUESTIONS, choices, images=read)
    for question, own in zip(QUESTIONS, sums, strict=True):
        [single] = log_likelihoods(model, [question], choices[:1], images=read)
        assert own == pytest.approx(single, abs=1e-4)


def test_a_chat_goes_on_as_one_that_is_read_anew(model):
    chat = model.chat(tall("red"), max_new_tokens=4)
    first = chat.ask("one")
    chat.show(square("green"))
    second = chat.ask("two")
    turns = (
        Turn("user", (Image("a", tall("red")), Text("one"))),
        Turn("assistant", (Text(first),)),
        Turn("user", (Image("b", square("green")), Text("two"))),
    )
    [fresh] = model.generate([Sample("", turns)], max_new_tokens=4, images=read)
    assert second.strip() == fresh


def test_an_index_knows_sizes_and_the_cache_has_rows_of_tiles(model, values, tmp_path):
    rows = []
    for number, data in enumerate([tall("red"), square("blue"), tall("green"), square("red")]):
        (tmp_path / f"{number}.png").write_bytes(data)
        turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "red"}]
        rows.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    index = Index.build(str(tmp_path / "rows.json"), tmp_path / "index")
    shown = [next(index[n].images()) for n in range(4)]
    assert [image.size for image in shown] == [(28, 56), (28, 28), (28, 56), (28, 28)]
    assert [model.arrangement.tiles_of(image) for image in shown] == [3, 1, 3, 1]
    pictures = [(image, index.image_bytes, None) for image in shown]
    given = {"num_visits": 9.0, "max_bytes": 2**30, "precision": "float32", "mode": "on"}
    feature_cache.prepare(model, pictures[:1], tmp_path, **given)
    cache = feature_cache.prepare(model, pictures, tmp_path, **given)
    assert len(cache) == 4 and cache.num_rows == 8
    for kept in (None, cache):
        prepared = model.collator(pictures=PictureLoader(model.preprocessing, kept))(
            [replace(item, read=index.image_bytes) for item in items(list(index))]
        )
        [batch] = prepared.batches
        assert (batch.features is None) == (kept is None) and sum(map(len, batch.tiles)) == 8
        losses = model.target_log_probs(batch)
        before = losses if kept is None else before  # noqa: F821
    assert torch.allclose(losses, before, atol=1e-5)
    stage = tiny_run.stage(tmp_path, learn={"connector": {}}, cache_features="on")
    stage["data"] = [{"path": str(tmp_path / "rows.json")}]
    tiny_run.run(tmp_path / "run", values, [stage])


def test_vectors_of_pictures_are_padded_and_masked(model):
    embedder = Embedder(model, EmbedConfig(what="image", space="states", pool="mean"))
    batch = embedder.prepare(items([SAMPLES[0], SAMPLES[4]])).batches[0]
    states, mask = model.represent("image", batch, space="states")
    per_tile = model.arrangement.tokens_per_tile
    assert states.shape[:2] == (2, 3 * per_tile) and mask.sum(1).tolist() == [
        3 * per_tile,
        per_tile,
    ]


def test_a_saved_model_cuts_as_before(model, tmp_path):
    save_model(model, tmp_path / "model")
    again = diptych.load(tmp_path / "model")
    assert again.arrangement == model.arrangement
    assert again.generate(QUESTIONS, max_new_tokens=6, images=read) == model.generate(
        QUESTIONS, max_new_tokens=6, images=read
    )


def test_a_layout_of_one_tile_a_picture_refuses_it(model, tmp_path):
    with pytest.raises(ConfigError, match="reads a picture as one tile"):
        export(model, "hf-llava", tmp_path / "out")
    assert not (tmp_path / "out").exists()
