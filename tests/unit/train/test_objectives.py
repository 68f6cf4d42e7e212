"""Objectives against the same loss written out by hand, whole and in micro-batches."""

from __future__ import annotations

import json

import pytest
import torch

from diptych.data.batching.batch import Batch
from diptych.errors import ConfigError
from diptych.model.architectures.vlm import VlmConfig
from diptych.model.folder import build
from diptych.progress import Progress
from diptych.train.objectives import contrastive, next_token, regions
from diptych.train.stage import Stage
from diptych.train.trainer import Trainer
from tests.equivalence import tiny_run

torch.set_num_threads(1)


def region_batch(model, targets, pictures):
    positions, ids = zip(*targets, strict=True)
    empty = torch.zeros(pictures, 0, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    return Batch(
        empty, empty, empty, empty, torch.tensor(positions), torch.tensor(ids),
        torch.zeros(len(ids), dtype=torch.int64), image_keys=("k",) * pictures,
        pixel_values=torch.rand(pictures, 3, 28, 28, generator=generator),
        extra={"target_shares": torch.tensor([0.5, 0.5, 1.0])},
    )  # fmt: skip


def test_regions_is_the_mean_over_positions_and_their_tokens(tiny_model):
    model = tiny_model().eval()
    objective = regions.Config(empty_weight=0.5).build(model)
    batch = region_batch(model, [(3, 7), (3, 9), (20, 7)], pictures=2)
    with torch.no_grad():
        tokens = model.tile_tokens(model.encode_pixels(batch.pixel_values))
        table = model.language_model.embeddings
        scores = tokens.reshape(32, -1) @ (table - table.mean(0)).T * regions.SCALE
        scores = torch.cat([scores, torch.zeros(32, 1)], 1).log_softmax(-1)
    covered = (scores[3, 7] + scores[3, 9]) / 2 + scores[20, 7]
    others = [i for i in range(32) if i not in (3, 20)]
    expected = -(covered + 0.5 * scores[others, objective.nothing].sum())
    assert objective(model, batch)["regions"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert objective.weight(batch) == 2 + 0.5 * 30


def test_regions_learns_where_the_square_is(tiny_config, squares, tmp_path):
    rows = json.loads((squares / "captions.json").read_text())
    for row in rows:
        row["regions"] = [["square", 0.25, 0.25, 0.75, 0.75], ["left", 0.0, 0.0, 0.2, 0.2]]
    path = tmp_path / "regions.json"
    path.write_text(json.dumps(rows))
    stage = tiny_run.stage(
        squares, objective="regions", num_steps=40,
        learn={"vision_encoder": {}, "language_model": {}},
        data=[{"path": str(path), "images": str(squares / "images")}], learning_rate=5e-3,
    )  # fmt: skip
    model = build(VlmConfig.from_dict(tiny_config()), seed=0)
    trainer = Trainer(
        model, [Stage.from_dict(stage)], tmp_path / "run", trackers=(),
        progress=Progress(tmp_path / "train.log", quiet=True),
    )  # fmt: skip
    trainer.train()
    lines = [json.loads(t) for t in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.3 * lines[0]["loss"]


def test_letters_are_told_at_the_stages_before_the_last(tiny_config):
    config = tiny_config(connector="linear")
    config["vision_encoder"] = {
        "config": {
            "model_type": "diptych_conv", "hidden_sizes": [8, 12, 16], "depths": [1, 1, 1],
        },
        "image": {"resize": "exact", "size": [32, 32]},
    }  # fmt: skip
    model = build(VlmConfig.from_dict(config), seed=0).eval()
    objective = regions.Config(letters_weight=2.0, empty_weight=0.5).build(model)
    batch = Batch(
        *(torch.zeros(1, 0, dtype=torch.int64),) * 4,
        torch.tensor([3]), torch.tensor([7]), torch.tensor([0]), image_keys=("k",),
        pixel_values=torch.rand(1, 3, 32, 32), extra={
            "target_shares": torch.tensor([1.0]),
            "letters": torch.tensor([[0.0, 0.99, 0.0, 65.0], [0.0, 1.0, 0.01, 1021 + 66.0]]),
        },
    )  # fmt: skip
    with torch.no_grad():
        first, second, _ = model.vision_encoder.stages(batch.pixel_values)
        expected = 0.0
        for stage, speller in zip((first, second), objective.spellers, strict=True):
            side = stage.shape[2]
            scores = speller(stage.flatten(2).transpose(1, 2))[0].log_softmax(-1)
            corner = side - 1  # both stand in the upper right
            # One empty place in three counts for all, which ones the number of letters (2) says.
            empty = [i for i in range(side * side) if i != corner and (i + 2) % 3 == 0]
            assert len(empty) > 3
            expected -= (scores[corner, 65] + scores[corner, 66]) / 2
            expected -= 3 * 0.5 * scores[empty, regions.CLASSES].sum()
        losses = objective(model, batch)
    assert losses["letters"].item() == pytest.approx(2 * expected.item(), rel=1e-4)


def test_a_connector_that_tells_words_learns_them_and_the_places_under_centres(tiny_model):
    model = tiny_model(connector={"name": "words", "num_kept": 3}).eval()
    words = len(model.language_model.embeddings)
    model = tiny_model(connector={"name": "words", "num_kept": 3, "vocab_size": words}).eval()
    objective = regions.Config(empty_weight=0.5).build(model)
    assert not list(objective.parameters())  # the connector brings what is needed
    batch = region_batch(model, [(3, 7), (3, 9), (20, 7)], pictures=2)
    batch.extra = {**batch.extra, "centres": torch.tensor([3, 20])}
    losses = objective(model, batch)
    with torch.no_grad():
        features = model.encode_pixels(batch.pixel_values)
        told, scores = model.connector.told(features, model.vision_encoder.grid)
        told = told.flatten(0, 1).log_softmax(-1)
        read = -(told[3, 7] + told[3, 9]) / 2 - told[20, 7]
        nothing = -told[[i for i in range(32) if i not in (3, 20)], words].sum()
        right = scores.flatten().sigmoid()
        wrong = 1 - right
        wanted = [3, 20]
        others = [i for i in range(32) if i not in wanted]
        expected = -right[wanted].log().sum() - wrong[others].log().sum()
    assert losses["kept"].item() == pytest.approx(regions.CHOICE * expected.item(), rel=1e-4)
    assert losses["regions"].item() == pytest.approx((read + 0.5 * nothing).item(), rel=1e-4)
    (losses["kept"] + losses["regions"]).backward()
    assert model.connector.score.weight.grad.abs().sum() > 0
    assert model.connector.word_embeds.grad.abs().sum() > 0
    assert model.language_model.embeddings.grad is None


def test_regions_need_tokens_that_stand_somewhere(tiny_config):
    config = tiny_config(connector={"name": "resampler", "num_queries": 4})
    with pytest.raises(ConfigError, match="stand for no place"):
        regions.Config().build(build(VlmConfig.from_dict(config), seed=0))


def test_letters_need_a_convolutional_encoder(tiny_model):
    with pytest.raises(ConfigError, match="convolutional"):
        regions.Config(letters_weight=1.0).build(tiny_model())


def test_regions_need_the_whole_picture(tiny_config):
    config = tiny_config()
    config["vision_encoder"]["image"]["crop"] = [28, 28]
    with pytest.raises(ConfigError, match="whole picture"):
        regions.Config().build(build(VlmConfig.from_dict(config), seed=0))


@pytest.mark.parametrize(
    ("average", "weights"),
    [("token", [1, 1, 1, 1, 1]), ("sample", [1 / 4] * 4 + [1]), ("sqrt", [1 / 2] * 4 + [1])],
)
def test_averages_of_next_token(average, weights):
    losses = torch.tensor([0.5, 1.0, 2.0, 0.25, 3.0])
    objective = next_token.Config(average=average).build(None)
    none = torch.zeros(1, 8, dtype=torch.int64)
    batch = Batch(
        none, none, none, none, torch.arange(5), torch.arange(5), torch.tensor([0, 0, 0, 0, 1])
    )

    class Model:
        def target_log_probs(self, batch):
            return -losses

    expected = (losses * torch.tensor(weights)).sum()
    assert objective(Model(), batch)["next_token"].item() == pytest.approx(expected.item())
    assert objective.weight(batch) == pytest.approx(sum(weights))


def test_contrastive_pairs_pictures_with_their_texts(tiny_model):
    """Symmetric cross-entropy over the pairs, written out."""
    model = tiny_model().eval()
    objective = contrastive.Config(dim=8, token_dim=4).build(model)
    empty = torch.zeros(3, 0, dtype=torch.int64)
    none = torch.zeros(0, dtype=torch.int64)
    pixels = torch.rand(3, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    batch = Batch(
        empty, empty, empty, empty, none, none, none, image_keys=("a", "b", "c"),
        pixel_values=pixels, texts=("red square", "two", "yes no"),
    )  # fmt: skip
    with torch.no_grad():
        loss = objective(model, batch)["contrastive"].item()
        reduced = objective.reduce(model.encode_pixels(pixels)).flatten(1)
        images = torch.nn.functional.normalize(objective.projection(reduced), dim=-1)
        texts = torch.nn.functional.normalize(objective.texts(batch.texts), dim=-1)
        scores = (images @ texts.T / 0.07).double()
    rows, columns = scores.log_softmax(1).diagonal(), scores.log_softmax(0).diagonal()
    assert loss == pytest.approx(-(rows + columns).sum().item() / 2, rel=1e-4)
    assert objective.weight(batch) == 3


def test_contrastive_learns_the_squares(tiny_config, squares, tmp_path):
    stage = tiny_run.stage(
        squares, objective="contrastive", learn={"vision_encoder": {}}, num_steps=40,
        data=[{"path": str(squares / "captions.json"), "images": str(squares / "images")}],
        learning_rate=5e-3, global_batch_size=3,
    )  # fmt: skip
    model = build(VlmConfig.from_dict(tiny_config()), seed=0)
    Trainer(
        model, [Stage.from_dict(stage)], tmp_path / "run", trackers=(),
        progress=Progress(tmp_path / "train.log", quiet=True),
    ).train()  # fmt: skip
    lines = [json.loads(t) for t in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    first, last = (sum(x["loss"] for x in part) for part in (lines[:5], lines[-5:]))
    assert last < 0.8 * first
