"""BLIP's pretraining against LAVIS: two steps of losses, gradients, queue and momentum."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from diptych.data.batching.batch import Batch
from diptych.model.architectures.captioner import Captioner, CaptionerConfig
from diptych.model.matching import Heads
from diptych.model.text_mixture import TextMixture, TextMixtureConfig
from diptych.model.vision_encoder import VisionEncoderConfig
from diptych.train.objectives import blip

NAME = "lavis_blip_pretrain"
LOSS, GRADIENT, STATE = 1e-5, 5e-5, 1e-6


class Affine(nn.Module):
    """The image tower of the set; its first row stands for the class token."""

    num_prefix = 1

    def __init__(self, width: int, dim: int):
        super().__init__()
        self.proj = nn.Linear(width, dim)

    def forward(self, pixels):
        return self.proj(pixels)


class Tokenizer:
    """Special ids of the set."""

    def __init__(self, ids):
        self.ids = {"[DEC]": ids["dec_bos"], "[ENC]": ids["enc"]}
        self.cls_token_id, self.sep_token_id = ids["cls"], ids["sep"]
        self.pad_token_id = ids["pad"]

    def convert_tokens_to_ids(self, token):
        return self.ids[token]


def own_name(name: str) -> str | None:
    """LAVIS's name of a weight -> ours in model or objective; None for buffers without weights."""
    if "position_ids" in name:
        return None
    fixed = {"temp": "model.heads.temperature", "queue_ptr": None}
    if name in fixed:
        return fixed[name]
    prefixes = {
        "visual_encoder_m.": "objective.slow.vision_encoder.",
        "text_encoder_m.": "objective.slow.reader.",
        "vision_proj_m.": "objective.slow.image.",
        "text_proj_m.": "objective.slow.text.",
        "visual_encoder.": "model.vision_encoder.",
        "text_encoder.": "model.text.reader.",
        "text_decoder.": "model.text.writer.",
        "vision_proj.": "model.heads.image.",
        "text_proj.": "model.heads.text.",
        "itm_head.": "model.heads.matching.",
    }
    for theirs, ours in prefixes.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return None


@pytest.fixture
def golden(conformance):
    folder = conformance(NAME)
    tensors = {n: load_file(folder / f"{n}.safetensors") for n in ("tensors", "weights")}
    return json.loads((folder / "meta.json").read_text()), tensors


@pytest.fixture
def learner(golden):
    """Model and objective with the weights of the set."""
    from transformers import BlipTextConfig

    meta, tensors = golden
    c = meta["config"]
    hf_config = BlipTextConfig(
        **{k: c[k] for k in (
            "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
            "intermediate_size", "max_position_embeddings", "hidden_act", "layer_norm_eps",
        )},
        encoder_hidden_size=c["encoder_width"], is_decoder=True, label_smoothing=0.0,
        pad_token_id=meta["special_token_ids"]["pad"],
    )  # fmt: skip
    config = CaptionerConfig(
        vision_encoder=VisionEncoderConfig(), text=TextMixtureConfig(), dim=c["embed_dim"]
    )
    text = TextMixture(config.text, hf_config, Tokenizer(meta["special_token_ids"]))
    tower = Affine(c["vision_input_width"], c["encoder_width"])
    heads = Heads(c["encoder_width"], text.dim, config.dim, config.temperature)
    model = Captioner(config, tower, text, heads).eval()
    objective = blip.Config(
        queue_size=c["queue_size"], momentum=c["momentum"], alpha=c["alpha"],
        smoothing=c["lm_label_smoothing"],
    ).build(model)  # fmt: skip
    whole = nn.ModuleDict({"model": model, "objective": objective})
    weights = {own_name(k): v for k, v in tensors["weights"].items() if own_name(k)}
    missing, unexpected = whole.load_state_dict(weights, strict=False)
    assert not unexpected
    allowed = {f"objective.{n}" for n in ("image_queue", "text_queue", "place", "steps")}
    assert {n for n in missing if "position_ids" not in n} <= allowed
    objective.image_queue.copy_(tensors["weights"]["image_queue"].T)
    objective.text_queue.copy_(tensors["weights"]["text_queue"].T)
    objective.place.copy_(tensors["weights"]["queue_ptr"].squeeze())
    return model, objective


def batch_of(t, step):
    ids = t[f"{step}.input_ids"]
    none = torch.zeros(0, dtype=torch.int64)
    zeros = torch.zeros_like(ids)
    return Batch(
        ids, zeros, t[f"{step}.attention_mask"], zeros, none, none, none,
        pixel_values=t[f"{step}.image"], image_keys=tuple(f"{i:015x}" for i in range(len(ids))),
        sample_ids=tuple(map(str, range(len(ids)))),
    )  # fmt: skip


def test_two_steps(golden, learner):
    """Losses, gradients, what is drawn from, queue, pointer and momentum weights, step by step."""
    meta, tensors = golden
    t = tensors["tensors"]
    model, objective = learner
    whole = nn.ModuleDict({"model": model, "objective": objective})
    for number, wanted in enumerate(meta["steps"]):
        step = f"step{number}"
        per_epoch = wanted["num_iters_per_epoch"]
        objective.config = objective.config.model_copy(update={"alpha_ramp_steps": 2 * per_epoch})
        objective.steps.fill_(wanted["epoch"] * per_epoch + wanted["iters"])
        seen = {}

        def recorded(to_image, to_text, same, start, step=step, seen=seen):
            shares = [x.softmax(1) + blip.FLOOR for x in (to_image, to_text)]
            seen["t2i"], seen["i2t"] = (s.masked_fill(same, 0.0) for s in shares)
            return t[f"{step}.neg_image_for_text"], t[f"{step}.neg_text_for_image"]

        objective.negatives = recorded
        torch.testing.assert_close(
            objective.image_queue, t[f"{step}.queue_before.image"].T, atol=STATE, rtol=0
        )
        batch = batch_of(t, step)
        losses = objective(model, batch)
        losses = {k: v / objective.weight(batch) for k, v in losses.items()}
        for name in ("itc", "itm", "lm"):
            found = losses[name].item()
            assert found == pytest.approx(wanted["losses"][f"loss_{name}"], abs=LOSS), name
        for way in ("t2i", "i2t"):
            torch.testing.assert_close(seen[way], t[f"{step}.out.weights_{way}"], atol=1e-5, rtol=0)

        model.zero_grad()
        sum(losses.values()).backward()
        own = dict(whole.named_parameters(remove_duplicate=False))
        gradients = [n for n in t if n.startswith(f"{step}.grad.")]
        assert len(gradients) >= 8
        for name in gradients:
            mine = own[own_name(name.removeprefix(f"{step}.grad."))].grad
            torch.testing.assert_close(
                mine, t[name].view(mine.shape), atol=GRADIENT, rtol=1e-4, msg=name
            )
        for name, norm in wanted["grad_norms"].items():
            if (mine := own_name(name)) is not None:
                found = own[mine].grad.norm().item()
                assert found == pytest.approx(norm, abs=1e-4, rel=1e-4), name

        for side in ("image", "text"):
            torch.testing.assert_close(
                getattr(objective, f"{side}_queue"), t[f"{step}.queue_after.{side}"].T,
                atol=STATE, rtol=0,
            )  # fmt: skip
        assert int(objective.place) == wanted["queue_ptr_after"] % len(objective.image_queue)
        moved = [n for n in t if n.startswith(f"{step}.momentum_after.")]
        assert len(moved) >= 4
        for name in moved:
            mine = own[own_name(name.removeprefix(f"{step}.momentum_after."))]
            torch.testing.assert_close(mine, t[name], atol=STATE, rtol=0, msg=name)


@torch.no_grad()
def test_logits(golden, learner):
    _, tensors = golden
    t = tensors["tensors"]
    model, _ = learner
    ids, mask = t["step0.input_ids"], t["step0.attention_mask"]
    features = model.vision_encoder(t["step0.image"])
    torch.testing.assert_close(features, t["step0.out.image_embeds"], atol=1e-5, rtol=0)
    images, texts = t["step0.neg_image_for_text"], t["step0.neg_text_for_image"]
    logits = model.match(
        torch.cat([ids, ids, ids[texts]]), torch.cat([mask, mask, mask[texts]]),
        torch.cat([features, features[images], features]),
    )  # fmt: skip
    torch.testing.assert_close(logits, t["step0.out.itm_logits"], atol=1e-5, rtol=0)
    found = model.text.logits(model.text.write(ids, mask, features))
    wanted = t["step0.out.lm_logits"]
    real = mask.bool()[:, : wanted.shape[1]]
    found = found[:, : wanted.shape[1]]
    torch.testing.assert_close(found[real], wanted[real], atol=5e-5, rtol=0)


def test_rules_know_every_weight_of_the_reference(conformance):
    """Names of a whole LAVIS model, from the conformance set."""
    from safetensors import safe_open

    from diptych.convert.layouts import lavis_blip

    folder = conformance(NAME)
    with safe_open(folder / "weights.safetensors", "pt") as file:
        names = [n for n in file.keys() if not n.startswith("visual_encoder")]  # noqa: SIM118
    found = [lavis_blip.own_name(n) for n in names]
    assert len([f for f in found if f]) > 100
