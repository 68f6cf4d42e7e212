"""BLIP-2's stage 1 against LAVIS: losses, similarities, logits, gradients, features."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from diptych.data.batching.batch import Batch
from diptych.embed.embedder import EmbedConfig, pooled
from diptych.model import lavis_qformer
from diptych.model.architectures.query_transformer import Config as ModelConfig
from diptych.model.architectures.query_transformer import QueryTransformer
from diptych.model.matching import Heads
from diptych.model.query_former import QueryFormer, QueryFormerConfig
from diptych.model.vision_encoder import VisionEncoderConfig
from diptych.train.objectives import query_text

NAME = "lavis_qformer_stage1"
LOSS, GRADIENT = 1e-5, 5e-5


class Identity(nn.Module):
    """The image tower of the set: what it gives is what the queries see."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))


class Tokenizer:
    """Special ids of the set."""

    def __init__(self, ids):
        self.ids = ids
        self.cls_token_id, self.sep_token_id = ids["cls"], ids["sep"]
        self.pad_token_id = ids["pad"]

    def convert_tokens_to_ids(self, token):
        return self.ids["dec_bos"]


def own_name(name: str) -> str | None:
    """LAVIS's name of a weight -> ours; None for tied copies and buffers."""
    if name == "temp":
        return "heads.temperature"
    heads = {"vision_proj": "image", "text_proj": "text", "itm_head": "matching"}
    head, _, rest = name.partition(".")
    if head in heads:
        return f"heads.{heads[head]}.{rest}"
    ours = lavis_qformer.own_name(name)
    return f"query_former.{ours}" if ours else None


@pytest.fixture
def golden(conformance):
    folder = conformance(NAME)
    tensors = {n: load_file(folder / f"{n}.safetensors") for n in ("tensors", "weights")}
    return json.loads((folder / "meta.json").read_text()), tensors


@pytest.fixture
def model(golden):
    from transformers import Blip2QFormerConfig

    meta, tensors = golden
    c = meta["config"]
    hf_config = Blip2QFormerConfig(
        **{k: c[k] for k in (
            "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
            "intermediate_size", "max_position_embeddings", "hidden_act", "layer_norm_eps",
        )},
        cross_attention_frequency=c["cross_attention_freq"], encoder_hidden_size=c["encoder_width"],
        use_qformer_text_input=True, pad_token_id=meta["special_token_ids"]["pad"],
    )  # fmt: skip
    config = ModelConfig(
        vision_encoder=VisionEncoderConfig(),
        query_former=QueryFormerConfig(num_queries=c["num_query_token"], max_tokens=32),
        dim=c["embed_dim"],
    )
    tokenizer = Tokenizer(meta["special_token_ids"])
    former = QueryFormer(config.query_former, hf_config, tokenizer, c["encoder_width"])
    former.image_norm = nn.Identity()
    former.image_states = lambda features: features
    heads = Heads(former.dim, former.dim, config.dim, config.temperature)
    model = QueryTransformer(config, Identity(), former, heads)
    weights = {own_name(k): v for k, v in tensors["weights"].items() if own_name(k)}
    weights["query_former.queries"] = weights["query_former.queries"][0]
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) == {"vision_encoder.weight"}
    return model.eval()


def batch_of(tensors, image_ids=None):
    ids = tensors["input_ids"]
    n = len(ids)
    none = torch.zeros(0, dtype=torch.int64)
    zeros = torch.zeros_like(ids)
    keys = range(n) if image_ids is None else image_ids.tolist()
    return Batch(
        ids, zeros, tensors["attention_mask"], zeros, none, none, none,
        features=tensors["image_embeds"], image_keys=tuple(f"{k:015x}" for k in keys),
        sample_ids=tuple(map(str, range(n))),
    )  # fmt: skip


def run(model, tensors, prefix="", image_ids=None, **settings):
    """Losses as means, with the draws of the set instead of our own; gradients by their name."""
    objective = query_text.Config(**settings).build(model)
    seen = {}

    def recorded(to_image, to_text, same, start):
        seen.update(t2i=to_image.detach(), i2t=to_text.detach(), same=same)
        return (
            tensors[f"{prefix}neg_image_for_text"],
            tensors[f"{prefix}neg_text_for_image"],
        )

    objective.negatives = recorded
    batch = batch_of(tensors, image_ids)
    losses = objective(model, batch)
    losses = {k: v / objective.weight(batch) for k, v in losses.items()}
    model.zero_grad()
    sum(losses.values()).backward()
    return losses, seen


def test_losses(golden, model):
    meta, tensors = golden
    losses, seen = run(model, tensors["tensors"])
    wanted = meta["losses"]
    for name in ("itc", "itm", "lm"):
        assert losses[name].item() == pytest.approx(wanted[f"loss_{name}"], abs=LOSS), name
    assert sum(losses.values()).item() == pytest.approx(wanted["loss"], abs=LOSS)
    torch.testing.assert_close(seen["i2t"], tensors["tensors"]["out.sim_i2t"], atol=1e-5, rtol=0)
    torch.testing.assert_close(seen["t2i"], tensors["tensors"]["out.sim_t2i"], atol=1e-5, rtol=0)


def compare_gradients(model, tensors, prefix):
    own = dict(model.named_parameters())
    compared = 0
    for name, gradient in tensors.items():
        if not name.startswith(prefix):
            continue
        mine = own[own_name(name.removeprefix(prefix))].grad
        torch.testing.assert_close(
            mine.view(gradient.shape), gradient, atol=GRADIENT, rtol=1e-4, msg=name
        )
        compared += 1
    assert compared


def test_gradients(golden, model):
    meta, tensors = golden
    run(model, tensors["tensors"])
    compare_gradients(model, tensors["tensors"], "grad.")
    own = dict(model.named_parameters())
    for name, norm in meta["grad_norms"].items():
        if (mine := own_name(name)) is not None:
            assert own[mine].grad.norm().item() == pytest.approx(norm, abs=1e-4, rel=1e-4), name


def test_gradients_where_gathered_vectors_are_detached(golden, model):
    meta, tensors = golden
    losses, _ = run(model, tensors["tensors"], gathered="detached")
    assert sum(losses.values()).item() == pytest.approx(meta["losses"]["loss"], abs=LOSS)
    compare_gradients(model, tensors["tensors"], "grad_gather_detached.")
    own = dict(model.named_parameters())
    norms = meta["grad_norms_gather_detached"]
    for name, norm in norms.items():
        if (mine := own_name(name)) is not None:
            assert own[mine].grad.norm().item() == pytest.approx(norm, abs=1e-4, rel=1e-4), name


def test_pairs_about_one_picture(golden, model):
    meta, tensors = golden
    t = tensors["tensors"]
    losses, seen = run(model, t, "image_id.", t["image_id"])
    wanted = meta["losses_with_image_id"]
    for name in ("itc", "itm", "lm"):
        assert losses[name].item() == pytest.approx(wanted[f"loss_{name}"], abs=LOSS), name
    assert int(seen["same"].sum()) == len(t["image_id"]) + 2
    compare_gradients(model, t, "image_id.grad.")


@torch.no_grad()
def test_negatives_are_drawn_as_in_the_reference(golden, model):
    """The distribution drawn from is that of the set, with same pictures left out."""
    from diptych.train.pair_losses import draw_negatives

    _, tensors = golden
    t = tensors["tensors"]
    same = torch.eye(len(t["input_ids"]), dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros_like(t["out.weights_t2i"])
    rounds = 4000
    for _ in range(rounds):
        noise = torch.rand(counts.shape, generator=generator)
        chosen = draw_negatives(t["out.sim_t2i"], same, noise)
        counts[torch.arange(len(chosen)), chosen] += 1
    torch.testing.assert_close(counts / rounds, t["out.weights_t2i"], atol=0.03, rtol=0)


@torch.no_grad()
def test_matching_and_writing_logits(golden, model):
    _, tensors = golden
    t = tensors["tensors"]
    ids, mask, states = t["input_ids"], t["attention_mask"], t["image_embeds"]
    images, texts = t["neg_image_for_text"], t["neg_text_for_image"]
    logits = model.match(
        torch.cat([ids, ids, ids[texts]]), torch.cat([mask, mask, mask[texts]]),
        torch.cat([states, states[images], states]),
    )  # fmt: skip
    torch.testing.assert_close(logits, t["out.itm_logits"], atol=1e-5, rtol=0)
    former = model.query_former
    written = ids.clone()
    written[:, 0] = former.decoder_start
    both = former.write(written, mask, states)
    found = former.logits(both[:, former.num_queries :])
    real = mask.bool()
    torch.testing.assert_close(found[real], t["out.lm_logits"][real], atol=5e-5, rtol=0)
    # In double precision: products of other shapes round differently, by processor.
    exact = copy.deepcopy(former).double()
    both = exact.write(written, mask, states.double())[:, : former.num_queries]
    torch.testing.assert_close(both, exact.read_image(states.double()), atol=1e-13, rtol=0)
    queries = former.read_image(states)
    torch.testing.assert_close(
        model.project_queries(queries), t["out.image_feats"], atol=1e-5, rtol=0
    )


@torch.no_grad()
def test_features(golden, model):
    _, tensors = golden
    t = tensors["tensors"]
    former, states = model.query_former, t["image_embeds"]
    queries = former.read_image(states)
    torch.testing.assert_close(queries, t["feat.image.image_embeds"], atol=1e-5, rtol=0)
    torch.testing.assert_close(
        model.project_queries(queries), t["feat.image.image_embeds_proj"], atol=1e-5, rtol=0
    )
    ids, mask = t["feat.input_ids"], t["feat.attention_mask"]
    read = former.read_text(ids, mask)
    torch.testing.assert_close(read, t["feat.text.text_embeds"], atol=1e-5, rtol=0)
    torch.testing.assert_close(
        model.project_text(read), t["feat.text.text_embeds_proj"], atol=1e-5, rtol=0
    )
    both = former.read_both(ids, mask, states)[:, : former.num_queries]
    torch.testing.assert_close(both, t["feat.multimodal.multimodal_embeds"], atol=1e-5, rtol=0)
    yes = model.match(t["input_ids"], t["attention_mask"], states)[:, 1]
    torch.testing.assert_close(yes, t["out.compute_itm"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_embedders_give_these_features(golden, model):
    """What an embedder pools: [B, Q, D] to [B, D], as the published recipe takes the mean."""
    _, tensors = golden
    t = tensors["tensors"]
    batch = batch_of({**t, "input_ids": t["feat.input_ids"],
                      "attention_mask": t["feat.attention_mask"]})  # fmt: skip
    wanted = {
        ("image", "states"): t["feat.image.image_embeds"],
        ("image", "shared"): t["feat.image.image_embeds_proj"],
        ("text", "states"): t["feat.text.text_embeds"],
        ("text", "shared"): t["feat.text.text_embeds_proj"][:, 0],
        ("multimodal", "states"): t["feat.multimodal.multimodal_embeds"],
    }
    for (what, space), expected in wanted.items():
        found, _ = model.represent(what, batch, space=space)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0, msg=f"{what} {space}")
    states, mask = model.represent("multimodal", batch, space="states")
    mean = pooled(states, mask, EmbedConfig(what="multimodal", space="states", normalize=False))
    expected = t["feat.multimodal.multimodal_embeds"].mean(1)
    torch.testing.assert_close(mean, expected, atol=1e-5, rtol=0)
