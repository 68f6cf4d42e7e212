"""Pictures of several tiles: everything that counts tokens asks the arrangement.

Every tiling of Diptych, and one of the tests' own (`halves.py`), on a picture of 28 x 56 pixels and a
square of 28, read by an encoder of 28 x 28 with 4 x 4 patches.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace

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

HALVES = {"name": "tests.equivalence.halves"}


@dataclass(frozen=True)
class Case:
    """A tiling, and what it makes of the tall picture and of the square one."""

    tiling: dict
    tall: tuple[int, int]
    """Tiles, tokens."""
    flat: tuple[int, int]


CASES = {
    "halves": Case(HALVES, (3, 48), (1, 16)),
    "dynamic": Case({"name": "dynamic", "tile": 28, "max_tiles": 4}, (3, 48), (1, 16)),
    # 16 of the whole, and of the map 8 rows of 4 or, of a square in two tiles side by side, 4 of 4.
    "anyres": Case({"name": "anyres", "tile": 28}, (3, 56), (3, 36)),
    "split": Case({"name": "split", "tile": 28}, (3, 56), (2, 36)),
}


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


@pytest.fixture(params=CASES, ids=str)
def case(request):
    return CASES[request.param]


@pytest.fixture
def values(tiny_config, monkeypatch, case):
    monkeypatch.setenv("DIPTYCH_PARTS", "tests")
    config = tiny_config()
    config["vision_encoder"]["image"]["tiling"] = dict(case.tiling)
    return config


@pytest.fixture
def model(values):
    return build(VlmConfig.from_dict(values), seed=0)


def test_tokens_follow_from_the_size(model, case):
    (tiles, many), (one, few) = case.tall, case.flat
    encode = model.chat_encoder.encode
    counts = [encode(s).tokens_of_images for s in SAMPLES]
    assert counts == [(many,), (many,), (few, many), (), (few,)]
    assert [encode(s).ids.count(IMAGE_TOKEN) for s in SAMPLES] == [sum(c) for c in counts]
    assert [encode(s).num_tiles for s in SAMPLES] == [tiles, tiles, one + tiles, 0, one]


@pytest.mark.parametrize("share", [True, False])
def test_packed_equals_alone(model, share):
    alone, _, _ = losses_by_sample(model, SAMPLES, packed=False)
    packed, _, prepared = losses_by_sample(model, SAMPLES, share_images=share, tokens_per_row=400)
    assert packed.keys() == alone.keys()
    for name, (loss, count) in alone.items():
        assert packed[name] == (pytest.approx(loss, abs=1e-5), count)
    [batch] = prepared.batches
    assert len(batch.pixel_values) == sum(map(len, batch.tiles))


def test_rows_hold_no_more_tiles_than_allowed(model, case):
    most = case.tall[0] + case.flat[0]
    budget = Budget(tokens_per_row=400, tiles_per_row=most, share_images=False)
    [batch] = model.collator(budget)(items(SAMPLES)).batches
    of_pictures = [len(t) for t in batch.tiles]
    assert sum(of_pictures) == 3 * case.tall[0] + 2 * case.flat[0]
    assert len(batch.input_ids) == 3


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


def test_an_index_knows_sizes_and_the_cache_has_rows_of_tiles(model, values, case, tmp_path):
    rows = []
    for number, data in enumerate([tall("red"), square("blue"), tall("green"), square("red")]):
        (tmp_path / f"{number}.png").write_bytes(data)
        turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "red"}]
        rows.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    index = Index.build(str(tmp_path / "rows.json"), tmp_path / "index")
    shown = [next(index[n].images()) for n in range(4)]
    assert [image.size for image in shown] == [(28, 56), (28, 28), (28, 56), (28, 28)]
    tiles = [case.tall[0], case.flat[0]] * 2
    assert [model.arrangement.tiles_of(image) for image in shown] == tiles
    pictures = [(image, index.image_bytes, None, None) for image in shown]
    given = {"num_visits": 9.0, "max_bytes": 2**30, "precision": "float32", "mode": "on"}
    feature_cache.prepare(model, pictures[:1], tmp_path, **given)
    cache = feature_cache.prepare(model, pictures, tmp_path, **given)
    assert len(cache) == 4 and cache.num_rows == sum(tiles)
    for kept in (None, cache):
        prepared = model.collator(pictures=PictureLoader(model.preprocessing, kept))(
            [replace(item, read=index.image_bytes) for item in items(list(index))]
        )
        [batch] = prepared.batches
        assert (batch.features is None) == (kept is None) and sum(map(len, batch.tiles)) == sum(
            tiles
        )
        losses = model.target_log_probs(batch)
        before = losses if kept is None else before  # noqa: F821
    assert torch.allclose(losses, before, atol=1e-5)
    stage = tiny_run.stage(tmp_path, learn={"connector": {}}, cache_features="on")
    stage["data"] = [{"path": str(tmp_path / "rows.json")}]
    tiny_run.run(tmp_path / "run", values, [stage])


def test_vectors_of_pictures_are_padded_and_masked(model, case):
    embedder = Embedder(model, EmbedConfig(what="image", space="states", pool="mean"))
    batch = embedder.prepare(items([SAMPLES[0], SAMPLES[4]])).batches[0]
    states, mask = model.represent("image", batch, space="states")
    assert states.shape[:2] == (2, case.tall[1])
    assert mask.sum(1).tolist() == [case.tall[1], case.flat[1]]


def test_a_saved_model_cuts_as_before(model, tmp_path):
    save_model(model, tmp_path / "model")
    again = diptych.load(tmp_path / "model")
    assert again.arrangement == model.arrangement
    assert again.generate(QUESTIONS, max_new_tokens=6, images=read) == model.generate(
        QUESTIONS, max_new_tokens=6, images=read
    )


def test_a_layout_of_one_tile_a_picture_refuses_it(model, tmp_path):
    with pytest.raises(ConfigError, match="reads pictures cut by single"):
        export(model, "hf-llava", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_token_that_ends_rows_learns_with_the_connector(model, case):
    ends = case.tiling["name"] in ("anyres", "split")
    assert (model.connector.row_end is not None) == ends
    if not ends:
        return
    prepared = model.collator(Budget(tokens_per_row=400))(items(SAMPLES))
    model.target_log_probs(prepared.batches[0]).sum().backward()
    assert model.connector.row_end.grad.abs().sum() > 0


def test_a_neighbour_s_tiles_change_nothing(model):
    """Other tiles in the row, and the same answers to the last."""
    alone, _, _ = losses_by_sample(model, SAMPLES[:1], packed=False)
    for others in (SAMPLES[2:3], SAMPLES[2:], [SAMPLES[4]] * 2):
        among, _, _ = losses_by_sample(model, [SAMPLES[0], *others[:1]], tokens_per_row=400)
        assert among["one"] == (pytest.approx(alone["one"][0], abs=1e-5), alone["one"][1])


def test_a_connector_without_places_cannot_merge_tiles(tiny_config):
    config = tiny_config({"name": "resampler", "num_queries": 4})
    config["vision_encoder"]["image"]["tiling"] = CASES["anyres"].tiling
    with pytest.raises(ConfigError, match="do not stand for places"):
        build(VlmConfig.from_dict(config), seed=0)


def test_tiles_of_another_size_than_the_encoder_reads_are_refused(tiny_config):
    config = tiny_config()
    config["vision_encoder"]["image"]["tiling"] = {"name": "dynamic"}
    with pytest.raises(ConfigError, match="tiles of 448 pixels are read by an encoder of 28 x 28"):
        VlmConfig.from_dict(config)


SHARED = [
    sample("six", "two", tall("red"), tall("green")),
    sample("seven", "red", tall("red")),
    sample("eight", "four", *(tall(c) for c in ("red", "blue", "green", "red"))),
]


@pytest.fixture
def sharing(values):
    values["vision_encoder"]["image"]["tiling"]["tiles_per_sample"] = 4
    return build(VlmConfig.from_dict(values), seed=0)


def test_pictures_of_a_sample_share_its_tiles(sharing):
    collate = sharing.collator(Budget(tokens_per_row=400, share_images=False))
    tiles = [sharing.chat_encoder.encode(s).num_tiles for s in SHARED]
    assert max(tiles) <= 4 and tiles[2] == 4
    prepared = collate(items(SHARED))
    [batch] = prepared.batches
    assert sum(map(len, batch.tiles)) == sum(tiles) == len(batch.pixel_values)
    assert list(prepared.notes.values()) == [6]  # of two and four; the one alone is as it was
    sharing.target_log_probs(batch)


def test_sharing_tiles_packed_equals_alone_and_cached(sharing, tmp_path):
    alone, _, _ = losses_by_sample(sharing, SHARED, packed=False)
    packed, _, _ = losses_by_sample(sharing, SHARED, tokens_per_row=400)
    for name, (loss, count) in alone.items():
        assert packed[name] == (pytest.approx(loss, abs=1e-5), count)
    share = sharing.preprocessing.tiles.share
    pictures = [
        (image, read, None, share(len(list(s.images())))) for s in SHARED for image in s.images()
    ]
    cache = feature_cache.prepare(
        sharing, pictures, tmp_path, num_visits=9.0, max_bytes=2**30, precision="float32", mode="on"
    )
    assert len(cache) == 6  # two, one, and three different ones of four
    kept = sharing.collator(Budget(tokens_per_row=400), PictureLoader(sharing.preprocessing, cache))
    [batch] = kept(items(SHARED)).batches
    assert batch.features is not None
    [fresh] = sharing.collator(Budget(tokens_per_row=400))(items(SHARED)).batches
    assert torch.allclose(
        sharing.target_log_probs(batch), sharing.target_log_probs(fresh), atol=1e-5
    )


def test_a_chat_shares_tiles_anew_with_every_picture(sharing):
    chat = sharing.chat(tall("red"), max_new_tokens=4)
    first = chat.ask("one")
    chat.show(tall("green"))
    second = chat.ask("two")
    turns = (
        Turn("user", (Image("a", tall("red")), Text("one"))),
        Turn("assistant", (Text(first),)),
        Turn("user", (Image("b", tall("green")), Text("two"))),
    )
    [fresh] = sharing.generate([Sample("", turns)], max_new_tokens=4, images=read)
    assert second.strip() == fresh


def test_an_encoder_that_rests_looks_at_few_tiles_at_once(model, monkeypatch):
    from diptych.model import architecture

    [batch] = model.collator(Budget(tokens_per_row=400))(items(SAMPLES)).batches
    whole = model.encode_pixels(batch.pixel_values).detach()
    seen = []
    features = type(model)._features
    monkeypatch.setattr(
        type(model), "_features", lambda self, p: seen.append(len(p)) or features(self, p)
    )
    monkeypatch.setattr(architecture, "TILES_AT_ONCE", 2)
    for parameter in model.vision_encoder.parameters():
        parameter.requires_grad_(False)
    few = model.encode_pixels(batch.pixel_values)
    assert max(seen) == 2 and sum(seen) == len(batch.pixel_values)
    assert torch.allclose(few, whole, atol=1e-6)


def sliver(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Pillow.new("RGB", (width, height), "red").save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("size", [(1, 4000), (20000, 1), (1, 1)])
def test_pictures_of_extreme_proportions_are_read(model, size):
    """Few tiles of the encoder's size, however long a picture is; as many tokens as announced."""
    [batch] = model.collator(Budget())(items([sample("long", "red", sliver(*size))])).batches
    assert len(batch.pixel_values) == len(batch.tiles[0]) <= 13
    assert batch.pixel_values.shape[2:] == (28, 28)
    assert torch.isfinite(model.target_log_probs(batch)).all()


def test_pictures_that_alone_exceed_the_context_are_rejected_with_numbers(model):
    many = sample("many", "red", *[tall("red")] * 12)
    counts = model.chat_encoder.encode(many).tokens_of_images
    for how in ("reject", "truncate"):
        budget = Budget(context_tokens=128, long_samples=how)
        prepared = model.collator(budget)(items([many, SAMPLES[3]]))
        [(name, error)] = prepared.rejected
        assert (name, error["error"]) == ("many", "SampleTooLong")
        assert str(len(model.chat_encoder.encode(many))) in error["message"] and sum(counts) > 128
        assert prepared.used == ["four"] and not prepared.truncated


@pytest.mark.parametrize("name", ["llava-next-debug", "internvl-debug", "llava15-hd-debug"])
def test_a_plan_says_what_a_picture_of_usual_size_takes(name, tokenizer_folder):
    from diptych.cli.plan import TYPICAL, plan
    from diptych.cli.show import plan_table
    from diptych.recipe import load

    recipe = load(name).override([f"model.language_model.tokenizer={tokenizer_folder}"])
    model = build(recipe.model, seed=0)
    planned = plan(recipe)
    picture = Image("a", size=TYPICAL)
    assert planned["tiles_per_image"] == model.arrangement.tiles_of(picture) > 1
    assert planned["tokens_per_image"] == model.arrangement.tokens_of(picture)
    assert planned["tokens_per_tile"] == model.tokens_per_image
    about = str(plan_table(planned).renderables[1])
    assert f"{planned['tiles_per_image']} tiles, {planned['tokens_per_image']} tokens" in about
