"""Generation: batched equals single, cached equals uncached, a session equals a fresh start."""

from __future__ import annotations

import pytest
import torch

from diptych.data.sample import Image, Sample, Text, Turn
from diptych.errors import ConfigError
from diptych.model.generate import beam_search, encode_images, prompts, steps
from tests.conftest import square


def question(text, *colours):
    images = [Image(f"{c}.png", square(c)) for c in colours]
    return Sample(text, (Turn("user", (*images, Text(text))),))


QUESTIONS = [
    question("What colour is the square?", "red"),
    question("how many are there of the two large left squares", "blue", "green"),
    question("yes or no?"),
    question("a", "green"),
]


def read(image):
    return image.data


@pytest.mark.parametrize("text", ["llama", "qwen2", "mistral", "t5"])
def test_batched_equals_single(tiny_model, text):
    template = "plain" if text == "t5" else "chatml"
    model = tiny_model(text=text, template=template)
    if text == "t5":
        # Untrained T5 always answers with padding; larger output weights make it talk.
        torch.manual_seed(1)
        torch.nn.init.normal_(model.language_model.module.get_output_embeddings().weight)
    together = model.generate(QUESTIONS, max_new_tokens=12, images=read)
    alone = [model.generate([q], max_new_tokens=12, images=read)[0] for q in QUESTIONS]
    assert together == alone
    assert any(together), "a random model says something"


@pytest.mark.parametrize("text", ["llama", "t5"])
def test_beams_find_likelier_answers_than_greed(tiny_model, text):
    """Batched or alone the same, and never a worse mean log-likelihood than the greedy answer."""
    model = tiny_model(text=text, template="plain" if text == "t5" else "chatml")
    if text == "t5":
        torch.manual_seed(1)
        torch.nn.init.normal_(model.language_model.module.get_output_embeddings().weight)
    settings = {"max_new_tokens": 6, "images": read}
    beams = model.generate(QUESTIONS, num_beams=4, **settings)
    alone = [model.generate([q], num_beams=4, **settings)[0] for q in QUESTIONS]
    assert beams == alone and any(beams)
    encoded = [model.chat_encoder.encode(q, generation=True) for q in QUESTIONS]
    pictures = encode_images(model, encoded, read)
    stops = model.chat_encoder.stop_ids()
    wide = beam_search(model, encoded, pictures, 6, 4)
    narrow = [[] for _ in QUESTIONS]
    for tokens in steps(model, encoded, pictures, 6):
        for row, token in zip(narrow, tokens, strict=True):
            if token is not None:
                row.append(token)
    assert wide != narrow, "otherwise the search found nothing of its own"
    better = []
    for n, question_ in enumerate(QUESTIONS):
        scores = []
        for row in (narrow[n], wide[n]):
            ends = [] if len(row) == 6 else [min(stops)]
            scores.append(mean_log_likelihood(model, question_, [*row, *ends]))
        better.append(scores[1] - scores[0])
    assert min(better) > -1e-4 and max(better) > 1e-3


def mean_log_likelihood(model, sample, tokens):
    """Of these tokens after the prompt, one forward pass each, no cache."""
    encoded = [model.chat_encoder.encode(sample, generation=True)]
    pictures = encode_images(model, encoded, read)
    total = 0.0
    with torch.no_grad():
        embeds, mask = prompts(model, encoded, pictures, 0)
        lm = model.language_model
        given = torch.tensor([tokens])
        if lm.is_encoder_decoder:
            start = torch.tensor([[lm.hf_config.decoder_start_token_id or 0]])
            hidden = lm.body(
                input_ids=torch.cat([start, given[:, :-1]], 1),
                encoder_hidden_states=lm.encode(embeds, mask),
                encoder_attention_mask=mask,
            ).last_hidden_state[0]
        else:
            whole = torch.cat([embeds, lm.embed(given)], 1)
            hidden = lm.body(inputs_embeds=whole).last_hidden_state[0, -len(tokens) - 1 : -1]
        chances = lm.logits(hidden).float().log_softmax(-1)
        total = float(chances.gather(1, given.T).sum())
    return total / len(tokens)


def test_beams_and_chance_exclude_each_other(tiny_model):
    with pytest.raises(ConfigError, match="draws nothing"):
        tiny_model().generate(QUESTIONS[:1], num_beams=2, temperature=1.0, images=read)


def test_cache_equals_recomputing(tiny_model):
    """Greedy tokens from the cache are those of a full forward pass each time."""
    model = tiny_model()
    sample = QUESTIONS[0]
    encoded = model.chat_encoder.encode(sample, generation=True)
    pictures = encode_images(model, [encoded], read)
    ids = torch.tensor([encoded.ids])
    tokens = []
    with torch.no_grad():
        embeds = model.embed(ids, torch.cat(pictures))
        stop = model.chat_encoder.stop_ids()
        for _ in range(12):
            hidden = model.language_model.body(inputs_embeds=embeds, use_cache=False)
            logits = model.language_model.logits(hidden.last_hidden_state[:, -1])
            token = int(logits.argmax(-1))
            if token in stop:
                break
            tokens.append(token)
            new = model.language_model.embed(torch.tensor([[token]]))
            embeds = torch.cat([embeds, new], 1)
    expected = model.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    assert model.generate([sample], max_new_tokens=12, images=read) == [expected]


def test_session_keeps_its_cache_and_says_the_same(tiny_model):
    model = tiny_model()
    session = model.chat(square("red"), max_new_tokens=8)
    first = session.ask("What colour?")
    calls = []
    original = model.encode_pixels
    model.encode_pixels = lambda pixels: calls.append(len(pixels)) or original(pixels)
    second = session.ask("Is it large?")
    assert calls == [], "the picture must not be encoded again"
    session.show(square("blue"))
    third = session.ask("And this one?")
    assert calls == [1]
    model.encode_pixels = original
    turns = (
        Turn("user", (Image("a", square("red")), Text("What colour?"))),
        Turn("assistant", (Text(first.strip()),)),
        Turn("user", (Text("Is it large?"),)),
    )
    fresh = model.generate([Sample("x", turns)], max_new_tokens=8, images=read)[0]
    assert second.strip() == fresh
    turns += (
        Turn("assistant", (Text(second.strip()),)),
        Turn("user", (Image("b", square("blue")), Text("And this one?"))),
    )
    fresh = model.generate([Sample("x", turns)], max_new_tokens=8, images=read)[0]
    assert third.strip() == fresh
    session.reset()
    session.show(square("red"))
    assert session.ask("What colour?") == first


def test_streaming_gives_the_same_text(tiny_model):
    model = tiny_model()
    pieces = list(model.chat(square("green"), max_new_tokens=10).stream("What colour?"))
    assert (
        "".join(pieces).strip()
        == model.generate([question("What colour?", "green")], max_new_tokens=10, images=read)[0]
    )


def test_sampling_is_repeatable(tiny_model):
    model = tiny_model()
    settings = {"max_new_tokens": 10, "images": read, "temperature": 1.5, "top_p": 0.9}
    first = model.generate(QUESTIONS, seed=1, **settings)
    assert first == model.generate(QUESTIONS, seed=1, **settings)
    assert first != model.generate(QUESTIONS, seed=2, **settings)
