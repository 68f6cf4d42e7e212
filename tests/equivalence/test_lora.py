"""LoRA: merged equals unmerged, saved equals loaded, and only adapters learn."""

from __future__ import annotations

import torch

from diptych.model import trainable
from diptych.model.folder import load_model, save_model
from diptych.model.trainable import Learn
from tests.equivalence.test_generation import QUESTIONS, read
from tests.equivalence.test_packing import SAMPLES, losses_by_sample


def with_adapters(model):
    learn = {name: Learn(how="lora") for name in ("vision_encoder", "language_model")}
    groups = trainable.apply(model, learn, 1e-3)
    generator = torch.Generator().manual_seed(0)
    for group in groups:
        for parameter in group.parameters.values():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += noise * 0.05
    return groups


def test_merged_equals_unmerged(tiny_model):
    model = tiny_model()
    before, _, _ = losses_by_sample(model, SAMPLES)
    groups = with_adapters(model)
    assert all("lora_" in n for g in groups for n in g.parameters)
    unmerged, _, _ = losses_by_sample(model.eval(), SAMPLES)
    answers = model.generate(QUESTIONS, max_new_tokens=8, images=read)
    assert any(abs(unmerged[n][0] - before[n][0]) > 1e-2 for n in before), "adapters act"
    model.merge_adapters()
    assert not any("lora_" in n for n, _ in model.named_parameters())
    merged, _, _ = losses_by_sample(model, SAMPLES)
    for name, (loss, _) in unmerged.items():
        assert abs(merged[name][0] - loss) < 1e-4
    assert model.generate(QUESTIONS, max_new_tokens=8, images=read) == answers


def test_adapters_survive_saving(tiny_model, tmp_path):
    model = tiny_model()
    with_adapters(model)
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert loaded.config.adapters == model.config.adapters
    first, _, _ = losses_by_sample(model.eval(), SAMPLES)
    second, _, _ = losses_by_sample(loaded, SAMPLES)
    assert first == second
