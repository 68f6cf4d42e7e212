"""A tiny training run that tests start in processes of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from diptych.model.architecture import config_from_dict
from diptych.model.folder import build, save_model
from diptych.progress import Progress
from diptych.train.stage import Stage
from diptych.train.trainer import Trainer


def stage(squares: Path, **changes: Any) -> dict[str, Any]:
    """Values of a stage on the squares; only `next_token` fills rows within a budget."""
    packs = changes.get("objective", "next_token") == "next_token"
    budget = {"packed": True, "tokens_per_row": 64, "rows_per_batch": 8} if packs else {}
    return {
        "name": "instruct",
        "data": [{"path": str(squares / "train.json"), "images": str(squares / "images")}],
        "learn": {"vision_encoder": {}, "connector": {}, "language_model": {}},
        "num_steps": 4,
        "global_batch_size": 8,
        "learning_rate": 1e-3,
        "num_workers": 0,
        **budget,
        **changes,
    }


def run(
    folder: Path,
    config: dict[str, Any],
    stages: list[dict[str, Any]],
    environment: dict[str, str] | None = None,
) -> None:
    """Train (or resume) in `folder` and save the model there."""
    os.environ.update(environment or {})
    import torch

    torch.set_num_threads(1)
    model = build(config_from_dict(config), seed=0)
    trainer = Trainer(
        model,
        [Stage.from_dict(s) for s in stages],
        folder,
        trackers=(),
        progress=Progress(folder / "train.log", quiet=True),
    )
    trainer.train()
    if trainer.accelerator.is_main_process:
        save_model(model, folder / "model")
