"""Answerers against transformers' own BlipForQuestionAnswering, both ways."""

from __future__ import annotations

import pytest
import torch

from diptych.convert import layout
from diptych.data.batching.collate_pairs import PairCollator
from diptych.data.batching.picture_loader import Item, PictureLoader
from diptych.data.sample import Image, Sample, Text, Turn
from diptych.errors import ConfigError
from diptych.model.architecture import config_from_dict
from diptych.model.folder import build, load_model, save_model
from diptych.train.objectives import answer
from tests.parity.test_dual_encoder import pictures, spread

NAME = "hf-blip-vqa"
SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2}  # fmt: skip
ASKED = ("how many are there", "which colour is it", "is it red")
ANSWERS = ("two", "a deep red", "no")


def values(tokenizer_folder, image_width=16):
    return {
        "name": "answerer",
        "vision_encoder": {
            "config": {
                "model_type": "blip_vision_model", **SIZE, "hidden_size": image_width,
                "image_size": 28, "patch_size": 7,
            },
            "features": "full", "image": {"resize": "exact", "size": [28, 28]},
        },
        "text": {
            "config": {**SIZE, "max_position_embeddings": 40}, "max_tokens": 24,
            "tokenizer": str(tokenizer_folder), "dropout": 0.0,
        },
    }  # fmt: skip


@pytest.fixture
def model(tokenizer_folder):
    return spread(build(config_from_dict(values(tokenizer_folder)), seed=1))


def samples():
    return [
        Sample(
            str(n),
            (
                Turn("user", (Image(f"{n}.png", data), Text(question))),
                Turn("assistant", (Text(text),)),
            ),
        )
        for n, (data, question, text) in enumerate(zip(pictures(), ASKED, ANSWERS, strict=True))
    ]


def batch_of(model):
    collate = PairCollator(PictureLoader(model.preprocessing), model.text_tokens, questions=True)
    (batch,) = collate([Item(s, lambda i: i.data, n) for n, s in enumerate(samples())]).batches
    return batch


def test_export_is_what_the_class_computes_and_back(model, tmp_path):
    report = layout.export(model, NAME, tmp_path / "out")
    assert report.class_name == "BlipForQuestionAnswering" and not report.problems
    again, report = layout.load(tmp_path / "out", NAME)
    assert not report.problems and report.tokens_equal
    own, its = (layout.find(NAME).outputs(m)[0] for m in (model, again))
    assert own.std() > 0.01
    torch.testing.assert_close(its, own)
    shown = list(pictures())
    assert again.ask(shown, ASKED) == model.ask(shown, ASKED)


def test_the_loss_is_the_one_of_the_class(model, tmp_path):
    from transformers import BlipForQuestionAnswering

    layout.export(model, NAME, tmp_path / "out")
    theirs = BlipForQuestionAnswering.from_pretrained(tmp_path / "out").eval()
    batch = batch_of(model)
    pixels = model.preprocessing.normalised(batch.pixel_values)
    questions, answers = batch.encoder_ids.clone(), batch.input_ids.clone()
    questions[:, 0], answers[:, 0] = model.text.grounded_start, model.text.decoder_start
    with torch.no_grad():
        states = theirs.text_encoder(
            input_ids=questions, attention_mask=batch.encoder_mask,
            encoder_hidden_states=theirs.vision_model(pixel_values=pixels)[0],
        )[0]  # fmt: skip
        logits = theirs.text_decoder(
            input_ids=answers, attention_mask=batch.segment_ids, encoder_hidden_states=states,
            encoder_attention_mask=batch.encoder_mask,
        ).logits  # fmt: skip
        labels = answers.masked_fill(batch.segment_ids == 0, -100)[:, 1:]
        expected = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels.flatten(), reduction="sum", label_smoothing=0.1
        )
        found = answer.Config().build(model)(model.eval(), batch)["answer"]
    torch.testing.assert_close(found, expected)


def test_answers_are_ranked_by_what_the_decoder_gives_them(model):
    asked = [s.without_answer() for s in samples()]
    scores = model.log_likelihoods(asked, [ANSWERS] * 3, images=lambda i: i.data)
    batch = batch_of(model)
    with torch.no_grad():
        states = model.question_states(batch)
        hidden = model.text.answer(batch.input_ids, batch.segment_ids, states, batch.encoder_mask)
        expected = model.text.token_log_probs(hidden, batch.input_ids, batch.segment_ids).sum(1)
    found = torch.tensor([row[n] for n, row in enumerate(scores)])
    torch.testing.assert_close(found, expected)


def test_blind_answers_are_answers_without_the_picture(model):
    asked = [s.without_answer() for s in samples()]
    seen = model.generate(asked, images=lambda i: i.data)
    mixed = [asked[0], asked[1].without_images(), asked[2]]
    found = model.generate(mixed, images=lambda i: i.data)
    assert found[0] == seen[0] and found[2] == seen[2]
    scores = model.log_likelihoods(mixed, [ANSWERS] * 3, images=lambda i: i.data)
    assert scores[1] != model.log_likelihoods(asked, [ANSWERS] * 3, images=lambda i: i.data)[1]


def test_the_writer_may_have_another_width_than_the_encoder(tokenizer_folder, tmp_path):
    model = spread(build(config_from_dict(values(tokenizer_folder, image_width=24)), seed=1))
    with pytest.raises(ConfigError, match="one width"):
        layout.export(model, NAME, tmp_path / "out")
    save_model(model, tmp_path / "own")
    again = load_model(tmp_path / "own")
    assert again.ask(list(pictures()), ASKED) == model.ask(list(pictures()), ASKED)
