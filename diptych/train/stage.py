"""Stage: an objective, data, what learns at which rate, and a budget.

Published recipes are tuples of stages: `align` (the connector learns), `pretrain`,
`instruct`. The same class every time.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Literal, Self

from pydantic import Field, model_validator

from diptych.config import SAME_RESULT, Config
from diptych.data.batching.budget import Budget
from diptych.data.pixels.augment import Augment
from diptych.model.trainable import Learn
from diptych.train.objective import ObjectiveField


class DataConfig(Config):
    """One data set of a stage."""

    path: str
    """File, folder, shards or URL."""
    images: str | None = None
    """Folder that image paths are relative to; null takes the data file's own folder."""
    format: str | None = None
    """Name of a format (llava, messages, captions, vqa; not pictures, which has no text); null
    detects it."""
    weight: float | None = Field(default=None, gt=0)
    """Share of draws relative to the other sets; give it for all sets or for none."""
    pictures: Literal["shown", "withheld"] = "shown"
    """`withheld` reads the rows without their pictures. A few such rows teach a model to answer
    without one too, so that the blind control is a fair opponent."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.format == "pictures":
            raise ValueError(
                "pictures alone (format: pictures) hold nothing to learn or to measure; use a "
                "format with texts"
            )
        return self


class Schedule(Config):
    """How the learning rate moves over a stage."""

    shape: Literal["cosine", "linear", "constant"] = "cosine"
    """Way down after the warm-up."""
    warmup_share: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps that rises linearly from zero."""
    final_share: float = Field(default=0.0, ge=0, le=1)
    """Rate at the end relative to the peak."""

    def factor(self, step: int, num_steps: int) -> float:
        """Multiplier of the peak rate at a step (counted from 0)."""
        import math

        warmup = round(self.warmup_share * num_steps)
        if step < warmup:
            return (step + 1) / warmup
        if self.shape == "constant":
            return 1.0
        progress = (step - warmup) / max(1, num_steps - warmup)
        falling = 1 - progress if self.shape == "linear" else (1 + math.cos(math.pi * progress)) / 2
        return self.final_share + (1 - self.final_share) * falling


class Stage(Config):
    """One stage of training."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    """Name in overrides, logs and the report."""
    objective: ObjectiveField = "next_token"
    """What is minimised; `name` is a file in train/objectives."""
    data: tuple[DataConfig, ...] = Field(min_length=1)
    """What it learns from."""
    validation: tuple[DataConfig, ...] = ()
    """Held-out data for the validation loss; empty means none."""
    learn: dict[str, Learn]
    """What learns, by part of the architecture (vision_encoder, connector, language_model ...);
    the rest is frozen."""

    num_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps; wins over num_epochs."""
    num_epochs: float | None = Field(default=None, gt=0)
    """Passes over the data; the default is one."""
    global_batch_size: int = Field(default=32, ge=1)
    """Samples of one optimizer step, over all micro-batches and ranks."""

    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak rate of parts that name none of their own."""
    schedule: Schedule = Schedule()
    """Course of the learning rate."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon` updates the matrices of hidden layers by Muon and the rest by AdamW; new language
    models learn in fewer steps with it, pretrained ones are best left to `adamw`."""
    embeddings_rate: float = Field(default=1.0, gt=0)
    """Learning rate of embeddings, output layers and learned queries, as a multiple of their part's
    rate: 0.2 is a fifth of it. At a lower rate, words that few samples show stay apart."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay on matrices (never on norms and biases)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW moment decay rates."""
    epsilon: float = Field(default=1e-8, gt=0)
    """AdamW epsilon."""
    max_gradient_norm: float | None = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm; null never."""
    precision: Literal["float32", "bf16"] = "float32"
    """`bf16` computes matrix products in bfloat16 (autocast); weights that learn stay float32."""
    gradient_checkpointing: bool = Field(default=False, json_schema_extra=SAME_RESULT)
    """Recompute activations instead of keeping them: less memory, slower."""

    augment: Augment | None = None
    """How training pictures are varied at every visit; null shows them as they are."""
    context_tokens: int | None = Field(default=None, ge=8)
    """Longest sample; null takes the language model's context."""
    long_samples: Literal["reject", "truncate"] = "reject"
    """What happens to longer samples; truncation never cuts a picture's tokens."""
    packed: bool = True
    """Several samples a row (exact: same losses and gradients as alone)."""
    share_images: bool = True
    """Samples about one picture share one copy of its tokens (exact too)."""
    tokens_per_row: int | None = Field(default=None, ge=8)
    """Token budget of a packed row; null finds the length with the least work."""
    tiles_per_row: int = Field(default=16, ge=1)
    """Tiles of pictures in a packed row; a picture that is not cut is one."""
    rows_per_batch: int = Field(default=8, ge=1, json_schema_extra=SAME_RESULT)
    """Rows of one micro-batch; lower it when memory runs out, results stay the same."""

    cache_features: Literal["auto", "on", "off"] = "auto"
    """Keep features of a frozen encoder on disk; auto reckons whether that pays."""
    cache_bytes: int = Field(default=8 * 2**30, ge=0, json_schema_extra=SAME_RESULT)
    """Largest size of the feature cache in bytes."""
    num_workers: int | None = Field(default=None, ge=0, json_schema_extra=SAME_RESULT)
    """Most processes that decode and tokenise; null chooses by the number of cores."""
    ahead_bytes: int = Field(default=2**30, ge=0, json_schema_extra=SAME_RESULT)
    """Memory of each process for steps that are prepared ahead; at least one is."""
    max_reject_share: float = Field(default=0.01, ge=0, le=1)
    """More rejected rows than this stop the run before training starts."""
    verify_images: Literal["full", "header", "none"] = "full"
    """How thoroughly every picture is checked before training starts."""

    evaluate_every_steps: int | None = Field(default=None, ge=1)
    """Validation loss (and the run's evaluation hook) every so many steps."""
    keep_best: bool = False
    """End the stage with the weights of the lowest validation loss."""
    early_stop_patience: int | None = Field(default=None, ge=1)
    """Stop after so many evaluations without a better validation loss."""
    checkpoint_every_steps: int | None = Field(default=None, ge=1, json_schema_extra=SAME_RESULT)
    """Checkpoint every so many steps; null checkpoints every `checkpoint_every_seconds`."""
    checkpoint_every_seconds: float = Field(default=600.0, gt=0, json_schema_extra=SAME_RESULT)
    """Longest time between checkpoints."""

    @property
    def budget(self) -> Budget:
        """What its collator obeys."""
        return Budget(**{field.name: getattr(self, field.name) for field in fields(Budget)})

    @model_validator(mode="after")
    def _is_used(self) -> Self:
        plain, uses = Budget(), self.objective.budget
        for name in (field.name for field in fields(Budget)):
            if name not in uses and getattr(self, name) != getattr(plain, name):
                raise ValueError(
                    f"the {self.objective.name} objective does not use {name}; leave it out"
                    + (f" (it uses {', '.join(uses)})" if uses else "")
                )
        return self

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if not self.learn:
            raise ValueError("learn names no part of the model")
        if self.augment is not None and self.cache_features == "on":
            raise ValueError(
                "cached features cannot be varied; leave cache_features or augment out"
            )
        for data in (self.data, self.validation):
            if len({d.weight is None for d in data}) > 1:
                raise ValueError("give every data set a weight, or none")
        if (self.keep_best or self.early_stop_patience) and not self.validation:
            raise ValueError("keep_best and early_stop_patience need validation data")
        if (self.keep_best or self.early_stop_patience) and not self.evaluate_every_steps:
            raise ValueError("keep_best and early_stop_patience need evaluate_every_steps")
        return self
