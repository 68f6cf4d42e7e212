"""Log-probabilities of targets are those that the classes of transformers compute themselves."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from diptych.data.batching.budget import Budget
from diptych.data.batching.picture_loader import Item
from diptych.errors import ConfigError
from diptych.model.architectures.vlm import VlmConfig
from diptych.model.folder import build
from tests.equivalence.test_packing import SAMPLES, conversation, items

torch.set_num_threads(1)  # tiny products: more threads only wait for one another
TEXT_ONLY = [
    conversation("a", None, "yes or no?", "yes"),
    conversation("b", None, "how many are there", "two", "and left?", "one small red square"),
]
SHARED = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 512, "num_key_value_heads": 2,
}  # fmt: skip
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
      "decoder_start_token_id": 0, "eos_token_id": 2, "dropout_rate": 0.0}  # fmt: skip
MODELS = {
    "llama": {"model_type": "llama", **SHARED},
    "llama_tied": {"model_type": "llama", **SHARED, "tie_word_embeddings": True},
    "qwen2": {"model_type": "qwen2", **SHARED},
    "mistral": {"model_type": "mistral", **SHARED},
    "gemma2": {"model_type": "gemma2", **SHARED, "head_dim": 8, "final_logit_softcapping": 2.0},
    "cohere": {"model_type": "cohere", **SHARED, "logit_scale": 0.25},
    "granite": {"model_type": "granite", **SHARED, "logits_scaling": 8.0},
    "gpt_neox": {"model_type": "gpt_neox", **SHARED, "num_key_value_heads": 4},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "t5_tied": {"model_type": "t5", **T5, "tie_word_embeddings": True},
    "t5_untied": {"model_type": "t5", **T5, "tie_word_embeddings": False},
    "bart": {
        "model_type": "bart", "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64, "max_position_embeddings": 512, "decoder_start_token_id": 2,
        "scale_embedding": True, "dropout": 0.0,
    },
}  # fmt: skip


def make(tiny_config, name, eager=False, attention="sdpa", **changes):
    values = tiny_config()
    values["language_model"]["config"] = {**MODELS[name], **changes}
    values["language_model"]["attention"] = "eager" if name == "gemma2" or eager else attention
    model = build(VlmConfig.from_dict(values), seed=0)
    for parameter in model.language_model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    if name == "bart":
        model.language_model.module.final_logits_bias.normal_()
    return model


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_class_itself(tiny_config, name):
    model = make(tiny_config, name)
    module = model.language_model.module
    batch = model.collator(Budget(packed=False, rows_per_batch=8))(items(TEXT_ONLY)).batches[0]
    with torch.no_grad():
        ours = model.target_log_probs(batch)
        if model.language_model.is_encoder_decoder:
            logits = module(
                input_ids=batch.encoder_ids,
                attention_mask=batch.encoder_mask,
                decoder_input_ids=batch.input_ids,
            ).logits
        else:
            mask = (batch.segment_ids != 0).long()
            logits = module(input_ids=batch.input_ids, attention_mask=mask).logits
    chosen = logits.flatten(0, 1)[batch.target_positions].float().log_softmax(-1)
    theirs = chosen.gather(1, batch.target_ids[:, None])[:, 0]
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt_neox"])
def test_plain_products_are_the_same_attention(tiny_config, name):
    """Packed rows, forwards and backwards; and asked with a cache."""
    found = []
    for attention in ("sdpa", "products"):
        torch.manual_seed(0)
        model = make(tiny_config, name, attention=attention)
        assert model.language_model.hf_config._attn_implementation == attention
        [batch] = model.collator(Budget(tokens_per_row=400))(items(SAMPLES)).batches
        log_probs = model.target_log_probs(batch)
        log_probs.sum().backward()
        gradients = [p.grad for p in model.language_model.parameters() if p.grad is not None]
        asked = [
            conversation(s.id, None, "how many are there", "").without_answer() for s in SAMPLES[:2]
        ]
        found.append((log_probs, *gradients, model.generate(asked, max_new_tokens=8)))
    *tensors, answers = zip(*found, strict=True)
    assert len(tensors) > 10 and answers[0] == answers[1]
    for theirs, ours in tensors:
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral", "gemma2"])
def test_loss_is_that_of_transformers(tiny_config, name):
    model = make(tiny_config, name)
    batch = model.collator(Budget(packed=False))(items(TEXT_ONLY[:1])).batches[0]
    labels = torch.full_like(batch.input_ids, -100).flatten()
    labels[batch.target_positions + 1] = batch.target_ids
    with torch.no_grad():
        loss = model.language_model.module(
            input_ids=batch.input_ids, labels=labels.view_as(batch.input_ids)
        ).loss
        ours = -model.target_log_probs(batch).mean()
    assert float(ours) == pytest.approx(float(loss), abs=1e-5)


def test_chunks_change_nothing_and_full_logits_never_exist(tiny_config):
    model = make(tiny_config, "llama_tied").requires_grad_(True)
    batch = model.collator()(items(SAMPLES)).batches[0]
    rows = []
    hook = model.language_model.module.get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: rows.append(inputs[0].shape[:-1].numel())
    )
    results = {}
    for size in (3, 7, 2048):
        rows.clear()
        model.zero_grad(set_to_none=True)
        values = model.target_log_probs(batch, chunk_size=size)
        values.sum().backward()
        assert max(rows) <= min(size, batch.num_targets), "only targets, a chunk at a time"
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        results[size] = (values.detach(), gradients)
    hook.remove()
    assert batch.num_targets < batch.num_real_tokens / 2
    values, gradients = results[2048]
    for size in (3, 7):
        torch.testing.assert_close(results[size][0], values, atol=1e-6, rtol=1e-6)
        for name, gradient in gradients.items():
            torch.testing.assert_close(results[size][1][name], gradient, atol=1e-5, rtol=1e-4)


def test_attention_that_a_model_lacks_is_a_named_error(tiny_config):
    values = tiny_config()
    values["language_model"]["config"] = MODELS["gemma2"]
    with pytest.raises(ConfigError, match="scaled_dot_product") as caught:
        build(VlmConfig.from_dict(values))
    assert "eager" in caught.value.fix


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("mistral", {"sliding_window": 6}),
        ("mistral", {"sliding_window": 6, "eager": True}),
        ("gemma2", {"sliding_window": 6}),
        ("llama", {"eager": True}),
    ],
)
def test_windows_and_eager_attention_survive_packing(tiny_config, name, settings):
    """Samples longer than the window: packed rows see as far back as single ones."""
    model = make(tiny_config, name, **settings)
    sums = []
    for packed in (False, True):
        found = {}
        prepared = model.collator(Budget(packed=packed, tokens_per_row=400))(items(SAMPLES))
        for batch in prepared.batches:
            with torch.no_grad():
                values = model.target_log_probs(batch)
            for i, key in enumerate(batch.sample_ids):
                found[key] = float(values[batch.target_samples == i].sum())
        sums.append(found)
    assert sums[0] == pytest.approx(sums[1], abs=1e-4)


def test_encoder_decoder_learns_what_it_is_asked(tiny_config):
    """The encoder reads all up to the last answer, as in generation; the decoder writes that."""
    model = make(tiny_config, "t5_tied")
    sample = TEXT_ONLY[1]
    batch = model.collator()([Item(sample, lambda image: b"")]).batches[0]
    asked = model.chat_encoder.encode(sample.without_answer(), generation=True)
    assert batch.encoder_ids[0].tolist() == list(asked.ids)
    assert model.tokenizer.decode(batch.target_ids) == sample.answer + "<|im_end|>"


def test_bfloat16_keeps_rotary_frequencies(tiny_config):
    values = tiny_config(dtype="bfloat16")
    low, high = build(VlmConfig.from_dict(values)), build(VlmConfig.from_dict(tiny_config()))
    assert {p.dtype for p in low.language_model.parameters()} == {torch.bfloat16}
    for (name, a), (_, b) in zip(
        low.language_model.named_buffers(), high.language_model.named_buffers(), strict=True
    ):
        assert a.dtype == b.dtype and torch.equal(a, b), name


def test_cross_entropy_agrees_with_the_definition(tiny_config):
    model = make(tiny_config, "llama")
    hidden, ids = torch.randn(5, 32), torch.tensor([1, 2, 3, 4, 5])
    logits = model.language_model.logits(hidden)
    expected = F.log_softmax(logits, -1)[torch.arange(5), ids]
    torch.testing.assert_close(model._log_probs(hidden, ids), expected)
