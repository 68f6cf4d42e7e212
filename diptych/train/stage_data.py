"""What a stage learns from: data sets opened and checked, mixed, cached, cut into steps."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diptych.data.batching.mixture import Mixture
from diptych.data.batching.picture_loader import PictureLoader
from diptych.data.checking.index import Index
from diptych.data.reading.ledger import Ledger
from diptych.model.architecture import Model
from diptych.progress import Progress
from diptych.train import feature_cache, processes
from diptych.train.feature_cache import FeatureCache
from diptych.train.feed import StepData, known_pictures, open_index, sharing_keys
from diptych.train.stage import DataConfig, Stage

log = logging.getLogger(__name__)
FEW_STEPS = 20
"""A stage counted in epochs that has fewer steps is warned of; `num_steps` is taken as meant."""


class StageData:
    """Opens the data of stages for one run.

    Args:
        model: whose tokens, pixels and features the data become.
        accelerator: rank and number of processes; the main one reads first.
        run: run folder; indexes are kept in `data/`.
        cache: folder of feature caches.
        seed: of the data order.
    """

    def __init__(
        self, model: Model, accelerator: Any, run: Path, cache: Path, seed: int, progress: Progress
    ):
        self.model = model
        self.accelerator = accelerator
        self.run = run
        self.cache = cache
        self.seed = seed
        self.progress = progress
        self._template_named = False

    def open(self, stage: Stage, configs: Sequence[DataConfig]) -> tuple[list[Index], Ledger]:
        """Read and check every data set once; stops here when too much is rejected."""
        indexes = []
        ledger = Ledger()
        for config in configs:
            with processes.first_before_others():
                index = open_index(config, stage, self.run / "data", self.model)
            indexes.append(index)
            ledger.merge(index.ledger)
        ledger.enforce(stage.max_reject_share)
        return indexes, ledger

    def steps(
        self,
        number: int,
        stage: Stage,
        indexes: Sequence[Index],
        objective: Any,
        cached: bool | None = None,
    ) -> tuple[StepData, int, bool]:
        """The data of a stage's steps, how many steps there are, and whether features are cached.

        A frozen encoder's features are cached first, where that pays.

        Args:
            cached: what an earlier start of this stage decided, which is held to: features that
                are computed many at a time differ in their last bits.
        """
        self._name_template(stage)
        weights = [c.weight for c in stage.data]
        keys = [sharing_keys(i) for i in indexes]
        together = keys if objective.groups_pictures else [[None] * len(i) for i in indexes]
        mixture = Mixture(
            together,
            weights=None if None in weights else [w for w in weights if w is not None],
            seed=self.seed + number,
        )
        num_samples = None
        if stage.num_steps is not None:
            num_steps = stage.num_steps
        else:
            num_samples = round(mixture.epoch_length * (stage.num_epochs or 1.0))
            num_samples = self._for_every_rank(num_samples, stage.global_batch_size)
            num_steps = max(1, math.ceil(num_samples / stage.global_batch_size))
            if num_steps < FEW_STEPS:
                log.warning(
                    "the stage '%s' has only %d optimizer steps (%d samples, %d a step); a model "
                    "hardly learns from so few: raise num_epochs or lower global_batch_size",
                    stage.name, num_steps, num_samples, stage.global_batch_size,
                )  # fmt: skip
        distinct = len({k for ks in keys for k in ks if k is not None}) or 1
        epochs = num_steps * stage.global_batch_size / mixture.epoch_length
        pictures = sum(k is not None for ks in keys for k in ks)
        visits = epochs if stage.share_images else epochs * pictures / distinct
        features = None
        if "vision_encoder" not in stage.learn and stage.augment is None and cached is not False:
            features = self._features(stage, indexes, visits, decided=cached is True)
        collator = objective.collator(
            self.model, stage.budget, pictures_of(stage, self.model, features)
        )
        share = self._share(stage, indexes, mixture, collator, num_samples)
        each = math.prod(self.model.preprocessing.image_size) * 3
        each *= 4 if self.model.device.type == "cpu" else 1  # `PictureLoader.scaled`
        each = each if features is None else features.entry_bytes
        shown = sum(len(k) for ks in keys for k in ks if k is not None)
        own = math.ceil(stage.global_batch_size / self.accelerator.num_processes)
        share.step_bytes = round(own * each * shown / max(1, sum(map(len, keys))))
        share.ahead_bytes = stage.ahead_bytes
        return share, num_steps, features is not None

    def _name_template(self, stage: Stage) -> None:
        """Say once, before anything is learned, where learning and asking differ."""
        encoder = getattr(self.model, "chat_encoder", None)
        if encoder is None or stage.objective.name != "next_token":
            return
        if self._template_named or not self.accelerator.is_main_process:
            return
        self._template_named = True
        for note in encoder.notes():
            log.warning("chat template: %s", note)

    def _features(
        self, stage: Stage, indexes: Sequence[Index], visits: float, *, decided: bool
    ) -> FeatureCache | None:
        """The cache of this stage's pictures, or None; the first process decides for all."""

        def prepare(mode: str) -> FeatureCache | None:
            return feature_cache.prepare(
                self.model,
                (
                    picture
                    for index in indexes
                    for row in range(len(index))
                    for picture in known_pictures(index, row, self.model.preprocessing.tiles)
                ),
                self.cache / "features",
                mode=mode,
                num_visits=visits,
                max_bytes=sys.maxsize if mode == "decided" else stage.cache_bytes,
                precision=stage.precision,
                progress=self.progress,
            )

        found = None
        if self.accelerator.is_main_process:
            found = prepare("decided" if decided else stage.cache_features)
        known = processes.agreed(None if found is None else str(found.folder))
        if known is None or found is not None:
            return found
        folder = Path(known)
        # Another machine may not share this one's disk.
        return FeatureCache(folder) if folder.is_dir() else prepare("decided")

    def validation(self, stage: Stage, indexes: Sequence[Index], objective: Any) -> StepData | None:
        """The held-out data of a stage in file order, or None."""
        if not indexes:
            return None
        mixture = Mixture([sharing_keys(i) for i in indexes], shuffle=False)
        still = stage.model_copy(update={"augment": None})
        collator = objective.collator(
            self.model, stage.budget, pictures_of(still, self.model, None)
        )
        num_samples = self._for_every_rank(mixture.epoch_length, stage.global_batch_size)
        return self._share(stage, indexes, mixture, collator, num_samples)

    def _share(
        self,
        stage: Stage,
        indexes: Sequence[Index],
        mixture: Mixture,
        collator: Any,
        num_samples: int | None,
    ) -> StepData:
        """This rank's part of every step."""
        return StepData(
            indexes,
            mixture,
            collator,
            stage.global_batch_size,
            self.accelerator.process_index,
            self.accelerator.num_processes,
            num_samples,
        )

    def _for_every_rank(self, num_samples: int, batch_size: int) -> int:
        """So many samples that the last step has one for every rank at least.

        A rank without any could not take part in what the others gather.
        """
        short = num_samples % batch_size
        if num_samples > batch_size and 0 < short < self.accelerator.num_processes:
            log.warning(
                "the last %d samples are left out: a step needs one for each of %d processes",
                short,
                self.accelerator.num_processes,
            )
            return num_samples - short
        return num_samples


def pictures_of(stage: Stage, model: Model, features: FeatureCache | None) -> PictureLoader:
    """How the pictures of a stage are read: from the cache, or decoded and varied."""
    is_cpu = model.device.type == "cpu"
    return PictureLoader(model.preprocessing, features, stage.augment, scaled=is_cpu)
