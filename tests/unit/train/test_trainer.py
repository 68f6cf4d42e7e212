"""What the loop writes, when it stops, and which rate each part learns at."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import time

import pytest
import torch

from diptych.errors import Interrupted, LossNotFinite, TooManyRejects
from diptych.model import trainable
from diptych.model.architectures.vlm import VlmConfig
from diptych.model.folder import build
from diptych.model.trainable import Group
from diptych.progress import Progress
from diptych.train import optimizer
from diptych.train.stage import Schedule, Stage
from diptych.train.trainer import Trainer
from tests.equivalence import tiny_run

torch.set_num_threads(1)  # tiny products: more threads only wait for one another
LINE = re.compile(
    r"^stage=(?P<stage>\S+) step=(?P<step>\d+)/(?P<num_steps>\d+) loss=(?P<loss>\S+) "
    r"learning_rate=(?P<rate>\S+) gradient_norm=\S+ samples=\d+ real_tokens=\d+ "
    r"supervised_tokens=\d+ padding_share=[\d.]+ tokens_per_second=\d+ memory_bytes=\d+$"
)


def trainer(folder, config, stages, **settings):
    model = build(VlmConfig.from_dict(config), seed=0)
    progress = Progress(folder / "train.log", quiet=True, every_seconds=0)
    return Trainer(
        model, [Stage.from_dict(s) for s in stages], folder,
        **{"trackers": (), "progress": progress, **settings},
    )  # fmt: skip


def metrics(folder):
    return [json.loads(t) for t in (folder / "metrics.jsonl").read_text().splitlines()]


def test_what_a_run_writes(tiny_config, squares, tmp_path):
    learn = {"connector": {"learning_rate": 4e-3}, "language_model": {}}
    first = tiny_run.stage(squares, learn=learn, num_steps=3, max_gradient_norm=0.01)
    second = {**first, "name": "second", "num_steps": 2}
    trainer(tmp_path, tiny_config(), [first, second], trackers=("tensorboard",)).train()
    lines = metrics(tmp_path)
    assert [(x["stage"], x["step"]) for x in lines] == [
        ("instruct", 1), ("instruct", 2), ("instruct", 3), ("second", 1), ("second", 2),
    ]  # fmt: skip
    for line in lines:
        assert {
            "loss", "losses", "learning_rate", "learning_rates", "gradient_norm", "samples",
            "real_tokens", "supervised_tokens", "padding_share", "tokens_per_second",
            "memory_bytes", "seconds",
        } <= set(line)  # fmt: skip
        rates = line["learning_rates"]
        assert rates["connector"] == pytest.approx(4 * rates["language_model"])
        assert line["learning_rate"] == rates["connector"]
    log = [t for t in (tmp_path / "train.log").read_text().splitlines() if t.startswith("stage=")]
    assert len(log) == 5
    for text, line in zip(log, lines, strict=True):
        found = LINE.match(text)
        assert found and int(found["step"]) == line["step"], text
        assert float(found["loss"]) == pytest.approx(line["loss"], abs=1e-4)
    assert list(tmp_path.rglob("events.out.tfevents*"))


def test_long_samples_stop_before_the_first_step(tiny_config, squares, tmp_path):
    stage = tiny_run.stage(squares, context_tokens=30)
    with pytest.raises(TooManyRejects) as caught:
        trainer(tmp_path, tiny_config(), [stage]).train()
    assert "SampleTooLong" in str(caught.value)
    assert not (tmp_path / "metrics.jsonl").exists()
    allowed = {**stage, "long_samples": "truncate", "num_steps": 1, "context_tokens": 44}
    trainer(tmp_path / "b", tiny_config(), [allowed]).train()
    ledger = json.loads((tmp_path / "b" / "ledger.json").read_text())["stages"]["instruct"]
    assert ledger["truncated"] and ledger["read"] == 8


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_stops_the_run(tiny_config, squares, tmp_path, where):
    one = trainer(tmp_path, tiny_config(), [tiny_run.stage(squares, learn={"connector": {}})])
    weight = one.model.connector.linear_2.weight
    if where == "loss":
        one.model.language_model.module.get_output_embeddings().weight.data[:] = math.nan
    else:
        weight.register_hook(lambda gradient: gradient * math.nan)
    before = weight.detach().clone()
    with pytest.raises(LossNotFinite, match="nan at step 1"):
        one.train()
    assert torch.equal(weight, before), "no weight was touched"


def test_keep_best_and_early_stop(tiny_config, squares, tmp_path):
    rows = json.loads((squares / "train.json").read_text())
    for row in rows:
        row["conversations"][1]["value"] = "four"  # what training unlearns soon
    (tmp_path / "other.json").write_text(json.dumps(rows))
    data = [{"path": str(tmp_path / "other.json"), "images": str(squares / "images")}]
    stage = tiny_run.stage(
        squares,
        validation=data,
        evaluate_every_steps=1,
        keep_best=True,
        early_stop_patience=2,
        num_steps=60,
        learning_rate=1e-2,
    )
    one = trainer(tmp_path, tiny_config(), [stage])
    kept = {}
    one.evaluate = lambda model, name, step: (
        kept.update({step: model.connector.linear_2.weight.detach().clone()}) or {"hook": 1.0}
    )
    one.train()
    losses = {x["step"]: x["validation_loss"] for x in metrics(tmp_path) if "validation_loss" in x}
    best = min(losses, key=losses.get)
    assert max(losses) == best + 2 < 60, "stopped two evaluations after the best"
    assert torch.equal(one.model.connector.linear_2.weight, kept[best])
    assert all("hook" in x for x in metrics(tmp_path) if "validation_loss" in x)


def test_a_first_step_without_pictures_is_no_fault(tiny_config, squares, tmp_path):
    rows = json.loads((squares / "train.json").read_text())
    text = [
        {"id": f"t{i}", "conversations": [{"from": "human", "value": "yes or no?"}, {"from": "gpt", "value": "yes"}]}
        for i in range(40)
    ]  # fmt: skip
    (tmp_path / "mixed.json").write_text(json.dumps(text + rows[:2]))
    stage = tiny_run.stage(squares, num_steps=None, num_epochs=1.0, global_batch_size=14)
    stage["data"] = [{"path": str(tmp_path / "mixed.json"), "images": str(squares / "images")}]
    one = trainer(tmp_path / "run", tiny_config(), [stage])
    one.train()
    assert len(metrics(tmp_path / "run")) == 3


def test_schedules():
    cosine = Schedule(warmup_share=0.1, final_share=0.2)
    assert [cosine.factor(s, 100) for s in range(10)] == pytest.approx(
        [i / 10 for i in range(1, 11)]
    )
    assert cosine.factor(55, 100) == pytest.approx(0.2 + 0.8 * 0.5)
    assert cosine.factor(99, 100) == pytest.approx(
        0.2 + 0.4 * (1 + math.cos(math.pi * 89 / 90)), rel=1e-9
    )
    linear = Schedule(shape="linear", warmup_share=0.0)
    assert [linear.factor(s, 4) for s in range(4)] == [1.0, 0.75, 0.5, 0.25]
    constant = Schedule(shape="constant", warmup_share=0.5)
    assert [constant.factor(s, 4) for s in range(4)] == [0.5, 1.0, 1.0, 1.0]
    assert Schedule().factor(0, 1) == 1.0


def test_decay_and_rates_by_group(tiny_model, squares):
    model = tiny_model()
    stage = Stage.from_dict(
        tiny_run.stage(
            squares,
            weight_decay=0.1,
            learn={"connector": {"learning_rate": 5e-4}, "language_model": {}},
        )
    )
    groups = trainable.apply(model, stage.learn, stage.learning_rate)
    adamw = optimizer.build(groups, stage)
    for group in adamw.param_groups:
        decays = {p.ndim >= 2 for p in group["params"]}
        assert decays == {group["weight_decay"] == 0.1}
        assert group["lr"] == (5e-4 if group["name"] == "connector" else 1e-3)
    count = sum(p.numel() for g in adamw.param_groups for p in g["params"])
    assert count == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert optimizer.set_rate(adamw, 0.5) == 5e-4


def test_muon_takes_hidden_matrices_and_leaves_the_rest(tiny_model, squares):
    model = tiny_model()
    values = tiny_run.stage(squares, optimizer="muon", weight_decay=0.1)
    stage = Stage.from_dict(values)
    groups = trainable.apply(model, stage.learn, stage.learning_rate)
    both = optimizer.build(groups, stage)
    names = {id(p): n for g in groups for n, p in g.parameters.items()}
    hidden = {names[id(p)] for g in both.param_groups if g["part"] == 0 for p in g["params"]}
    rest = {names[id(p)] for g in both.param_groups if g["part"] == 1 for p in g["params"]}
    assert hidden | rest == set(names.values()) and not hidden & rest
    assert any("q_proj" in n for n in hidden) and any("mlp" in n for n in hidden)
    assert any("embed_tokens" in n for n in rest) and not any("embed" in n for n in hidden)
    before = {n: p.detach().clone() for g in groups for n, p in g.parameters.items()}
    torch.manual_seed(0)
    for group in groups:
        for parameter in group.parameters.values():
            parameter.grad = torch.randn_like(parameter)
    optimizer.set_rate(both, 1.0)
    both.step()
    moved = {n for g in groups for n, p in g.parameters.items() if not torch.equal(p, before[n])}
    assert moved == set(before)
    # Muon's step is a fifth of the rate in every entry, on average: the size of AdamW's.
    name = next(n for n in hidden if "q_proj" in n)
    size = (dict_of(groups)[name] - before[name]).square().mean().sqrt().item()
    assert 0.1 * stage.learning_rate < size < 0.4 * stage.learning_rate


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_embeddings_learn_at_a_rate_of_their_own(tiny_model, squares, name):
    model = tiny_model()
    values = tiny_run.stage(squares, optimizer=name, embeddings_rate=0.25)
    stage = Stage.from_dict(values)
    groups = trainable.apply(model, stage.learn, stage.learning_rate)
    built = optimizer.build(groups, stage)
    names = {id(p): n for g in groups for n, p in g.parameters.items()}
    optimizer.set_rate(built, 0.5)
    rates = {names[id(p)]: g["lr"] for g in built.param_groups for p in g["params"]}
    assert len(rates) == len(names)
    for which, rate in rates.items():
        table = ("embed" in which or "lm_head" in which) and dict_of(groups)[which].ndim > 1
        share = 0.25 if table else 1.0
        assert rate == pytest.approx(0.5 * share * stage.learning_rate), which


def test_muon_moves_convolutions_as_matrices_wherever_their_numbers_lie():
    stage = Stage.from_dict(
        {"name": "s", "data": [{"path": "x"}], "learn": {"connector": {}}, "optimizer": "muon"}
    )
    torch.manual_seed(0)
    start, gradient = torch.randn(6, 4, 3, 3), torch.randn(6, 4, 3, 3)
    matrix = torch.nn.Parameter(start.flatten(1).clone())
    matrix.grad = gradient.flatten(1)
    torch.optim.Muon([matrix], lr=0.01, weight_decay=0.0, adjust_lr_fn="match_rms_adamw").step()
    for memory_format in (torch.contiguous_format, torch.channels_last):
        layer = torch.nn.Conv2d(4, 6, 3, bias=False)
        layer.weight.data = start.clone(memory_format=torch.preserve_format)
        layer = layer.to(memory_format=memory_format)
        both = optimizer.build([Group("connector", {"weight": layer.weight}, 0.01, 1)], stage)
        where = layer.weight.data_ptr()
        layer.weight.grad = gradient.clone()
        both.step()
        assert layer.weight.shape == start.shape and layer.weight.data_ptr() == where
        assert torch.equal(layer.weight.grad, gradient)
        assert torch.allclose(layer.weight.flatten(1), matrix, atol=1e-4)
        assert not torch.allclose(layer.weight, start, atol=1e-4)


def dict_of(groups):
    return {n: p for g in groups for n, p in g.parameters.items()}


def test_trackers_carry_the_recipe_and_the_name_of_the_run(
    tiny_config, squares, tmp_path, monkeypatch
):
    from accelerate import Accelerator
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from diptych.train.journal import LONGEST_VALUE

    asked = []
    init = Accelerator.init_trackers

    def noted(self, project_name, config=None, init_kwargs=None):
        asked.append((project_name, config, init_kwargs))
        return init(self, project_name, config, init_kwargs)

    monkeypatch.setattr(Accelerator, "init_trackers", noted)
    values = tiny_run.stage(squares, num_steps=1)
    recipe = {"name": "tiny", "seed": 3, "note": "x" * 2000, "choices": None, "stages": [values]}
    run = tmp_path / "tiny-0123"
    trainer(run, tiny_config(), [values], trackers=("tensorboard",), recipe=recipe).train()
    [(project, config, named)] = asked
    assert project == "diptych"
    assert named == {"wandb": {"name": "tiny-0123"}, "mlflow": {"run_name": "tiny-0123"}}
    assert config["run"] == "tiny-0123" and config["seed"] == 3 and config["choices"] == "null"
    assert config["stages.instruct.learning_rate"] == 1e-3
    assert config["stages.instruct.packed"] is True
    assert config["stages.instruct.data.0.path"] == str(squares / "train.json")
    assert all(
        isinstance(v, str | int | float | bool) and len(str(v)) <= LONGEST_VALUE
        for v in config.values()
    )
    tags = set()
    for file in run.rglob("events.out.*"):
        events = EventAccumulator(str(file))
        events.Reload()
        tags |= set(events.Tags()["scalars"])
        content = events.summary_metadata
        if "_hparams_/session_start_info" in content:
            data = content["_hparams_/session_start_info"].plugin_data.content
            assert b"stages.instruct.learning_rate" in data
            tags.add("hparams")
    assert {"loss", "hparams"} <= tags


class OnSchedule:
    """Due after the second step; stops the run the first time it looks."""

    def __init__(self, stops):
        self.stops, self.seen, self.missing = stops, [], not stops

    def is_due(self, step):
        return step == 2

    def is_missing(self, step):
        return step == 2 and self.missing

    def at(self, model, step):
        assert not model.training
        if self.stops:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        self.seen.append(step)
        return {"evaluations.x": 0.5}


def test_a_stop_does_not_wait_for_an_evaluation(tiny_config, squares, tmp_path):
    stage = tiny_run.stage(squares, num_steps=4)
    start, first = time.monotonic(), OnSchedule(stops=True)
    with pytest.raises(Interrupted, match="at step 2 of 4"):
        trainer(tmp_path / "a", tiny_config(), [stage], scheduled=first).train()
    assert time.monotonic() - start < 50 and not first.seen
    second = OnSchedule(stops=False)
    resumed = trainer(tmp_path / "a", tiny_config(), [stage], scheduled=second).train()
    assert second.seen == [2], "measured when the run goes on, with the weights of that step"
    lines = [x for x in metrics(tmp_path / "a") if "loss" not in x]
    assert lines == [{"stage": "instruct", "step": 2, "evaluations.x": 0.5}]
    whole = trainer(tmp_path / "b", tiny_config(), [stage]).train()
    for name, tensor in whole.state_dict().items():
        assert tensor.equal(resumed.state_dict()[name]), name


def test_supervised_tokens_are_counted_and_not_weighed(tiny_config, squares, tmp_path):
    """`average: sqrt` weighs tokens; what is written down is their number, as in the ledger."""
    objective = {"name": "next_token", "average": "sqrt"}
    stage = tiny_run.stage(squares, objective=objective, tokens_per_row=64, num_steps=3)
    trainer(tmp_path, tiny_config(), [stage]).train()
    (counted,) = json.loads((tmp_path / "ledger.json").read_text())["stages"].values()
    assert sum(x["supervised_tokens"] for x in metrics(tmp_path)) == counted["supervised_tokens"]
