"""Heads that begin by looking for words in the picture."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig

from diptych.errors import ConfigError
from diptych.synthetic.charts.reading.look_up import initialise


def new(num_layers=2, **more):
    config = GPTNeoXConfig(
        vocab_size=300, hidden_size=96, intermediate_size=128, num_hidden_layers=num_layers,
        num_attention_heads=2, initializer_range=0.06, tie_word_embeddings=True,
        attn_implementation="eager", **more,
    )  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def looking_up(model) -> tuple[float, float]:
    """What a word finds in the picture.

    Returns:
        Share of the first head's attention, from a word to the token of the picture that shows
        it; share of the two words told there that are among the model's four likeliest.
    """
    table = model.get_input_embeddings().weight.detach()
    table += table - table.mean(0)  # words double while the picture is taught to speak them
    generator = torch.Generator().manual_seed(1)
    shares, told = [], []
    for _ in range(20):
        shown = torch.randint(0, 300, (12, 3), generator=generator)  # three words a place
        # The picture knows words as they were before they had anything in common.
        picture = (table - table.mean(0))[shown].sum(1)
        place = int(torch.randint(0, 12, (1,), generator=generator))
        words = torch.cat([torch.randint(0, 300, (4,), generator=generator), shown[place, :1]])
        embeds = torch.cat([picture, table[words]])[None]
        with torch.no_grad():
            out = model(inputs_embeds=embeds, output_attentions=True)
        shares.append(float(out.attentions[0][0, 0, -1, place]))
        likeliest = set(out.logits[0, -1].topk(4).indices.tolist())
        told.append(len(likeliest & set(shown[place, 1:].tolist())) / 2)
    return sum(shares) / len(shares), sum(told) / len(told)


def test_a_word_begins_by_looking_at_what_shows_it():
    plain, changed = new(), new()
    initialise(changed)
    before, after = looking_up(plain), looking_up(changed)
    assert before[0] < 0.15 and after[0] > 0.5
    # What stands there begins likelier to be said next than other words (chance: 0.013).
    # What a head writes down of the word before stands beside it and blurs it.
    assert before[1] < 0.03 and after[1] > 0.05


def test_one_head_begins_at_the_word_before_and_one_goes_on_as_before():
    """The last heads of the first and second layer, in a text that repeats itself."""
    model = new()
    initialise(model)
    generator = torch.Generator().manual_seed(4)
    previous, repeated = [], []
    for _ in range(20):
        once = torch.randperm(300, generator=generator)[:12]
        with torch.no_grad():
            out = model(torch.cat([once, once])[None], output_attentions=True)
        first, second = (layer[0, -1] for layer in out.attentions)
        rows = torch.arange(12, 24)
        previous.append(first[rows, rows - 1].mean())
        repeated.append(second[rows, rows - 11].mean())  # what followed the same word
    # Of 12 to 24 words that could be looked at, each has one in twenty by chance.
    assert sum(previous) / 20 > 0.5
    assert sum(repeated) / 20 > 0.1


def test_what_words_share_changes_no_probability():
    plain, changed = new(), new()
    initialise(changed)
    hidden = torch.randn(5, 96, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        before = plain.get_output_embeddings()(hidden).softmax(-1)
        after = changed.get_output_embeddings()(hidden).softmax(-1)
    torch.testing.assert_close(before, after, atol=1e-5, rtol=1e-4)
    moved = changed.get_input_embeddings().weight - plain.get_input_embeddings().weight
    assert moved.std(0).max() < 1e-6 and moved.norm(dim=1).min() > 0.1


def test_the_same_seed_begins_alike_and_other_heads_stay():
    one, two, plain = new(3), new(3), new(3)
    initialise(one)
    initialise(two)
    for (name, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    fused, own = (
        m.gpt_neox.layers[2].attention.query_key_value.weight.view(2, 3, 48, 96)
        for m in (one, plain)
    )
    assert torch.equal(fused[1], own[1])
    assert not torch.equal(fused[0, 0], own[0, 0])


def test_other_architectures_are_refused():
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="gpt_neox"):
        initialise(AutoModelForCausalLM.from_config(config))
    full = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
    with pytest.raises(ConfigError, match="rotary"):
        initialise(new(rope_parameters=full))
