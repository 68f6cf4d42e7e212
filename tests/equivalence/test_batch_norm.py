"""What looks at the whole batch is named, and the encoder of the examples does not."""

from __future__ import annotations

import pytest
import torch

from diptych.model.architecture import config_from_dict
from diptych.model.folder import build
from diptych.progress import Progress
from diptych.train.stage import Stage
from diptych.train.trainer import Trainer
from tests.equivalence import tiny_run


def config(tiny_config, norm):
    values = tiny_config()
    values["vision_encoder"]["config"] = {
        "model_type": "diptych_conv", "hidden_sizes": [8, 12], "depths": [1, 1], "norm": norm,
    }  # fmt: skip
    return values


def end(tiny_config, norm, squares, run, rows):
    model = build(config_from_dict(config(tiny_config, norm)), seed=0)
    stage = tiny_run.stage(squares, num_steps=2, rows_per_batch=rows, packed=False)
    run.mkdir()
    Trainer(
        model, [Stage.from_dict(stage)], run, trackers=(),
        progress=Progress(run / "train.log", quiet=True),
    ).train()  # fmt: skip
    return model


def test_the_cut_of_a_step_does_not_matter_without_the_batch(
    tiny_config, squares, tmp_path, caplog
):
    one, other = (end(tiny_config, "group", squares, tmp_path / str(n), n) for n in (8, 2))
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, atol=2e-5, rtol=1e-4)
    assert "normalises over the batch" not in caplog.text


def test_layers_that_normalise_over_the_batch_are_named(tiny_config, squares, tmp_path, caplog):
    one, other = (end(tiny_config, "batch", squares, tmp_path / str(n), n) for n in (8, 2))
    name = "vision_encoder.module.stages.0.2"
    assert f"{name} normalises over the batch" in caplog.text and "rows_per_batch" in caplog.text
    means = [m.state_dict()[f"{name}.running_mean"] for m in (one, other)]
    assert not torch.allclose(*means), "as it says"


def test_a_norm_that_there_is_not(tiny_config):
    with pytest.raises(Exception, match="norm is batch or group, not 'layer'"):
        build(config_from_dict(config(tiny_config, "layer")))
