"""Weights that know their layers by order alone: what is filled, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from diptych.errors import CheckpointError
from diptych.model import in_order
from diptych.model.packages import PACKAGES

onnx = pytest.importorskip("onnx")
DOCS = Path(__file__).parents[3] / "docs" / "weights.md"


class Small(nn.Module):
    """A convolution with a folded norm, one with its own, a linear layer and a layer norm.

    They are defined in another order than they run in.
    """

    def __init__(self, width: int = 4):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)
        self.second_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.first = nn.Conv2d(3, width, 3, bias=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        hidden = self.first_norm(self.first(pixels)).relu()
        hidden = self.second_norm(self.second(hidden)).mean((2, 3))
        return self.norm(self.linear(hidden))


def exported(model: Small, file, leave_out: int = 0) -> None:
    """As exporters write such a model: the first norm folded, biases as additions."""
    one = model.first_norm
    scale = one.weight / (one.running_var + one.eps).sqrt()
    tensors = {
        "w0": model.first.weight * scale[:, None, None, None],
        "b0": (one.bias - one.running_mean * scale).reshape(1, -1, 1, 1),
        "w1": model.second.weight,
        **{f"n{k}": getattr(model.second_norm, end) for k, end in enumerate(
            ("weight", "bias", "running_mean", "running_var"))},
        "w2": model.linear.weight.T,
        "b2": model.linear.bias,
        "w3": model.norm.weight,
        "b3": model.norm.bias,
        "half": torch.tensor([0.5]),
    }  # fmt: skip
    known = [
        onnx.numpy_helper.from_array(t.detach().contiguous().numpy(), name)
        for name, t in tensors.items()
    ]
    node = onnx.helper.make_node
    nodes = [
        node("Identity", ["b0"], ["cast"]),
        node("Conv", ["x", "w0"], ["c0"]),
        node("Add", ["c0", "cast"], ["a0"]),
        node("Mul", ["a0", "half"], ["m0"]),  # a constant of an activation
        node("Conv", ["m0", "w1"], ["c1"]),
        node("BatchNormalization", ["c1", "n0", "n1", "n2", "n3"], ["d1"]),
        node("MatMul", ["d1", "w2"], ["e"]),
        node("Add", ["e", "b2"], ["f"]),
        node("Mul", ["f", "w3"], ["g"]),
        node("Add", ["g", "b3"], ["y"]),
    ]
    if leave_out:
        nodes = nodes[:-leave_out]
    of = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "small",
        [onnx.helper.make_tensor_value_info("x", of, None)],
        [onnx.helper.make_tensor_value_info("y", of, None)],
        known,
    )
    onnx.save(onnx.helper.make_model(graph), str(file))


@pytest.fixture
def model() -> Small:
    torch.manual_seed(0)
    model = Small().eval()
    for weight in model.parameters():
        weight.data.normal_()
    for norm in (model.first_norm, model.second_norm):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return model


def test_a_graph_fills_the_model_in_the_order_in_which_layers_run(model, tmp_path):
    exported(model, tmp_path / "m.onnx")
    again = Small()
    in_order.fill(again, in_order.of_onnx(tmp_path / "m.onnx"), torch.zeros(1, 3, 8, 8), "m.onnx")
    pixels = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(again(pixels), model(pixels), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("leave_out", [1, 2, 5])
def test_a_graph_with_fewer_layers_is_refused(model, leave_out, tmp_path):
    exported(model, tmp_path / "m.onnx", leave_out)
    steps = in_order.of_onnx(tmp_path / "m.onnx")
    with pytest.raises(CheckpointError, match="layer .* needs a .*, where the file ends"):
        in_order.fill(Small(), steps, torch.zeros(1, 3, 8, 8), "m.onnx")


def test_a_graph_of_another_width_or_with_more_layers_is_refused(model, tmp_path):
    exported(model, tmp_path / "m.onnx")
    steps = in_order.of_onnx(tmp_path / "m.onnx")
    with pytest.raises(CheckpointError, match="layer first has the shape"):
        in_order.fill(Small(5), steps, torch.zeros(1, 3, 8, 8), "m.onnx")
    with pytest.raises(CheckpointError, match="more layers"):
        in_order.fill(Small(), [*steps, steps[0]], torch.zeros(1, 3, 8, 8), "m.onnx")


def test_what_is_no_onnx_file(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"\xff" * 50)
    with pytest.raises(CheckpointError, match="no ONNX file"):
        in_order.of_onnx(tmp_path / "m.onnx")


def test_tensors_in_a_row_fill_convolutions_and_norms():
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    theirs[1].running_mean.normal_()
    ours = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    in_order.fill(ours, in_order.of_state(theirs.state_dict()), torch.zeros(1, 3, 8, 8), "m.pt")
    for name, tensor in theirs.state_dict().items():
        if "num_batches" not in name:
            assert np.array_equal(tensor, ours.state_dict()[name]), name


def test_every_package_stands_in_the_docs():
    text = DOCS.read_text(encoding="utf-8")
    for package in PACKAGES:
        assert f"`{package.name}`" in text and package.licence in text
