"""Parts kept in bfloat16 learn as those in float32 do; what rests stays bfloat16."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from diptych.errors import NothingLearns
from diptych.model import trainable
from diptych.model.architecture import config_from_dict
from diptych.model.folder import build, load_model, save_model
from diptych.model.trainable import Group, Learn, Witness
from diptych.progress import Progress
from diptych.train import resume
from diptych.train.stage import Stage
from diptych.train.trainer import Trainer
from tests.equivalence import tiny_run

torch.set_num_threads(1)


def dtypes(module):
    return {p.dtype for p in module.parameters()}


def train(folder, config, stages):
    """(share of the language model's matrices that moved, losses) and the trained model."""
    model = build(config_from_dict(config), seed=0)
    part = model.part(next(iter(stages[-1]["learn"])))
    before = {n: p.detach().float().clone() for n, p in part.named_parameters() if p.ndim > 1}
    progress = Progress(folder / "log", quiet=True)
    chosen = [Stage.from_dict(s) for s in stages]
    Trainer(model, chosen, folder, trackers=(), progress=progress).train()
    now = dict(part.named_parameters())
    moved = sum(int((now[n].float() != old).sum()) for n, old in before.items())
    lines = [json.loads(t) for t in (folder / "metrics.jsonl").read_text().splitlines()]
    share = moved / sum(old.numel() for old in before.values())
    return model, share, [line["loss"] for line in lines]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_small_steps_are_not_lost_in_bfloat16(precision, tiny_config, squares, tmp_path):
    """At LLaVA's rate; rounded to bfloat16 after each step, four of five weights stand still."""
    stage = tiny_run.stage(
        squares, learn={"language_model": {}}, num_steps=60, learning_rate=2e-5,
        precision=precision, schedule={"shape": "constant"},
    )  # fmt: skip
    _, full, expected = train(tmp_path / "a", tiny_config(), [stage])
    model, share, losses = train(tmp_path / "b", tiny_config(dtype="bfloat16"), [stage])
    assert share > 0.9 * full and full > 0.6
    # The weights that both begin with differ by one rounding.
    assert losses[-1] == pytest.approx(expected[-1], abs=0.02)
    assert expected[0] - expected[-1] > 0.05
    fall, expected_fall = losses[0] - losses[-1], expected[0] - expected[-1]
    assert fall == pytest.approx(expected_fall, rel=0.1)
    # For good it is kept as the recipe says.
    assert dtypes(model.language_model) == {torch.bfloat16}
    save_model(model, tmp_path / "model")
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert saved["language_model.module.lm_head.weight"].dtype == torch.bfloat16
    assert dtypes(load_model(tmp_path / "model").language_model) == {torch.bfloat16}


@pytest.mark.parametrize(
    "part", ["vision_encoder", "text_encoder"], ids=["vision_encoder", "text_encoder"]
)
def test_every_part_that_can_be_bfloat16_learns_in_float32(part, tiny_dual, squares, tmp_path):
    config = tiny_dual("clip")
    config[part]["dtype"] = "bfloat16"
    stage = tiny_run.stage(
        squares, learn={part: {}}, num_steps=3, learning_rate=2e-5, objective="contrastive",
        schedule={"shape": "constant"},
    )  # fmt: skip
    model, _, _ = train(tmp_path, config, [stage])
    moved = json.loads((tmp_path / "parameters.json").read_text())["stages"]["instruct"][0]["moved"]
    assert moved["held"] == 1.0 and moved["share"] > 0.3
    assert dtypes(model.part(part)) == {torch.bfloat16}
    assert torch.float32 in dtypes(model)


def test_parts_are_held_as_each_stage_needs_them(tiny_model):
    model = tiny_model(dtype="bfloat16")
    part = model.language_model
    frequencies = {n: b.clone() for n, b in part.named_buffers()}

    def held(**learn):
        trainable.apply(model, {n: Learn(how=how) for n, how in learn.items()}, 1e-3)
        base = {p.dtype for n, p in part.named_parameters() if "lora_" not in n}
        adapters = {p.dtype for n, p in part.named_parameters() if "lora_" in n}
        assert dtypes(model.connector) == dtypes(model.vision_encoder) == {torch.float32}
        return base, adapters

    single, half = {torch.float32}, {torch.bfloat16}
    assert held(connector="full") == (half, set())
    assert held(language_model="full") == (single, set())
    assert held(connector="full") == (half, set())
    assert held(language_model="lora") == (half, single)
    assert held(language_model="full") == (single, single)
    assert held(connector="full") == (half, single)
    trainable.hold_precision(model, {})
    for name, buffer in part.named_buffers():
        assert torch.equal(buffer, frequencies[name]), "positions are never rounded"


def test_a_tied_output_layer_stays_tied(tiny_config):
    config = tiny_config(dtype="bfloat16")
    config["language_model"]["config"]["tie_word_embeddings"] = True
    model = build(config_from_dict(config), seed=0)
    for learn in ({"language_model": Learn()}, {}):
        trainable.hold_precision(model, learn)
        module = model.language_model.module
        assert module.get_output_embeddings().weight is module.get_input_embeddings().weight


@pytest.mark.slow
def test_a_stopped_run_goes_on_in_float32(tiny_config, squares, tmp_path):
    """Checkpoints hold what is between bfloat16's numbers, moments too."""
    stages = [
        tiny_run.stage(
            squares, name=name, learn={"language_model": {}}, num_steps=6, learning_rate=2e-5,
            checkpoint_every_steps=2, evaluate_every_steps=5,
        )
        for name in ("first", "second")
    ]  # fmt: skip
    config = tiny_config(dtype="bfloat16")

    def run(folder, stop=None):
        def evaluate(model, name, step):
            if name == stop:
                raise KeyboardInterrupt
            return {}

        model = build(config_from_dict(config), seed=0)
        progress = Progress(folder / "log", quiet=True)
        chosen = [Stage.from_dict(s) for s in stages]
        Trainer(
            model, chosen, folder, trackers=(), progress=progress, evaluate=evaluate
        ).train()  # fmt: skip
        return load_file(resume.newest(folder / "checkpoints") / "weights.safetensors")

    whole = run(tmp_path / "whole")
    for stop in ("first", "second"):
        folder = tmp_path / stop
        with pytest.raises(KeyboardInterrupt):
            run(folder, stop)
        newest = resume.newest(folder / "checkpoints")
        kept = load_file(newest / "weights.safetensors")[
            "model.language_model.module.lm_head.weight"
        ]
        assert kept.dtype == torch.float32 and not torch.equal(kept, kept.bfloat16().float())
        moments = load_file(newest / "optimizer.safetensors")
        assert {t.dtype for t in moments.values()} == {torch.float32}
        again = run(folder)
        for name, tensor in whole.items():
            assert torch.equal(tensor, again[name]), name


def test_moments_of_an_earlier_version_become_float32(tiny_config):
    """Its weights and moments were bfloat16; they are read as the numbers they were."""
    parameter = torch.nn.Parameter(torch.zeros(3))
    adamw = torch.optim.AdamW([parameter], lr=1e-3)
    old = {"w/exp_avg": torch.ones(3, dtype=torch.bfloat16), "w/step": torch.tensor(7.0)}
    resume._restore_moments(adamw, {id(parameter): "w"}, old)
    state = adamw.state[parameter]
    assert state["exp_avg"].dtype == torch.float32 and state["step"].item() == 7


def stepped(weights, gradient, rate):
    """A witness of one AdamW step of `weights`, and the group."""
    parameter = torch.nn.Parameter(weights)
    model = torch.nn.Module()
    model.part = torch.nn.Module()
    model.part.weight = parameter
    group = Group("part", {"part.weight": parameter}, rate, parameter.numel())
    witness = Witness(model, [group])
    parameter.grad = gradient.to(parameter.dtype)
    witness.gradients()
    torch.optim.AdamW([parameter], lr=rate, weight_decay=0.0).step()
    return witness


def usual(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 0.02


def test_rounding_that_eats_the_steps_is_an_error():
    weights, gradient = usual(300, 300), usual(300, 300)
    found = stepped(weights.clone(), gradient, 2e-5).check()["part"]
    assert found == trainable.Moved(tensors=1, share=1.0, held=1.0)
    with pytest.raises(NothingLearns, match="lose their steps to rounding") as caught:
        stepped(weights.bfloat16(), gradient, 2e-5).check()
    assert "2e-05 is too little for bfloat16" in str(caught.value)
    # At a rate that bfloat16 can follow there is nothing to object to.
    assert stepped(weights.bfloat16(), gradient, 1e-3).check()["part"].held > 0.95


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_no_gradient_reaches_is_not_held_against_a_part(dtype):
    """Unseen words of a table, dead units; a bias of nought; a rate that is still rising."""
    table, gradient = usual(500, 64), torch.zeros(500, 64)
    gradient[:5] = usual(5, 64)
    witness = stepped(table.to(dtype), gradient, 1e-3)
    found = witness.check()["part"]
    assert found.share == pytest.approx(0.01, abs=0.002) and found.held > 0.95
    biases = stepped(torch.zeros(64, dtype=dtype), usual(64), 2e-5).check()["part"]
    assert biases == trainable.Moved(tensors=1, share=1.0, held=1.0)


def test_a_rate_that_is_still_rising_is_no_fault():
    """The first of many warm-up steps is too small even for float32; the peak rate is not."""
    witness = stepped(usual(300, 300) + 1.0, usual(300, 300), 4e-8)
    witness._groups[0].learning_rate = 1e-4
    found = witness.check()["part"]
    assert found.share < 0.7 and found.held == 1.0


def test_a_part_of_a_large_tensor_is_looked_at():
    weights = usual(1000, 1000)
    gradient = usual(1000, 1000)
    gradient[::2] = 0
    found = stepped(weights, gradient, 1e-3).check()["part"]
    assert found.share == pytest.approx(0.5, abs=0.05) and found.held == 1.0


def test_what_moved_is_written_down_and_shown(tiny_config, squares, tmp_path):
    stage = tiny_run.stage(squares, num_steps=1, learn={"connector": {}, "language_model": {}})
    train(tmp_path, tiny_config(), [stage])
    groups = json.loads((tmp_path / "parameters.json").read_text())["stages"]["instruct"]
    moved = {g["group"]: g["moved"] for g in groups}
    assert moved["connector"] == {"tensors": 4, "share": 1.0, "held": 1.0}
    assert 0.3 < moved["language_model"]["share"] < 1, "words that were not seen stand still"
    text = (tmp_path / "log").read_text()
    assert "numbers" in text and "100.0%" in text
