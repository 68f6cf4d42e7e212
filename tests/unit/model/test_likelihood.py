"""Likelihoods with shared beginnings are those of reading every candidate alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diptych.data.sample import Sample, Text, Turn
from diptych.data.text.chat import Fate
from diptych.errors import DataError, ModelError, SampleTooLong
from diptych.model.likelihood import raw_log_likelihoods, text_log_likelihood

SHOTS = "the left square is red\nAnswer: A\n\nhow many squares are there? two three\nAnswer: B\n\n"
SUBJECTS = (
    "The following are about squares.\n\n" + SHOTS * 2,
    "The following are about colours.\n\n" + SHOTS[::-1] * 2,
)
ITEMS = ("What colour is it?", "how many", "left or right, large or small?", "is it one?", "yes?")
PROMPTS = [f"{subject}{item}\nAnswer:" for subject in SUBJECTS for item in ITEMS]
LETTERS = (" A", " B", " C", " D")
PHRASES = (" a large red square", " a large blue one", " two", " a large red")


def one_by_one(model, prompt, texts):
    """Every candidate in a row of its own, through the class's own forward pass."""
    tokenizer, lm = model.tokenizer, model.language_model.module
    start = tokenizer.encode(prompt.rstrip(), add_special_tokens=False)
    found = []
    for text in texts:
        ids = torch.tensor([tokenizer.encode(prompt + text, add_special_tokens=False)])
        logs = lm(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        found.append(float(logs[max(0, len(start) - 1) :].double().sum()))
    return found


@pytest.fixture(scope="module")
def build(tiny_config):
    from diptych.model.architecture import config_from_dict
    from diptych.model.folder import build

    def make(text="llama", changed=None, **settings):
        values = tiny_config(text="llama", **settings)
        lm = values["language_model"]["config"]
        if text == "gpt2":
            lm = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
        elif text == "opt":
            lm = {"model_type": "opt", "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2,
                  "num_attention_heads": 4, "max_position_embeddings": 512,
                  "word_embed_proj_dim": 32, "pad_token_id": 0}  # fmt: skip
        else:
            lm = {**lm, "model_type": text}
        values["language_model"]["config"] = {**lm, **(changed or {})}
        return build(config_from_dict(values), seed=1).eval()

    return make


@pytest.mark.parametrize("texts", [LETTERS, PHRASES], ids=["letters", "phrases"])
@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("llama", {}), ("qwen3", {"head_dim": 8}), ("gpt2", {}), ("gpt_neox", {}), ("opt", {}),
        ("mistral", {"sliding_window": 24}),
    ],
)  # fmt: skip
@torch.no_grad()
def test_sharing_changes_no_number(build, text, changed, texts):
    model = build(text, changed)
    found = raw_log_likelihoods(model, PROMPTS, [texts] * len(PROMPTS))
    for prompt, own in zip(PROMPTS, found, strict=True):
        assert own == pytest.approx(one_by_one(model, prompt, texts), abs=1e-4, rel=0)


@pytest.mark.parametrize("attention", ["eager", "products"])
@torch.no_grad()
def test_whatever_computes_attention(build, attention):
    model = build(attention=attention)
    for texts in (LETTERS, PHRASES):
        found = raw_log_likelihoods(model, PROMPTS, [texts] * len(PROMPTS))
        for prompt, own in zip(PROMPTS, found, strict=True):
            assert own == pytest.approx(one_by_one(model, prompt, texts), abs=1e-4, rel=0)


def test_every_prompt_is_read_once_and_what_they_share_once_for_all(build, monkeypatch):
    model = build()
    read = []
    body = model.language_model.body

    def counting(**inputs):
        read.append(inputs["inputs_embeds"].shape[:2].numel())
        return body(**inputs)

    monkeypatch.setattr(model.language_model, "body", counting)
    raw_log_likelihoods(model, PROMPTS, [LETTERS] * len(PROMPTS))
    encode = model.tokenizer.encode
    whole = [len(encode(p, add_special_tokens=False)) for p in PROMPTS]
    heads = [len(encode(s, add_special_tokens=False)) for s in SUBJECTS]
    rests = max(n - h for n, h in zip(whole, [*[heads[0]] * 5, *[heads[1]] * 5], strict=True))
    # One pass a subject, one for its items; candidates of one token take nothing more.
    assert len(read) == 4
    assert sum(read) <= sum(heads) + len(PROMPTS) * (rests + 4)
    assert 8 * sum(read) < 4 * sum(whole)


@pytest.mark.parametrize("place", [0, 3])
def test_prompts_in_any_company(build, place):
    """The same prompt twice, one that begins another, an empty one: each as if alone."""
    model = build()
    prompts = ["", PROMPTS[0], PROMPTS[0], PROMPTS[0] + " A\n\n" + SHOTS, "a", PROMPTS[7]]
    prompts = prompts[place:] + prompts[:place]
    choices = [LETTERS[:n] for n in (4, 1, 3, 2, 4, 4)]
    found = raw_log_likelihoods(model, prompts, choices)
    for prompt, texts, own in zip(prompts, choices, found, strict=True):
        with torch.no_grad():
            expected = one_by_one(model, prompt, texts)
        assert own == pytest.approx(expected, abs=1e-4, rel=0)
    assert raw_log_likelihoods(model, [], []) == []
    assert raw_log_likelihoods(model, ["a", "b"], [[], LETTERS])[0] == []


def test_prompt_and_continuation_are_one_text(build):
    """As in lm-evaluation-harness: what is read is tokenised whole, as in training, and blanks at
    the prompt's end belong to the continuation."""
    model = build()
    joined = raw_log_likelihoods(model, ["red "], [["square"]])
    blank = raw_log_likelihoods(model, ["red"], [[" square"]])
    assert joined == blank
    whole = text_log_likelihood(model, "red square")[0]
    head = text_log_likelihood(model, "red")[0]
    assert blank[0][0] == pytest.approx(whole - head, abs=1e-4)


def test_plain_text_in_windows(build):
    model = build()
    text = " ".join(PROMPTS)
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    assert len(ids) > 512
    total, tokens = 0.0, 0
    for start in range(0, len(ids), 512):
        window = torch.tensor([ids[start : start + 512]])
        with torch.no_grad():
            logs = model.language_model.module(window).logits[0, :-1].log_softmax(-1)
        total += float(logs.gather(1, window[0, 1:, None]).double().sum())
        tokens += window.shape[1] - 1
    assert text_log_likelihood(model, text) == (pytest.approx(total, abs=1e-2), tokens)


def test_a_prompt_beyond_the_context_is_too_long_and_says_where(build):
    model = build()
    sample = Sample("q", (Turn("user", (Text("red " * 600),)),), source="items.csv:7")
    for chat in (True, False):
        with pytest.raises(SampleTooLong, match=r"items\.csv:7"):
            model.log_likelihoods([sample], [LETTERS], chat=chat)


def test_a_continuation_without_a_token_and_an_encoder_decoder_are_named(build, tiny_config):
    from diptych.model.architecture import config_from_dict
    from diptych.model.folder import build as composed

    for prompt, text in (("red", ""), ("red squ", "are")):  # nothing, or one token with the prompt
        with pytest.raises(ModelError, match="no token of its own"):
            raw_log_likelihoods(build(), [prompt], [[text]])
    reader = composed(config_from_dict(tiny_config(text="t5"))).eval()
    with pytest.raises(ModelError, match="encoder-decoder"):
        reader.text_log_likelihood("red square")


def chat_one_by_one(model, sample, texts):
    """Every candidate as the conversation that it completes, its end mark included."""
    found = []
    for text in texts:
        turns = (*(replace(t, learn=False) for t in sample.turns),
                 Turn("assistant", (Text(text),)))  # fmt: skip
        encoded = model.chat_encoder.encode(Sample("x", turns))
        ids = torch.tensor([encoded.ids])
        with torch.no_grad():
            logs = model.language_model.module(ids).logits[0, :-1].log_softmax(-1)
        learned = [n for n, fate in enumerate(encoded.fates) if fate is Fate.TARGET]
        found.append(float(sum(logs[n - 1, encoded.ids[n]].double() for n in learned)))
    return found


@pytest.mark.parametrize("template", ["chatml", "vicuna", "plain", "qa"])
def test_conversations_without_a_picture(build, template):
    model = build(template=template)
    asked = [Turn("user", (Text("What colour is the square?"),))]
    longer = [*asked, Turn("assistant", (Text("red"),)), Turn("user", (Text("and the large?"),))]
    samples = [Sample("a", tuple(asked)), Sample("b", tuple(longer)), Sample("c", tuple(asked))]
    choices = [("red", "a blue square", "green"), ("red", "one"), ("two",)]
    found = model.log_likelihoods(samples, choices)
    for sample, texts, own in zip(samples, choices, found, strict=True):
        assert own == pytest.approx(chat_one_by_one(model, sample, texts), abs=1e-4, rel=0)


def test_pictures_and_none_in_one_call(build):
    from diptych.data.sample import Image
    from tests.conftest import square

    model = build()
    text = Text("What colour?")
    seen = Sample("a", (Turn("user", (Image("a.png", square("red")), text)),))
    samples = [seen, seen.without_images(), seen]
    choices = [("red", "blue"), ("red", "blue"), ("green",)]
    found = model.log_likelihoods(samples, choices, images=lambda image: image.data)
    for n, (sample, texts) in enumerate(zip(samples, choices, strict=True)):
        for text_, value in zip(texts, found[n], strict=True):
            [[alone]] = model.log_likelihoods([sample], [[text_]], images=lambda i: i.data)
            assert alone == pytest.approx(value, abs=1e-4)
    assert found[0] != pytest.approx(found[1], abs=1e-4)


def test_a_candidate_without_a_token_does_not_win(build):
    """Its sum over no tokens would be 0, above every other."""
    from diptych.data.sample import Image
    from tests.conftest import square

    model = build(template="{% for m in messages %}{{ m['content'] }}{% endfor %}")
    turn = Turn("user", (Image("a.png", square("red")), Text("What colour?")))
    sample = Sample("a", (turn,), source="rows.jsonl:4")
    for asked in (sample, sample.without_images()):
        with pytest.raises((ModelError, DataError), match=r"rows\.jsonl:4"):
            model.log_likelihoods([asked], [["red", ""]], images=lambda i: i.data)
