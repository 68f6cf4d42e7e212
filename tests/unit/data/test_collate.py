"""From samples to tensors: every target at its place, every sample accounted for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diptych.data.batching.budget import Budget
from diptych.data.batching.collate import TokenCollator, split_answer
from diptych.data.batching.collate_pairs import PairCollator
from diptych.data.batching.picture_loader import Item, PictureLoader, Shown
from diptych.data.pixels.augment import Augment
from diptych.data.pixels.image import decode
from diptych.data.pixels.preprocessing import Preprocessing, _levels_on
from diptych.data.pixels.tilings.single import Config as Single
from diptych.data.sample import IMAGE_TOKEN, Image, Sample, Text, Turn
from diptych.data.text.chat import ChatEncoder
from diptych.errors import MissingImage, ModelError
from diptych.model.arrangement import Arrangement
from tests.conftest import square

K = 4
FILES = {"red.png": square("red"), "copy of red.png": square("red"), "blue.png": square("blue")}


def read(image: Image) -> bytes:
    try:
        return FILES[image.path]
    except KeyError:
        raise MissingImage("there is no such picture", where=image.path) from None


def item(id: str, picture: str | None, question: str, answer: str) -> Item:
    shown = () if picture is None else (Image(picture),)
    turns = (Turn("user", (*shown, Text(question))), Turn("assistant", (Text(answer),)))
    return Item(Sample(id, turns, f"rows.json:{id}"), read)


@pytest.fixture(scope="module")
def make(tokenizer_folder):
    from transformers import AutoTokenizer

    encoder = ChatEncoder(AutoTokenizer.from_pretrained(tokenizer_folder), "chatml", Arrangement(K))

    def collator(**settings) -> TokenCollator:
        given = {"context_tokens": 200, "tokens_per_row": 200, "tiles_per_row": 8}
        pictures = PictureLoader(Preprocessing(size=(8, 8)))
        others = {
            k: v for k, v in settings.items() if k in ("seq2seq", "decoder_start", "text_dim")
        }
        limits = {k: v for k, v in settings.items() if k not in others}
        return TokenCollator(
            encoder, pictures, Budget(rows_per_batch=2, **{**given, **limits}), **others
        )

    return collator


ITEMS = [
    item("a", "red.png", "what is it", "a square"),
    item("b", "copy of red.png", "which colour", "red"),
    item("c", "blue.png", "which colour", "blue"),
    item("d", None, "hello", "hello to you"),
]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_what_predicts_a_target_is_the_token_before_it(make, share, packed):
    collator = make(share_images=share, packed=packed)
    prepared = collator(ITEMS)
    answers = {i.sample.id: split_answer(collator.fit(i.sample))[1] for i in ITEMS}
    whole = {i.sample.id: list(collator.fit(i.sample).ids) for i in ITEMS}
    found: dict[str, list[int]] = {}
    for batch in prepared.batches:
        columns = batch.input_ids.shape[1]
        for position, token, whose in zip(
            batch.target_positions.tolist(), batch.target_ids.tolist(),
            batch.target_samples.tolist(), strict=True,
        ):  # fmt: skip
            id = batch.sample_ids[whose]
            row, column = divmod(position, columns)
            assert batch.segment_ids[row, column] > 0, "a target behind padding"
            at = int(batch.position_ids[row, column])
            assert whole[id][at] == batch.input_ids[row, column]
            assert whole[id][at + 1] == token
            found.setdefault(id, []).append(token)
    assert {id: tokens[: len(answers[id])] for id, tokens in found.items()} == answers
    assert prepared.num_targets == sum(map(len, found.values()))


def test_equal_pictures_under_two_names_are_decoded_once_and_shared(make):
    batch = make()(ITEMS).batches[0]
    assert len(set(batch.image_keys)) == len(batch.image_keys) == 2
    assert batch.pixel_values.shape == (2, 3, 8, 8)
    assert int((batch.input_ids == IMAGE_TOKEN).sum()) == 2 * K
    alone = make(share_images=False)(ITEMS)
    assert sum(int((b.input_ids == IMAGE_TOKEN).sum()) for b in alone.batches) == 3 * K
    assert [len(b.image_keys) for b in alone.batches] == [3]


def test_padding_is_zero_in_every_tensor(make):
    batch = make(packed=False)(ITEMS).batches[1]  # with a picture, and without
    padding = batch.segment_ids == 0
    assert padding.any()
    for values in (batch.input_ids, batch.position_ids, batch.prefix_ids):
        assert not values[padding].any()


def test_every_sample_is_used_or_rejected_with_its_reason(make):
    gone = item("e", "gone.png", "what is it", "nothing")
    long = item("f", None, "hello " * 300, "hello")
    prepared = make()([*ITEMS, gone, long])
    assert prepared.used == ["a", "b", "c", "d"]
    assert {id: error["error"] for id, error in prepared.rejected} == {
        "e": "MissingImage", "f": "SampleTooLong",
    }  # fmt: skip
    assert sorted(i for b in prepared.batches for i in b.sample_ids) == prepared.used


def test_a_truncated_sample_says_how_much_was_cut(make):
    collator = make(long_samples="truncate", context_tokens=30)
    long = item("f", None, "hello", "hello to you " * 20)
    prepared = collator([long])
    ((id, cut),) = prepared.truncated
    assert id == "f" and prepared.used == ["f"] and not prepared.rejected
    assert cut == len(make().encoder.encode(long.sample)) - 30
    assert prepared.batches[0].input_ids.shape == (1, 30)


def test_nothing_left_is_no_batch(make):
    prepared = make()([item("e", "gone.png", "what is it", "nothing")])
    assert not prepared.batches and not prepared.used and len(prepared.rejected) == 1


def test_an_encoder_decoder_reads_the_prompt_and_writes_the_answer(make):
    collator = make(seq2seq=True, decoder_start=7)
    (first, second) = collator(ITEMS).batches
    batch_rows = [(b, n) for b in (first, second) for n in range(len(b.sample_ids))]
    assert [b.sample_ids[n] for b, n in batch_rows] == ["a", "b", "c", "d"]
    for (batch, row), given in zip(batch_rows, ITEMS, strict=True):
        prompt, answer = split_answer(collator.fit(given.sample))
        seen = batch.encoder_ids[row][batch.encoder_mask[row].bool()].tolist()
        assert seen == prompt
        assert batch.input_ids[row, : len(answer)].tolist() == [7, *answer[:-1]]
        own = batch.target_ids[batch.target_samples == row]
        assert torch.equal(own, torch.tensor(answer))


def test_of_a_list_of_captions_training_draws_one_a_visit(make):
    texts = ["one", "two", "three"]
    turns = (Turn("user", ()), Turn("assistant", (Text("one"),)))
    sample = Sample("1", turns, meta={"answers": texts})
    items = [Item(sample, lambda image: b"", visit) for visit in range(40)]
    pictures = PictureLoader(Preprocessing(resize="exact", size=(8, 8)))
    drawn = PairCollator(pictures, needs=("text",), draws=True)
    first = drawn(items).batches[0].texts
    assert set(first) == set(texts) and drawn(items).batches[0].texts == first
    # What is embedded or asked has its first caption.
    alone = PairCollator(pictures, needs=("text",))(items).batches[0].texts
    assert set(alone) == {"one"}


@pytest.mark.parametrize("names", [("red", "blue"), ("blue", "red")], ids=str)
def test_a_batch_has_pixels_or_features_never_both(make, names):
    """A picture that the feature cache does not hold arrives as pixels."""

    class Half:
        held: tuple[str, ...] = ()

        def get(self, key):
            tiles = Single().plan(8, 8)
            return Shown(np.zeros((1, 4, 8), np.float32), tiles) if key in self.held else None

    data = {name: square(name) for name in names}
    items = [
        Item(
            Sample(n, [Turn("user", [Image(n), Text("?")]), Turn("assistant", [Text("a")])]),
            lambda image: data[image.path],
        )
        for n in names
    ]
    collator = make()
    cache = collator.pictures.features = Half()
    (pixels,) = collator(items).batches
    assert pixels.features is None and pixels.pixel_values.shape[0] == 2
    cache.held = pixels.image_keys
    (features,) = collator(items).batches
    assert features.pixel_values is None and features.features.shape == (2, 4, 8)
    cache.held = pixels.image_keys[:1]
    with pytest.raises(ModelError, match="the feature cache holds 1 of the 2 pictures") as caught:
        collator(items)
    assert caught.value.where == pixels.image_keys[1]


def test_threads_decode_the_same_pictures(make):
    """Equal bytes once, the first visit's variation, and each error at the samples that show it."""
    names = [*FILES, "broken.png", "red.png", "broken.png", "missing.png", None]
    FILES["broken.png"] = b"no picture"
    items = [item(str(n), name, "what is it", "a square") for n, name in enumerate(names)]
    items = [Item(i.sample, i.read, visit) for visit, i in enumerate(items)]
    settings = Preprocessing(resize="exact", size=(8, 8))
    found = [
        PictureLoader(settings, augment=Augment(flip=0.5, min_area=0.5), num_threads=n).load(items)
        for n in (1, 3)
    ]
    del FILES["broken.png"]
    for keys, arrays, errors in found:
        assert keys[0] == keys[1] == keys[4] != keys[2] and keys[7] == [] and keys[6] == []
        assert {n: type(e).__name__ for n, e in errors.items()} == {
            3: "NotAnImage", 5: "NotAnImage", 6: "MissingImage",
        }  # fmt: skip
        assert len(arrays) == 2 and all(a.array.dtype == np.uint8 for a in arrays.values())
    assert found[0][0] == found[1][0]
    assert all(np.array_equal(a.array, found[1][1][key].array) for key, a in found[0][1].items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vision", ["clip_vision_model", "resnet"])
def test_levels_are_scaled_where_the_model_is(vision, dtype, tiny_model):
    """The encoder reads uint8 and says what it says of the normalised picture, bit for bit."""
    model = tiny_model(vision=vision).to(dtype)
    settings = model.preprocessing
    shown = [decode(square(name)) for name in ("red", "blue")]
    levels = torch.from_numpy(np.stack([settings.pixels(p) for p in shown]))
    pixels = torch.from_numpy(np.stack([settings.apply(p) for p in shown]))
    assert levels.dtype == torch.uint8 and pixels.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(model.encode_pixels(levels), model.encode_pixels(pixels))
    # As the loader does it where a CPU trains.
    item = Item(Sample("a", [Turn("user", [Image("red.png")])]), read)
    for scaled, expected in ((True, pixels), (False, levels)):
        (array,) = PictureLoader(settings, scaled=scaled).load([item])[1].values()
        assert np.array_equal(array.array, expected[:1].numpy())
    # As another device would look them up.
    flat = _levels_on(levels.device, settings.rescale, settings.mean, settings.std)
    places = levels.int() + torch.arange(0, 768, 256).view(3, 1, 1)
    assert torch.equal(flat.index_select(0, places.flatten()).view(levels.shape), pixels)
