"""The captioner as users meet it."""

from __future__ import annotations

import pytest
import torch

from diptych.data.sample import Image, Sample, Text, Turn
from diptych.errors import ModelError, SampleTooLong
from diptych.model.architecture import config_from_dict
from diptych.model.folder import build, load_model, save_model
from tests.unit.model.test_query_transformer import TEXTS, pictures  # noqa: F401


@pytest.fixture(scope="module")
def model(tiny_captioner):
    model = build(config_from_dict(tiny_captioner()), seed=2)
    with torch.no_grad():
        # Random weights of this size write the same whatever they see; larger ones do not.
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "embeddings" not in name:
                weight.mul_(8)
    return model


def test_reader_and_writer_share_all_but_self_attention(model):
    reader, writer = model.text.reader, model.text.writer
    own = {id(p) for p in reader.parameters()}
    apart = [n for n, p in writer.bert.named_parameters() if id(p) not in own]
    assert apart and all(".attention." in n for n in apart)
    assert writer.cls.predictions.decoder.weight is reader.embeddings.word_embeddings.weight


def test_text_that_is_written_sees_only_its_past(model, pictures):  # noqa: F811
    ids, mask = model.ids_of(TEXTS)
    features = model._encoded(pictures)
    with torch.no_grad():
        before = model.text.write(ids, mask, features)
        changed = ids.clone()
        changed[2, -1] += 1
        after = model.text.write(changed, mask, features)
    torch.testing.assert_close(before[:, :-1], after[:, :-1], atol=0, rtol=0)
    assert not torch.equal(before[2, -1], after[2, -1])


def test_a_batch_gives_what_each_gives_alone(model, pictures):  # noqa: F811
    together = model.encode_texts(TEXTS)
    for text, row in zip(TEXTS, together, strict=True):
        torch.testing.assert_close(model.encode_texts([text])[0], row, atol=1e-5, rtol=1e-4)
    scores = model.match_scores(pictures, TEXTS, [(2, 0), (0, 1), (0, 2)], batch_size=2)
    alone = model.match_scores([pictures[0]], [TEXTS[2]], [(0, 0)])
    assert alone.item() == pytest.approx(scores[2].item(), abs=1e-5)
    for beams in (1, 3):
        captions = model.caption(pictures, num_beams=beams, max_new_tokens=6)
        singles = [model.caption([p], num_beams=beams, max_new_tokens=6)[0] for p in pictures]
        assert captions == singles


def test_greedy_captions_follow_the_logits(model, pictures):  # noqa: F811
    """What is written is what `write` and `logits` say, token by token."""
    features = model._encoded(pictures[:1])
    ids = torch.tensor([[model.text.decoder_start]])
    with torch.no_grad():
        for _ in range(5):
            states = model.text.write(ids, torch.ones_like(ids), features)
            following = model.text.logits(states[:, -1]).argmax(-1, keepdim=True)
            if following.item() == model.tokenizer.sep_token_id:
                break
            ids = torch.cat([ids, following], 1)
    wanted = model.tokenizer.decode(ids[0, 1:], skip_special_tokens=True).strip()
    assert model.caption(pictures[:1], num_beams=1, max_new_tokens=5) == [wanted]


def test_nucleus_sampling_is_seeded(model, pictures):  # noqa: F811
    draws = {
        seed: tuple(model.caption(pictures, top_p=0.95, seed=seed, max_new_tokens=8))
        for seed in (0, 1, 2, 3)
    }
    again = tuple(model.caption(pictures, top_p=0.95, seed=1, max_new_tokens=8))
    assert again == draws[1] and len(set(draws.values())) > 1


def test_samples_with_prompts_and_without_pictures(model, pictures):  # noqa: F811
    def sample(number, *parts):
        return Sample(str(number), (Turn("user", parts),), source="")

    samples = [
        sample(0, Image("a", pictures[0])),
        sample(1, Image("b", pictures[1]), Text("the red")),
        sample(2),
    ]
    found = model.generate(samples, images=lambda image: image.data, max_new_tokens=5)
    assert found[0] == model.caption([pictures[0]], max_new_tokens=5)[0]
    assert found[1] == model.caption([pictures[1]], prompts=["the red"], max_new_tokens=5)[0]
    assert isinstance(found[2], str)


def test_a_folder_loads_by_itself(model, pictures, tmp_path):  # noqa: F811
    save_model(model, tmp_path / "m")
    again = load_model(tmp_path / "m")
    torch.testing.assert_close(
        again.similarity(pictures, TEXTS), model.similarity(pictures, TEXTS), atol=0, rtol=0
    )
    assert again.caption(pictures, max_new_tokens=5) == model.caption(pictures, max_new_tokens=5)
    assert again.text.writer.cls.predictions.decoder.weight is (
        again.text.reader.embeddings.word_embeddings.weight
    )


def test_captions_end_where_the_positions_end(model, pictures):  # noqa: F811
    positions = model.text.hf_config.max_position_embeddings
    whole = model.caption(pictures[:1], max_new_tokens=positions - 1)
    assert model.caption(pictures[:1], max_new_tokens=10 * positions) == whole
    with pytest.raises(SampleTooLong, match="no room left"):
        model.caption(pictures[:1], prompts=["a " * 2 * positions])
    with pytest.raises(ModelError, match="1 pictures, but 2"):
        model.caption(pictures[:1], prompts=["a", "b"])
    assert model.match_scores(pictures, TEXTS, []).tolist() == []
