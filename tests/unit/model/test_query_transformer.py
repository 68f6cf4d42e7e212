"""The querying transformer as users meet it."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.model.architecture import config_from_dict
from diptych.model.folder import build, load_model, save_model

TEXTS = ["a red square", "yes", "two blue ones on the left"]


@pytest.fixture(scope="module")
def model(tiny_query):
    return build(config_from_dict(tiny_query()), seed=2)


@pytest.fixture(scope="module")
def pictures():
    found = []
    for seed in range(3):
        buffer = io.BytesIO()
        noise = np.random.default_rng(seed).integers(0, 255, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).save(buffer, "PNG")
        found.append(buffer.getvalue())
    return found


def test_shapes_and_units(model, pictures):
    images, texts = model.encode_images(pictures), model.encode_texts(TEXTS)
    assert images.shape == (3, 3, 8) and texts.shape == (3, 8)
    torch.testing.assert_close(images.norm(dim=-1), torch.ones(3, 3))
    assert model.similarity(pictures, TEXTS).shape == (3, 3)
    assert model.features(images=pictures).shape == (3, 3, 16)
    assert model.features(texts=TEXTS).shape[::2] == (3, 16)
    assert model.features(images=pictures, texts=TEXTS).shape == (3, 3, 16)


def test_similarity_takes_the_closest_query(model, pictures):
    images, texts = model.encode_images(pictures), model.encode_texts(TEXTS)
    found = model.compare(images, texts)
    for i in range(3):
        for t in range(3):
            assert found[i, t] == pytest.approx(
                max(float(q @ texts[t]) for q in images[i]), abs=1e-6
            )


def test_a_batch_gives_what_each_gives_alone(model, pictures):
    """Padding changes nothing."""
    together = model.encode_texts(TEXTS)
    for text, row in zip(TEXTS, together, strict=True):
        torch.testing.assert_close(model.encode_texts([text])[0], row, atol=1e-5, rtol=1e-4)
    pairs = [(2, 0), (0, 1), (0, 2), (1, 1)]
    scores = model.match_scores(pictures, TEXTS, pairs, batch_size=3)
    for (i, t), score in zip(pairs, scores, strict=True):
        alone = model.match_scores([pictures[i]], [TEXTS[t]], [(0, 0)])
        assert alone.item() == pytest.approx(score.item(), abs=1e-5)


def test_text_that_is_written_sees_only_its_past(model, pictures):
    former = model.query_former
    ids, mask = model.ids_of(TEXTS)
    states = former.image_states(model.encode_pixels(model.pixels_of(pictures)))
    with torch.no_grad():
        before = former.write(ids, mask, states)
        changed = ids.clone()
        changed[2, -1] += 1
        after = former.write(changed, mask, states)
    last = former.num_queries + ids.shape[1] - 1
    torch.testing.assert_close(before[:, :last], after[:, :last], atol=0, rtol=0)
    assert not torch.equal(before[2, last], after[2, last])


def test_a_folder_loads_by_itself(model, pictures, tmp_path):
    save_model(model, tmp_path / "m")
    again = load_model(tmp_path / "m")
    torch.testing.assert_close(
        again.similarity(pictures, TEXTS), model.similarity(pictures, TEXTS), atol=0, rtol=0
    )
    assert again.query_former.decoder_start == model.query_former.decoder_start


def test_bert_weights_read_text_as_bert_does(tiny_query, tokenizer_folder, tmp_path):
    """Started from a BERT, the text pass is that BERT's; queries have the text's feed-forward."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 32, "max_position_embeddings": 24}  # fmt: skip
    bert = BertModel(BertConfig(vocab_size=len(tokenizer), **size)).eval()
    bert.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    values = tiny_query(weights=str(tmp_path), config=None, tokenizer=None)
    model = build(config_from_dict(values), seed=1)
    ids = torch.tensor([[5, 9, 11, 30], [7, 8, 6, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    with torch.no_grad():
        own = model.query_former.read_text(ids, mask)
        its = bert(ids, mask).last_hidden_state
    torch.testing.assert_close(own[mask.bool()], its[mask.bool()], atol=1e-5, rtol=1e-4)
    layer = model.query_former.module.encoder.layer[1]
    assert torch.equal(layer.intermediate.dense.weight, layer.intermediate_query.dense.weight)


def test_what_it_warns_of(caplog):
    from diptych.train.chance import ChanceWatch

    watch = ChanceWatch("itc", 3)
    for loss in (4.1, 4.15, 3.0, 4.1, 4.12):
        watch.see(loss, 4.158)
    assert not caplog.records
    watch.see(4.14, 4.158)
    watch.see(4.14, 4.158)
    assert len(caplog.records) == 1
    assert "itc has stayed at chance for 3 steps" in caplog.text and "usual causes" in caplog.text


def test_fewer_layers_of_the_weights(tiny_query, tokenizer_folder, tmp_path):
    from transformers import AutoTokenizer, BertConfig, BertModel

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    size = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
            "intermediate_size": 32, "max_position_embeddings": 24}  # fmt: skip
    bert = BertModel(BertConfig(vocab_size=len(tokenizer), **size))
    bert.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    values = tiny_query(weights=str(tmp_path), config=None, tokenizer=None, num_layers=2)
    layers = build(config_from_dict(values), seed=1).query_former.module.encoder.layer
    assert len(layers) == 2
    own, its = layers[1].intermediate.dense.weight, bert.encoder.layer[1].intermediate.dense.weight
    assert torch.equal(own, its)
