"""Training gives the same weights however a step is cut, and whatever kills the run."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diptych.errors import FrozenPartMoved, Interrupted, NothingLearns
from diptych.train import resume
from diptych.train.feature_cache import FeatureCache
from tests.equivalence import tiny_run

NUM_KILLS = 20
# Adam divides by the gradient's size, so rounding of a gradient near zero would be blown up to a
# whole step; a large epsilon keeps the comparison about the gradients.
WELL_CONDITIONED = {"epsilon": 1e-2, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def fresh():
    """Starts processes quickly: a server imports everything once, then forks."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["tests.equivalence.tiny_run", "diptych.train.objectives.next_token", "peft", "accelerate"]
    )
    return context


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def losses(folder: Path) -> list[tuple]:
    lines = [json.loads(t) for t in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(x["stage"], x["step"], x["loss"], x["samples"]) for x in lines if "loss" in x]


def assert_equal(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_accumulation_1x8_equals_8x1(tiny_config, squares, tmp_path):
    """One micro-batch of eight rows or eight of one row: same weights after several steps."""
    results = []
    for rows in (8, 1):
        folder = tmp_path / str(rows)
        changes = {
            "rows_per_batch": rows,
            "packed": False,
            "share_images": False,
            **WELL_CONDITIONED,
        }
        tiny_run.run(folder, tiny_config(), [tiny_run.stage(squares, **changes)])
        results.append((weights(folder), losses(folder)))
    (first, first_losses), (second, second_losses) = results
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, atol=2e-6, rtol=1e-5, msg=name)
    for a, b in zip(first_losses, second_losses, strict=True):
        assert a[2] == pytest.approx(b[2], abs=1e-5)


def test_packed_training_equals_unpacked(tiny_config, squares, tmp_path):
    results = []
    for packed in (True, False):
        folder = tmp_path / str(packed)
        changes = {"packed": packed, "tokens_per_row": 300}
        tiny_run.run(folder, tiny_config(), [tiny_run.stage(squares, **changes)])
        results.append(losses(folder))
    for a, b in zip(*results, strict=True):
        assert a[2] == pytest.approx(b[2], abs=1e-5)


@pytest.mark.slow
def test_resume_after_sigkill_is_exact(tiny_config, squares, tmp_path, fresh):
    """Killed at random moments, the run ends in the weights of the undisturbed one.

    Two stages behind a frozen encoder on two data sets, the cache asked for and left to `auto`; then
    one in which the encoder learns.
    """
    rows = json.loads((squares / "train.json").read_text())
    for name, chosen in {"few": rows[:20], "others": rows[12:]}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(chosen))
    frozen = [
        tiny_run.stage(
            squares, name=name, learn={"connector": {}}, num_steps=40, checkpoint_every_steps=2,
            cache_features=mode,
            data=[{"path": str(tmp_path / f"{name}.json"), "images": str(squares / "images")}],
        )
        for name, mode in (("few", "on"), ("others", "auto"))
    ]  # fmt: skip
    stages = [
        *frozen,
        tiny_run.stage(
            squares,
            num_steps=100,
            checkpoint_every_steps=3,
            learn={
                "vision_encoder": {},
                "connector": {"learning_rate": 2e-3},
                "language_model": {"how": "lora", "lora": {"rank": 2, "dropout": 0.1}},
            },
        ),
    ]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    undisturbed = fresh.Process(target=tiny_run.run, args=(whole, tiny_config(), stages))
    undisturbed.start()
    undisturbed.join(300)
    assert undisturbed.exitcode == 0
    rng = random.Random(0)
    kills = 0
    seen = []
    while True:
        process = fresh.Process(target=tiny_run.run, args=(broken, tiny_config(), stages))
        process.start()
        if kills < NUM_KILLS:
            if not _wait_for_progress(process, broken, rng):
                break
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            assert process.exitcode == -signal.SIGKILL
            kills += 1
            seen.append(len(losses_so_far(broken)))
            continue
        process.join(300)
        assert process.exitcode == 0
        break
    assert kills == NUM_KILLS, f"the run ended after {kills} kills"
    assert len(set(seen)) > 5, "the kills hit different steps"
    assert_equal(weights(whole), weights(broken))
    assert losses(whole) == losses(broken)
    ledgers = [json.loads((f / "ledger.json").read_text()) for f in (whole, broken)]
    assert ledgers[0] == ledgers[1]
    belongs = resume.position_of(resume.newest(whole / "checkpoints")).belongs
    assert [belongs[name]["cached"] for name in ("few", "others", "instruct")] == [
        True,
        True,
        False,
    ]


def losses_so_far(folder: Path) -> list[str]:
    file = folder / "metrics.jsonl"
    return file.read_text().splitlines() if file.is_file() else []


def _wait_for_progress(process, folder: Path, rng: random.Random) -> bool:
    """Wait a random while, mostly into the training; False when the process ended by itself."""
    if rng.random() < 0.2:  # anywhere, the start-up included
        time.sleep(rng.uniform(0.0, 1.0))
        return process.is_alive()
    start = len(losses_so_far(folder))
    wanted = rng.randint(1, 10)
    deadline = time.monotonic() + 60
    # A resumed run first drops the lines after its checkpoint, so count from the lowest.
    while time.monotonic() < deadline:
        now = len(losses_so_far(folder))
        start = min(start, now)
        if now >= start + wanted:
            time.sleep(rng.uniform(0.0, 0.02))
            return process.is_alive()
        if not process.is_alive():
            return False
        time.sleep(0.002)
    raise AssertionError("the run makes no progress")


@pytest.mark.slow
def test_resume_with_muon_is_exact(tiny_config, squares, tmp_path, fresh):
    """Both optimizers' moments come back: killed after a checkpoint, ends in the same weights."""
    stage = tiny_run.stage(squares, optimizer="muon", num_steps=60, checkpoint_every_steps=4)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    undisturbed = fresh.Process(target=tiny_run.run, args=(whole, tiny_config(), [stage]))
    undisturbed.start()
    undisturbed.join(300)
    assert undisturbed.exitcode == 0
    process = fresh.Process(target=tiny_run.run, args=(broken, tiny_config(), [stage]))
    process.start()
    while resume.newest(broken / "checkpoints") is None and process.is_alive():
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    position = resume.position_of(resume.newest(broken / "checkpoints"))
    assert 0 < position.step < 60
    again = fresh.Process(target=tiny_run.run, args=(broken, tiny_config(), [stage]))
    again.start()
    again.join(300)
    assert again.exitcode == 0
    assert_equal(weights(whole), weights(broken))
    assert losses(whole) == losses(broken)


def test_sigterm_saves_and_says_resume(tiny_config, squares, tmp_path, fresh):
    stages = [tiny_run.stage(squares, num_steps=400)]
    folder = tmp_path / "run"
    process = fresh.Process(target=tiny_run.run, args=(folder, tiny_config(), stages))
    process.start()
    while len(losses_so_far(folder)) < 3:
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 1  # Interrupted, raised through multiprocessing
    checkpoint = resume.newest(folder / "checkpoints")
    assert checkpoint is not None
    position = resume.position_of(checkpoint)
    assert position.step == len(losses_so_far(folder)) < 400
    assert Interrupted("").exit_code == 75


def test_damaged_checkpoint_is_passed_over(tiny_config, squares, tmp_path, fresh):
    stages = [tiny_run.stage(squares, num_steps=12, checkpoint_every_steps=2)]
    folder = tmp_path / "run"
    process = fresh.Process(target=tiny_run.run, args=(folder, tiny_config(), stages))
    process.start()
    while len(losses_so_far(folder)) < 9:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    checkpoints = sorted(p for p in (folder / "checkpoints").iterdir() if p.name[0] != ".")
    assert len(checkpoints) == 2
    damaged = checkpoints[-1] / "weights.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-8])
    assert resume.newest(folder / "checkpoints") == checkpoints[0]
    again = fresh.Process(target=tiny_run.run, args=(folder, tiny_config(), stages))
    again.start()
    again.join(120)
    assert again.exitcode == 0
    whole = tmp_path / "whole"
    tiny_run.run(whole, tiny_config(), stages)
    assert_equal(weights(whole), weights(folder))


PAIRS = {"name": "contrastive", "dim": 8, "token_dim": 4}


@pytest.mark.parametrize(
    "stage",
    [
        {"learn": {"connector": {}, "language_model": {}}},
        # Negatives come from every rank, so the losses are only equal if they are exchanged.
        {"learn": {"vision_encoder": {}}, "objective": PAIRS},
    ],
    ids=["next_token", "contrastive"],
)
def test_two_processes_equal_one(stage, tiny_config, squares, tmp_path, fresh):
    """Data-parallel training on two ranks gives one rank's losses and weights."""
    assert_two_equal_one(tiny_config(), stage, squares, tmp_path, fresh)


@pytest.mark.parametrize(
    ("kind", "objective"),
    [
        ("clip", "contrastive"),
        ("clip", {"name": "contrastive", "chunk_size": 3}),
        ("siglip", "sigmoid"),
    ],
    ids=["contrastive", "gradient caching", "sigmoid"],
)
def test_two_processes_train_one_dual_encoder(kind, objective, tiny_dual, squares, tmp_path, fresh):
    learn = {"vision_encoder": {}, "text_encoder": {}, "space": {}}
    stage = {"learn": learn, "objective": objective}
    assert_two_equal_one(tiny_dual(kind), stage, squares, tmp_path, fresh)


def test_two_processes_train_one_query_transformer(tiny_query, squares, tmp_path, fresh):
    stage = {"learn": {"query_former": {}, "heads": {}}, "objective": "query_text"}
    assert_two_equal_one(tiny_query(), stage, squares, tmp_path, fresh)


def test_two_processes_train_one_captioner(tiny_captioner, squares, tmp_path, fresh):
    learn = {"vision_encoder": {}, "text": {}, "heads": {}}
    objective = {"name": "blip", "queue_size": 16, "alpha_ramp_steps": 3}
    stage = {"learn": learn, "objective": objective}
    assert_two_equal_one(tiny_captioner(), stage, squares, tmp_path, fresh)


def test_the_rest_of_an_epoch_that_two_ranks_cannot_share(tiny_dual, squares, tmp_path, fresh):
    """47 + 1 samples: the last step has none for one of the ranks, which would wait for ever."""
    learn = {"vision_encoder": {}, "text_encoder": {}, "space": {}}
    stage = {
        **tiny_run.stage(squares, learn=learn, objective="contrastive"),
        "num_steps": None, "num_epochs": 1, "global_batch_size": 47,
    }  # fmt: skip
    two_processes(tiny_dual("clip"), [stage], tmp_path, fresh)
    assert [loss[1] for loss in losses(tmp_path)] == [1]


def test_two_processes_find_the_same_validation_loss(tiny_dual, squares, tmp_path, fresh):
    """Every rank brings its own pairs; none is its own negative."""
    learn = {"vision_encoder": {}, "text_encoder": {}, "space": {}}
    stage = tiny_run.stage(
        squares, learn=learn, objective="contrastive", num_steps=1, evaluate_every_steps=1,
        **WELL_CONDITIONED,
    )  # fmt: skip
    stage["validation"] = stage["data"]
    tiny_run.run(tmp_path / "one", tiny_dual("clip"), [stage])
    two_processes(tiny_dual("clip"), [stage], tmp_path / "two", fresh)
    found = [
        [r["validation_loss"] for r in map(json.loads, lines) if "validation_loss" in r]
        for lines in ((tmp_path / n / "metrics.jsonl").open() for n in ("one", "two"))
    ]
    assert len(found[0]) == 1 and found[1] == pytest.approx(found[0], abs=1e-5)
    counted = [
        json.loads((tmp_path / n / "ledger.json").read_text())["stages"]["instruct"]["validation"]
        for n in ("one", "two")
    ]
    rows = counted[0]["data"]["used"]
    assert counted[0] == counted[1] and counted[0]["used"] == rows > 0


def assert_two_equal_one(config, stage, squares, tmp_path, fresh):
    one = tmp_path / "one"
    stages = [tiny_run.stage(squares, **stage, **WELL_CONDITIONED)]
    tiny_run.run(one, config, stages)
    two = tmp_path / "two"
    two_processes(config, stages, two, fresh)
    for a, b in zip(losses(one), losses(two), strict=True):
        assert a[2] == pytest.approx(b[2], abs=1e-5)
    second = weights(two)
    for name, tensor in weights(one).items():
        torch.testing.assert_close(second[name], tensor, atol=5e-6, rtol=1e-4, msg=name)


def two_processes(config, stages, folder, fresh):
    """Train in `folder` on two ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        environment = {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        process = fresh.Process(target=tiny_run.run, args=(folder, config, stages, environment))
        process.start()
        processes.append(process)
    for process in processes:
        process.join(180)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0, 0]


def test_cached_features_give_the_same_losses(tiny_config, squares, tmp_path):
    results = []
    for mode in ("on", "off"):
        folder = tmp_path / mode
        stage = tiny_run.stage(squares, learn={"connector": {}}, cache_features=mode)
        tiny_run.run(folder, tiny_config(), [stage])
        results.append(losses(folder))
    assert (tmp_path / "on" / "cache" / "features").is_dir()
    assert not (tmp_path / "off" / "cache").exists()
    for a, b in zip(*results, strict=True):
        assert a[2] == pytest.approx(b[2], abs=1e-6)


def test_a_later_stage_adds_its_pictures_to_the_cache(tiny_config, squares, tmp_path):
    """Behind the same frozen encoder; what the first stage encoded is not encoded again."""
    rows = json.loads((squares / "train.json").read_text())
    files = {"few.json": rows[:16], "others.json": rows[8:40]}
    for name, chosen in files.items():
        (tmp_path / name).write_text(json.dumps(chosen))
    results = []
    for mode in ("on", "off"):
        stages = [
            tiny_run.stage(
                squares, name=name, learn={"connector": {}}, cache_features=mode,
                data=[{"path": str(tmp_path / f"{name}.json"), "images": str(squares / "images")}],
            )
            for name in ("few", "others")
        ]  # fmt: skip
        tiny_run.run(tmp_path / mode, tiny_config(), stages)
        results.append(losses(tmp_path / mode))
    for a, b in zip(*results, strict=True):
        assert a[:2] == b[:2] and a[2] == pytest.approx(b[2], abs=1e-6)
    (folder,) = (tmp_path / "on" / "cache" / "features").iterdir()
    cache = FeatureCache(folder)
    assert len(cache) == len({r["image"] for r in rows[:40]}) == 20


def test_frozen_parts_stay_and_learning_parts_move(tiny_config, squares, tmp_path):
    from diptych.model.architectures.vlm import VlmConfig
    from diptych.model.folder import build

    start = build(VlmConfig.from_dict(tiny_config(vision="resnet")), seed=0).state_dict()
    stage = tiny_run.stage(squares, learn={"connector": {}})
    tiny_run.run(tmp_path, tiny_config(vision="resnet"), [stage])
    end = weights(tmp_path)
    for name, tensor in end.items():
        moved = not torch.equal(tensor, start[name])
        assert moved == name.startswith("connector."), name
    groups = json.loads((tmp_path / "parameters.json").read_text())["stages"]["instruct"]
    assert [g["group"] for g in groups] == ["connector"]


def test_a_part_that_does_not_move_is_an_error(tiny_model):
    from diptych.model import trainable
    from diptych.model.trainable import Learn, Witness

    model = tiny_model()
    groups = trainable.apply(model, {"connector": Learn()}, 1e-3)
    witness = Witness(model, groups)
    with pytest.raises(NothingLearns, match="connector"):
        witness.check()
    with torch.no_grad():
        next(model.connector.parameters()).add_(1.0)
    moved = witness.check()["connector"]
    assert moved.tensors == 1 and moved.held == 1.0
    first, *others = model.connector.parameters()
    whole = first.numel() + sum(p.numel() for p in others)
    assert moved.share == pytest.approx(first.numel() / whole)
    with torch.no_grad():
        next(model.vision_encoder.parameters()).add_(1e-3)
    with pytest.raises(FrozenPartMoved):
        witness.check()
